"""A logical replication connection: messages in, confirmations out. Knows libpq's COPY BOTH mode; knows
nothing of files, and does not look into the messages.

Source: "Streaming Replication Protocol" of the PostgreSQL documentation (COPY BOTH mode, XLogData,
primary keepalive, standby status update). psycopg has no interface of its own for it, but its low-level
connection has all that is needed.
"""

from __future__ import annotations

import datetime as dt
import select
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
import psycopg
from psycopg import pq, sql

from syncdata.capture.pgoutput import POSTGRES_EPOCH
from syncdata.capture.refusals import (
    NEW_SLOT_HINT,
    RETRY_HINT,
    replication_error,
    source_error,
    source_errors,
    stream_error,
)
from syncdata.capture.slot import Slot, read_slot
from syncdata.capture.source import SystemIdentity, connect_for_replication, read_identity
from syncdata.errors import SourceConnectionError, SourceSetupError, SyncError

_XLOG_DATA, _KEEPALIVE = b"wk"
_XLOG_HEADER_BYTES = 25
_unpack_lsn = struct.Struct(">Q").unpack_from
_STATUS = struct.Struct(">cQQQqB")
_MORE_BYTES = 1 << 18


class Keepalive(msgspec.Struct, frozen=True, gc=False):
    """The server's report that it has sent all that was committed before ``wal_end``."""

    wal_end: int
    wants_reply: bool


class XLogData(msgspec.Struct, frozen=True, gc=False):
    """One message of the output plugin, and its place in the WAL (``lsn``)."""

    lsn: int
    message: bytes


def opened(content: bytes) -> XLogData:
    """Return one of the messages of `ReplicationConnection.read_more`."""
    return XLogData(_unpack_lsn(content, 1)[0], content[_XLOG_HEADER_BYTES:])


class ReplicationConnection:
    """One replication connection; a context manager. Not for use from several threads."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        """Connect. *params* are psycopg's. Raises SourceConnectionError."""
        with source_errors():
            self._connection = connect_for_replication(params)
        self._pgconn = self._connection.pgconn
        self._skipped = ""
        # What ended the last `read_more`; the next `read` has it.
        self._left: Keepalive | None = None
        self._error: SyncError | None = None
        self._connection.add_notice_handler(self._note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def identify(self) -> SystemIdentity:
        with source_errors():
            return read_identity(self._connection)

    def slot(self, name: str) -> Slot | None:
        with source_errors():
            return read_slot(self._connection, name)

    def start(self, slot: str, publication: str, *, with_messages: bool = False) -> None:
        """Let the server send what was committed after the slot's confirmed position; *with_messages*: and
        what applications write into the WAL by themselves.

        Raises SlotError when the slot cannot be read.
        """
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}{})"
        ).format(
            sql.Identifier(slot),
            sql.Literal(sql.Identifier(publication).as_string(None)),
            sql.SQL(", messages 'true'" if with_messages else ""),
        )
        result = self._pgconn.exec_(command.as_bytes(self._connection))
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._failed(result)

    def read(self) -> XLogData | Keepalive | None:
        """Return the next message, or None when none has arrived yet.

        Raises SourceConnectionError when the connection is lost, SlotError when the slot cannot be read on,
        UnreadableChangeError when the server cannot hand over a change, SourceSetupError when it leaves out
        changes.
        """
        self.require_sound()
        if self._left is not None:
            keepalive, self._left = self._left, None
            return keepalive
        content = self._next()
        if content is None and self._take_in(0):
            content = self._next()
        if content is None:
            return None
        return opened(content) if content[0] == _XLOG_DATA else _keepalive(content)

    def read_more(self) -> list[bytes]:
        """Return the plugin's messages that have arrived, up to some limit, as they came; see `opened`.

        Ends before a keepalive and before an error; `read` has them. This reads what is behind a message at
        less cost than `read`.
        """
        messages: list[bytes] = []
        size_bytes = 0
        try:
            while self._left is None and size_bytes < _MORE_BYTES:
                content = self._next()
                if content is None:
                    if not self._take_in(0):
                        break
                elif content[0] == _XLOG_DATA:
                    messages.append(content)
                    size_bytes += len(content)
                else:
                    self._left = _keepalive(content)
        except SyncError as error:
            # What came before is whole, and must be delivered. Test:
            # test_what_was_committed_before_a_change_that_cannot_be_read_is_delivered.
            self._error = error
        return messages

    @property
    def is_sound(self) -> bool:
        """False once an error has ended `read_more`."""
        return self._error is None

    def require_sound(self) -> None:
        """Raise the error that ended `read_more`, if there was one; `read` does, too."""
        if self._error is not None:
            raise self._error

    def _next(self) -> bytes | None:
        """Return the next message as it came; see `read`."""
        try:
            count, view = self._pgconn.get_copy_data(1)
        except psycopg.Error as error:
            raise source_error(error) from None
        if self._skipped:
            raise SourceSetupError(self._skipped, hint=NEW_SLOT_HINT)
        if count > 0:
            return bytes(view)
        if count == 0:
            return None
        raise self._failed(self._pgconn.get_result(), is_streaming=True)

    def _take_in(self, timeout_s: float) -> bool:
        """Take in what has arrived, and wait for it, at most so long; tell whether there was something."""
        try:
            if not select.select([self._pgconn.socket], [], [], timeout_s)[0]:
                return False
            self._pgconn.consume_input()
        except psycopg.Error as error:
            raise source_error(error) from None
        return True

    def wait(self, timeout_s: float) -> None:
        """Wait until something has arrived, at most so long; not where `read` has something already."""
        if self._left is None and self._error is None:
            self._take_in(timeout_s)

    def confirm(self, lsn: int, *, wants_reply: bool = False) -> None:
        """Tell the server that all that was committed before *lsn* is safe, and that we are alive."""
        now_us = (dt.datetime.now(dt.UTC) - POSTGRES_EPOCH) // dt.timedelta(microseconds=1)
        with source_errors():
            self._pgconn.put_copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, now_us, wants_reply))
            self._pgconn.flush()

    def finish(self, timeout_s: float) -> None:
        """End the stream in order, so that the server takes in the last confirmation before we leave.

        Waits at most so long. Messages that arrive meanwhile are dropped: nothing of them is confirmed, so
        the server sends them again to the next session."""
        deadline_s = time.monotonic() + timeout_s
        with source_errors():
            self._pgconn.put_copy_end()
            self._pgconn.flush()
            while (count := self._pgconn.get_copy_data(1)[0]) >= 0 and time.monotonic() < deadline_s:
                if count == 0:
                    self._take_in(timeout_s)

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        """Remember the warning that the publication is missing: since version 18 the server only warns of it,
        and leaves out the changes."""
        if notice.severity_nonlocalized == "WARNING" and notice.sqlstate == "55000":
            self._skipped = f"the source leaves out changes: {notice.message_primary}"

    def _failed(self, result: pq.abc.PGresult | None, *, is_streaming: bool = False) -> SyncError:
        if result is None or not result.error_message:
            return SourceConnectionError("the source ended the replication stream", hint=RETRY_HINT)
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        primary = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
        message = primary.decode(errors="replace").strip()
        if not is_streaming:
            return replication_error(state, message)
        context = result.error_field(pq.DiagnosticField.CONTEXT) or b""
        return stream_error(state, message, context.decode(errors="replace"))


def _keepalive(content: bytes) -> Keepalive | None:
    """Return the keepalive; None for a message of a kind that we do not know."""
    if content[0] != _KEEPALIVE:
        return None
    return Keepalive(_unpack_lsn(content, 1)[0], content[17] == 1)
