"""SSH servers that are silent, slow, cut off or send nonsense: an error in time, and nothing lost."""

from __future__ import annotations

import io
import resource
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from paramiko import sftp as p

from syncdata.archive import sftp_files, ssh, ssh_transport
from syncdata.archive.archive import Archive, ChangeFile, open_archive
from syncdata.errors import ArchiveConnectionError, SyncError
from tests.bad_ssh import (
    CONTENT,
    NAME,
    BadServer,
    Behaviour,
    attributes,
    bad_server,
    names,
    packet,
    says,
    status,
    text,
)

FILE = ChangeFile(name=NAME, size_bytes=len(CONTENT))
BANNER = b"SSH-2.0-bad\r\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BadServer]:
    with bad_server(tmp_path) as started:
        yield started


@pytest.fixture
def archive(server: BadServer) -> Iterator[Archive]:
    opened = open_archive(server.settings())
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "PAUSE_S", 0.02)


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 0.4)
    monkeypatch.setattr(ssh, "LOGIN_TIMEOUT_S", 0.8)
    monkeypatch.setattr(ssh, "SILENCE_TIMEOUT_S", 0.4)


def discover(archive: Archive) -> object:
    return archive.discover(None)


def fetch(archive: Archive) -> object:
    with archive.fetch(FILE) as content:
        return content.read()


def put(archive: Archive) -> object:
    archive.put("changes_20260205_113000.json", io.BytesIO(CONTENT))
    return None


def nothing_is_lost(archive: Archive) -> None:
    """What was asked for in vain before, a server that has been mended gives."""
    assert FILE in archive.discover(None)
    assert fetch(archive) == CONTENT
    put(archive)
    archive.remove("changes_20260205_113000.json")


def on(kind: int, answer: Callable[[int, bytes], bytes | None]) -> Behaviour:
    """Good, but for the requests of that *kind*; *answer* is given the request and the good answer."""
    return Behaviour(
        on_request=lambda asked, request, rest, good: answer(request, good) if asked == kind else good
    )


# Each: how the server behaves, and what is asked of it.
Case = tuple[Callable[[BadServer], Behaviour], Callable[[Archive], object]]


def silent_on(kind: int) -> Callable[[BadServer], Behaviour]:
    return lambda server: on(kind, lambda request, good: None)


def _drip(server: BadServer) -> Behaviour:
    """Answers come a byte at a time: each is fast enough, the whole never ends."""

    def on_channel(channel: paramiko.Channel) -> bool:
        channel.sendall(packet(p.CMD_VERSION, 3)[:-1])
        while not server.ends.wait(0.1):
            pass
        return True

    return Behaviour(on_channel=on_channel)


def _drip_data(server: BadServer) -> Behaviour:
    def on_channel(channel: paramiko.Channel) -> bool:
        channel.sendall(packet(p.CMD_VERSION, 3) + struct.pack(">I", 100_000))
        while not server.ends.wait(0.05):
            channel.sendall(b"x")
        return True

    return Behaviour(on_channel=on_channel)


SILENT: dict[str, Case] = {
    "no greeting": (lambda server: Behaviour(on_connection=says()), discover),
    "a greeting that never ends": (
        lambda server: Behaviour(on_connection=says(b"a line\r\n", every_s=0.1, again=True)),
        discover,
    ),
    "half a greeting": (lambda server: Behaviour(on_connection=says(b"SSH-2.0-b")), discover),
    "a greeting a byte at a time": (
        lambda server: Behaviour(on_connection=says(b"S", every_s=0.1, again=True)),
        discover,
    ),
    "nothing behind the greeting": (lambda server: Behaviour(on_connection=says(BANNER)), discover),
    "nothing to the login": (lambda server: Behaviour(on_login=server.wait), discover),
    "nothing to a channel": (lambda server: Behaviour(on_open=server.wait), discover),
    "nothing to the subsystem": (
        lambda server: Behaviour(on_subsystem=lambda: server.wait()),
        discover,
    ),
    "a subsystem that is silent": (
        lambda server: Behaviour(on_channel=lambda channel: server.wait()),
        discover,
    ),
    "half a version": (_drip, discover),
    "an answer a byte at a time": (_drip_data, discover),
    "nothing to a listing": (silent_on(p.CMD_OPENDIR), discover),
    "nothing in a listing": (silent_on(p.CMD_READDIR), discover),
    "nothing to an open": (silent_on(p.CMD_OPEN), fetch),
    "nothing in the middle of a file": (
        lambda server: on(p.CMD_READ, lambda request, good: good if request % 7 else None),
        fetch,
    ),
    "nothing to a write": (silent_on(p.CMD_WRITE), put),
    "nothing to a rename": (silent_on(p.CMD_RENAME), put),
}


@pytest.mark.parametrize("what", SILENT)
def test_a_server_that_is_silent_is_given_up_in_time_and_tried_again(
    server: BadServer, archive: Archive, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave, ask = SILENT[what]
    server.behaviour = behave(server)
    with monkeypatch.context() as now:
        impatient(now)
        started = time.monotonic()
        with pytest.raises(ArchiveConnectionError) as caught:
            ask(archive)
        assert time.monotonic() - started < 10
    assert "SHD_SYN_060" in str(caught.value) and len(str(caught.value)) < 500
    assert server.connections == ssh.TRIES
    server.behaviour = Behaviour()
    nothing_is_lost(archive)


@pytest.mark.parametrize("what", SILENT)
def test_closing_ends_the_wait_for_a_silent_server(server: BadServer, archive: Archive, what: str) -> None:
    behave, ask = SILENT[what]
    server.behaviour = behave(server)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            ask(archive)
        except BaseException as error:
            failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    until = time.monotonic() + 10
    while not server.connections and time.monotonic() < until:
        time.sleep(0.01)
    worker.join(0.3)  # Well into the wait, which would last ten seconds and more.
    started = time.monotonic()
    archive.close()
    worker.join(8)
    assert not worker.is_alive() and time.monotonic() - started < 5
    assert isinstance(failed[0], ArchiveConnectionError)


def _garbage(content: bytes) -> Callable[[BadServer], Behaviour]:
    def on_channel(channel: paramiko.Channel) -> bool:
        channel.sendall(content)
        return False

    return lambda server: Behaviour(on_channel=on_channel)


def _cut_on(kind: int) -> Callable[[BadServer], Behaviour]:
    def cut(request: int, good: bytes) -> bytes:
        raise EOFError

    return lambda server: on(kind, cut)


def _answers(kind: int, answer: Callable[[int, bytes], bytes | None]) -> Callable[[BadServer], Behaviour]:
    return lambda server: on(kind, answer)


LARGE = struct.pack(">I", 0x7FFFFFFF)

WRONG: dict[str, Case] = {
    "another protocol": (
        lambda server: Behaviour(on_connection=says(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 50)),
        discover,
    ),
    "an older protocol": (lambda server: Behaviour(on_connection=says(b"SSH-1.5-old\r\n")), discover),
    "a greeting without an end": (
        lambda server: Behaviour(on_connection=says(b"x" * 65536, again=True)),
        discover,
    ),
    "lines before the greeting without an end": (
        lambda server: Behaviour(on_connection=says(b"x\r\n" * 20_000, again=True)),
        discover,
    ),
    "a greeting that is no text": (
        lambda server: Behaviour(on_connection=says(b"\xff\xfe\x00\r\n")),
        discover,
    ),
    "a packet of 2 GiB": (
        lambda server: Behaviour(on_connection=says(BANNER, LARGE + b"\0" * 60_000, again=False)),
        discover,
    ),
    "random bytes for the key exchange": (
        lambda server: Behaviour(on_connection=says(BANNER + bytes(range(256)) * 10)),
        discover,
    ),
    "a hangup at once": (lambda server: Behaviour(on_connection=lambda connection: True), discover),
    "no subsystem": (lambda server: Behaviour(on_subsystem=lambda: False), discover),
    "text before SFTP": (_garbage(b"Welcome to backup, have a nice day!\n"), discover),
    "text that is no UTF-8 before SFTP": (_garbage(b"Gr\xfc\xdfe aus \xff\xfe!\n" * 10), discover),
    "an SFTP packet of 2 GiB": (_garbage(LARGE + b"\2"), discover),
    "an empty SFTP packet": (_garbage(b"\0\0\0\0" * 10), discover),
    "no version": (_garbage(status(1, p.SFTP_OK)), discover),
    "an answer to nobody": (
        _answers(p.CMD_OPENDIR, lambda request, good: packet(p.CMD_HANDLE, 99_999, text(b"x"))),
        discover,
    ),
    "an answer twice": (_answers(p.CMD_OPENDIR, lambda request, good: good + good), discover),
    "an answer of another kind": (
        _answers(p.CMD_OPENDIR, lambda request, good: packet(p.CMD_ATTRS, request, attributes(1))),
        discover,
    ),
    "attributes for a handle": (
        _answers(p.CMD_OPEN, lambda request, good: packet(p.CMD_ATTRS, request, attributes(1))),
        fetch,
    ),
    "a handle for attributes": (
        _answers(p.CMD_FSTAT, lambda request, good: packet(p.CMD_HANDLE, request, text(b"x"))),
        fetch,
    ),
    "fine for a handle": (_answers(p.CMD_OPEN, lambda request, good: status(request, p.SFTP_OK)), fetch),
    "the end of the file for a handle": (
        _answers(p.CMD_OPEN, lambda request, good: status(request, p.SFTP_EOF)),
        fetch,
    ),
    "an answer that is cut off": (
        _answers(p.CMD_FSTAT, lambda request, good: packet(p.CMD_ATTRS, request, attributes(1)[:-3])),
        fetch,
    ),
    "an answer without a body": (
        _answers(p.CMD_OPENDIR, lambda request, good: packet(p.CMD_HANDLE)),
        discover,
    ),
    "a length beyond the answer": (
        _answers(p.CMD_OPENDIR, lambda request, good: packet(p.CMD_HANDLE, request, LARGE + b"x")),
        discover,
    ),
    "four billion names": (
        _answers(p.CMD_READDIR, lambda request, good: packet(p.CMD_NAME, request, 0xFFFFFFFF)),
        discover,
    ),
    "four billion attributes": (
        _answers(
            p.CMD_FSTAT,
            lambda request, good: packet(p.CMD_ATTRS, request, 0x80000000, 0xFFFFFFFF),
        ),
        fetch,
    ),
    "more data than was asked for": (
        _answers(p.CMD_READ, lambda request, good: packet(p.CMD_DATA, request, text(bytes(200_000)))),
        fetch,
    ),
    "a listing without an end": (
        _answers(p.CMD_READDIR, lambda request, good: names(request, *[b"other%d" % request] * 500)),
        discover,
    ),
    "an empty listing without an end": (
        _answers(p.CMD_READDIR, lambda request, good: names(request)),
        discover,
    ),
    "a cut in the middle of a file": (_cut_on(p.CMD_READ), fetch),
    "a cut in the middle of a listing": (_cut_on(p.CMD_READDIR), discover),
    "a cut in the middle of an upload": (_cut_on(p.CMD_WRITE), put),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_server_that_sends_what_it_should_not_is_an_error_and_tried_again(
    server: BadServer, archive: Archive, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp_files, "MOST_ENTRIES", 5_000)
    behave, ask = WRONG[what]
    server.behaviour = behave(server)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(ArchiveConnectionError) as caught:
        ask(archive)
    assert time.monotonic() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB
    message = str(caught.value)
    assert message.startswith("SHD_SYN_060: ") and message.isprintable() and len(message) < 500
    assert server.connections == ssh.TRIES
    server.behaviour = Behaviour()
    nothing_is_lost(archive)


REFUSED: dict[str, tuple[int, Callable[[int, bytes], bytes | None], Callable[[Archive], object], str]] = {
    "a refusal that is no text": (
        p.CMD_OPEN,
        lambda request, good: status(request, p.SFTP_FAILURE, b"kein Zugriff \xff\xfc\n\x1b[31m"),
        fetch,
        "SHD_SYN_062",
    ),
    "a refusal without a text": (
        p.CMD_OPENDIR,
        lambda request, good: packet(p.CMD_STATUS, request, p.SFTP_FAILURE),
        discover,
        "SHD_SYN_061",
    ),
    "a refusal of 100 KB": (
        p.CMD_OPENDIR,
        lambda request, good: status(request, p.SFTP_FAILURE, b"no! " * 25_000),
        discover,
        "SHD_SYN_061",
    ),
    "a refusal with a code that nobody knows": (
        p.CMD_OPEN,
        lambda request, good: status(request, 4711, b"hm"),
        fetch,
        "SHD_SYN_062",
    ),
    "a disk that is full": (
        p.CMD_WRITE,
        lambda request, good: status(request, p.SFTP_FAILURE, b"Failure"),
        put,
        "SHD_SYN_107",
    ),
    "an upload that is not allowed": (
        p.CMD_REMOVE,
        lambda request, good: status(request, p.SFTP_PERMISSION_DENIED, b"Permission denied"),
        put,
        "SHD_SYN_107",
    ),
    "a link that may not be followed": (
        p.CMD_READDIR,
        lambda request, good: (
            good
            if good[4] == p.CMD_STATUS
            else packet(p.CMD_NAME, request, 1, text(NAME.encode()) + text(b"") + attributes(1, 0o120777))
        ),
        discover,
        "SHD_SYN_061",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_is_told_at_once_in_printable_words(server: BadServer, archive: Archive, what: str) -> None:
    kind, answer, ask, code = REFUSED[what]

    def on_request(asked: int, request: int, rest: bytes, good: bytes) -> bytes | None:
        if what.startswith("a link") and asked == p.CMD_STAT:
            return status(request, p.SFTP_FAILURE, b"Too many levels of symbolic links")
        return answer(request, good) if asked == kind else good

    server.behaviour = Behaviour(on_request=on_request)
    with pytest.raises(SyncError) as caught:
        ask(archive)
    message = str(caught.value)
    assert message.startswith(f"{code}: ") and message.isprintable() and len(message) < 600
    assert server.connections == 1
    server.behaviour = Behaviour()
    nothing_is_lost(archive)


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"\xff\xfe", b"new\nline", b"\x1b[31m", b"", b"x" * 100_000, b"../up", b"\0"]
)
def test_a_name_that_is_none_hides_no_other(server: BadServer, archive: Archive, name: bytes) -> None:
    server.behaviour = on(
        p.CMD_READDIR,
        lambda request, good: good if good[4] == p.CMD_STATUS else names(request, name, NAME.encode()),
    )
    assert archive.discover(None) == [FILE]


def test_lines_before_the_greeting_are_passed_over(server: BadServer, archive: Archive) -> None:
    def on_connection(connection: object) -> bool:
        connection.sendall(b"All use is monitored.\r\n" * 20)  # type: ignore[attr-defined]
        return False

    server.behaviour = Behaviour(on_connection=on_connection)
    assert archive.discover(None) == [FILE]


def test_a_login_that_prints_is_told_what_to_mend(server: BadServer, archive: Archive) -> None:
    server.behaviour = _garbage(b"Welcome to backup\n")(server)
    with pytest.raises(ArchiveConnectionError, match="sent no SFTP but 'Welcome to backup.*print nothing"):
        archive.discover(None)


def test_the_message_says_what_was_waited_for(
    server: BadServer, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.behaviour = Behaviour(on_login=server.wait)
    monkeypatch.setattr(ssh, "LOGIN_TIMEOUT_S", 1.5)
    with pytest.raises(ArchiveConnectionError, match=r"the login took longer than 1\.5 seconds"):
        archive.discover(None)


def test_an_address_that_never_answers_is_given_up_and_the_next_one_tried(
    server: BadServer, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ssh_transport._addresses
    silent = ("192.0.2.1", 9)  # Of a network that is for documentation alone (RFC 5737).

    def with_a_silent_one(*arguments: object) -> list[object]:
        [found] = real(*arguments)  # type: ignore[arg-type]
        return [(*found[:4], silent), found]

    monkeypatch.setattr(ssh_transport, "_addresses", with_a_silent_one)
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 2.0)
    assert archive.discover(None) == [FILE]


@pytest.mark.parametrize(
    "host", ["a" * 64 + ".example.com", "a..b", ".", "x" * 300, "no\0where", "höst.invalid"]
)
def test_a_host_that_is_no_name_is_an_error(server: BadServer, host: str) -> None:
    from dataclasses import replace

    opened = open_archive(replace(server.settings(), host=host))
    with pytest.raises(ArchiveConnectionError, match="SHD_SYN_060"):
        opened.discover(None)
    opened.close()
