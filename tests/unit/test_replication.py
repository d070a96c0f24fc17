"""What a burst holds, and what ends it. The connection is one that answers as it was told."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from syncdata.capture import replication
from syncdata.capture.replication import Keepalive, ReplicationConnection, XLogData, opened
from syncdata.errors import SourceConnectionError, SourceSetupError


def change(number: int, size_bytes: int = 1) -> bytes:
    return b"w" + struct.pack(">QQQ", number, number, 0) + b"x" * size_bytes


def keepalive(wal_end: int) -> bytes:
    return b"k" + struct.pack(">QQB", wal_end, 0, 0)


def lost() -> bytes:
    raise psycopg.OperationalError("the connection is lost")


class Stream:
    """Gives its *answers* one after the other: a message; or what a function returns, or raises; and nothing
    once there are no more. ``pauses``: before these answers all that was read before is used up."""

    def __init__(self, *answers: bytes | Callable[[], bytes], pauses: tuple[int, ...] = ()) -> None:
        self._answers = list(answers)
        self._pauses = set(pauses)
        self._given = 0
        self.socket, self._writer = os.pipe()
        os.write(self._writer, b"!")
        self.pgconn = self
        self.notice: Callable[[Any], None] = lambda notice: None

    def add_notice_handler(self, handler: Callable[[Any], None]) -> None:
        self.notice = handler

    def get_copy_data(self, decode: int) -> tuple[int, memoryview]:
        if self._given == len(self._answers) or self._given in self._pauses:
            return 0, memoryview(b"")
        answer = self._answers[self._given]
        self._given += 1
        content = answer if isinstance(answer, bytes) else answer()
        return len(content), memoryview(content)

    def consume_input(self) -> None:
        self._pauses.discard(self._given)
        if self._given == len(self._answers):
            os.read(self.socket, 1)

    def close(self) -> None:
        os.close(self.socket)
        os.close(self._writer)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Stream], ReplicationConnection]]:
    streams: list[Stream] = []

    def connect(stream: Stream) -> ReplicationConnection:
        streams.append(stream)
        monkeypatch.setattr(replication, "connect_for_replication", lambda params: stream)
        return ReplicationConnection({})

    yield connect
    for stream in streams:
        stream.close()


Connect = Callable[[Stream], ReplicationConnection]


def numbers(messages: list[bytes]) -> list[int]:
    return [opened(message).lsn for message in messages]


def test_a_burst_goes_on_until_nothing_has_arrived(connected: Connect) -> None:
    connection = connected(Stream(*map(change, range(5)), pauses=(2, 4)))
    assert connection.read() == XLogData(0, b"x")
    assert numbers(connection.read_more()) == [1, 2, 3, 4]
    assert connection.read_more() == []
    assert connection.read() is None


def test_what_has_just_arrived_is_read_without_a_wait(connected: Connect) -> None:
    """The first look of a session is the last one where it is to stop at once."""
    connection = connected(Stream(change(1), pauses=(0,)))
    assert connection.read() == XLogData(1, b"x")
    assert connection.read() is None


def test_a_keepalive_ends_a_burst_and_is_read_in_its_place(connected: Connect) -> None:
    """It says that all before it was sent: said earlier, or never, what is confirmed would be wrong."""
    connection = connected(Stream(change(1), keepalive(2), change(3), b"?", change(4), keepalive(5)))
    assert numbers(connection.read_more()) == [1]
    assert connection.read_more() == [], "it is still to be read"
    connection.wait(600)  # not at all
    assert connection.read() == Keepalive(2, False)
    assert numbers(connection.read_more()) == [3, 4]
    assert connection.read() == Keepalive(5, False)


def test_what_came_before_an_error_is_in_the_burst_and_the_error_stays(connected: Connect) -> None:
    connection = connected(Stream(change(1), change(2), lost, change(3)))
    assert numbers(connection.read_more()) == [1, 2]
    connection.wait(600)  # not at all
    for look in (connection.require_sound, connection.read):
        with pytest.raises(SourceConnectionError):
            look()


def test_what_is_behind_the_warning_that_changes_are_left_out_is_in_no_burst(connected: Connect) -> None:
    class Warned:
        severity_nonlocalized = "WARNING"
        sqlstate = "55000"
        message_primary = "skipped loading publication"

    def warned() -> bytes:
        stream.notice(Warned)
        return change(2)

    stream = Stream(change(1), warned, change(3))
    connection = connected(stream)
    assert numbers(connection.read_more()) == [1]
    with pytest.raises(SourceSetupError, match="leaves out changes"):
        connection.require_sound()


def test_a_burst_is_bounded_in_bytes(connected: Connect) -> None:
    connection = connected(Stream(*(change(number, 100_000) for number in range(7))))
    assert numbers(connection.read_more()) == [0, 1, 2]
    assert numbers(connection.read_more()) == [3, 4, 5]
