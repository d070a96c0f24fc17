"""A logical replication connection: messages in, confirmations out. Knows libpq; knows nothing of files.

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
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec
import psycopg
from psycopg import pq, sql

from syncdata.capture.slot import Slot, read_slot
from syncdata.changes.position import parse_lsn
from syncdata.errors import SlotError, SourceConnectionError, SourceSetupError, SyncError

# What the values' text forms depend on, pinned whatever the role's or the database's defaults are. With
# this search_path the names of tables, types and functions in values are written out with their schema.
TEXT_SETTINGS = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "search_path": "pg_catalog",
}
# A server that hears of us within half of it asks for an answer only when it shuts down.
_SENDER_SETTINGS = {"wal_sender_timeout": "60s", "client_min_messages": "warning"}
# A host that vanishes without a word is noticed by the kernel, but only if it is told to hurry.
_NETWORK = {"connect_timeout": 10, "tcp_user_timeout": 60_000, "keepalives_idle": 30}

_POSTGRES_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_XLOG_DATA, _KEEPALIVE = b"wk"
_XLOG_HEADER_BYTES = 25
_unpack_lsn = struct.Struct(">Q").unpack_from
_STATUS = struct.Struct(">cQQQqB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which system this is, and how far its WAL is written."""

    system_id: str
    timeline: int
    wal_lsn: int


class Keepalive(msgspec.Struct, frozen=True, gc=False):
    """All that was committed before ``wal_end`` has been sent."""

    wal_end: int
    wants_reply: bool


class XLogData(msgspec.Struct, frozen=True, gc=False):
    """One message of the output plugin, and where in the WAL it comes from."""

    lsn: int
    message: bytes


class SlotInUseError(SlotError):
    """Somebody else reads the slot: perhaps our own lost session, until the server notices."""


class ReplicationStream:
    """One replication connection; a context manager. Not for use from several threads."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        """Connect. *params* are psycopg's. Raises SourceConnectionError."""
        try:
            self._connection = connect_for_replication(params)
        except psycopg.Error as error:
            raise source_error(error) from error
        self._pgconn = self._connection.pgconn
        self._skipped = ""
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

    def identify(self) -> Identity:
        try:
            return read_identity(self._connection)
        except psycopg.Error as error:
            raise source_error(error) from error

    def slot(self, name: str) -> Slot | None:
        try:
            return read_slot(self._connection, name)
        except psycopg.Error as error:
            raise source_error(error) from error

    def start(self, slot: str, publication: str) -> None:
        """Let the server send what was committed after the slot's confirmed position.

        Raises SlotError when the slot cannot be read.
        """
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {})"
        ).format(sql.Identifier(slot), sql.Literal(sql.Identifier(publication).as_string(None)))
        result = self._pgconn.exec_(command.as_bytes(self._connection))
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._failed(result)

    def read(self) -> XLogData | Keepalive | None:
        """Return the next message, or None when none has arrived yet.

        Raises SourceConnectionError when the connection is lost, SlotError when the server gives up,
        SourceSetupError when it leaves out changes.
        """
        try:
            count, view = self._pgconn.get_copy_data(1)
        except psycopg.Error as error:
            raise source_error(error) from error
        if self._skipped:
            raise SourceSetupError(self._skipped, hint=_NEW_SLOT_HINT)
        if count > 0:
            content = bytes(view)
            if content[0] == _XLOG_DATA:
                return XLogData(_unpack_lsn(content, 1)[0], content[_XLOG_HEADER_BYTES:])
            if content[0] == _KEEPALIVE:
                return Keepalive(_unpack_lsn(content, 1)[0], content[17] == 1)
            return None
        if count == 0:
            return None
        raise self._failed(self._pgconn.get_result())

    def wait(self, timeout_s: float) -> None:
        """Wait until something has arrived, at most so long."""
        try:
            if select.select([self._pgconn.socket], [], [], timeout_s)[0]:
                self._pgconn.consume_input()
        except psycopg.Error as error:
            raise source_error(error) from error

    def confirm(self, lsn: int, *, wants_reply: bool = False) -> None:
        """Tell the server that all that was committed before *lsn* is safe, and that we are alive."""
        now_us = (dt.datetime.now(dt.UTC) - _POSTGRES_EPOCH) // dt.timedelta(microseconds=1)
        try:
            self._pgconn.put_copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, now_us, wants_reply))
            self._pgconn.flush()
        except psycopg.Error as error:
            raise source_error(error) from error

    def finish(self, timeout_s: float) -> None:
        """End the stream in order, so that the server has taken in the last confirmation, if it does so
        in time. What it sends meanwhile is sent again to whoever starts next."""
        deadline = time.monotonic() + timeout_s
        try:
            self._pgconn.put_copy_end()
            self._pgconn.flush()
            while (count := self._pgconn.get_copy_data(1)[0]) >= 0 and time.monotonic() < deadline:
                if count == 0:
                    self.wait(timeout_s)
        except psycopg.Error as error:
            raise source_error(error) from error

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        """Since version 18 a publication that is missing is worth no more than a warning to the server."""
        if notice.severity_nonlocalized == "WARNING" and notice.sqlstate == "55000":
            self._skipped = f"the source leaves out changes: {notice.message_primary}"

    def _failed(self, result: pq.abc.PGresult | None) -> SyncError:
        if result is None or not result.error_message:
            return SourceConnectionError("the source ended the replication stream", hint=_RETRY_HINT)
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        primary = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
        return stream_error(state, primary.decode(errors="replace").strip())


_RETRY_HINT = "check that PostgreSQL runs there; the archiver tries again by itself"


def connect_for_replication(params: Mapping[str, Any]) -> psycopg.Connection[Any]:
    """Return a replication connection in autocommit mode whose values come in one text form.

    On such a connection statements must have no parameters: it knows the simple query protocol only.
    """
    settings = TEXT_SETTINGS | _SENDER_SETTINGS
    options = " ".join(f"-c {name}={value.replace(' ', '')}" for name, value in settings.items())
    given = _NETWORK | {name: value for name, value in params.items() if value is not None}
    if mine := given.pop("options", ""):
        options = f"{mine} {options}"
    return psycopg.connect(**given, replication="database", options=options, autocommit=True)


def read_identity(connection: psycopg.Connection[Any]) -> Identity:
    """Return what a replication connection is connected to."""
    row = connection.execute("IDENTIFY_SYSTEM").fetchone()
    assert row is not None
    return Identity(system_id=str(row[0]), timeline=int(row[1]), wal_lsn=parse_lsn(row[2]))


def source_error(error: psycopg.Error) -> SyncError:
    """Return the operator's error for what the driver raised: its first line, which holds no values."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return SourceSetupError(
            error.diag.message_primary or "the role lacks a right",
            hint="run 'python manage.py setup_logical_replication --check' to see what is missing",
        )
    message = error.diag.message_primary or str(error).strip().partition("\n")[0]
    return SourceConnectionError(
        f"the source cannot be used: {message or type(error).__name__}",
        hint="check that PostgreSQL runs there, the [source] keys and pg_hba.conf",
    )


def stream_error(sqlstate: str, message: str) -> SyncError:
    """Return the error for what the server said instead of going on with the stream."""
    match sqlstate:
        case "55006":
            return SlotInUseError(
                message, hint="stop the other reader; after a crash the server frees the slot by itself"
            )
        case "42704" if message.startswith("publication"):
            return SourceSetupError(message, hint=_NEW_SLOT_HINT)
        case "42704" | "55000" | "42809":
            return SlotError(message, hint=NEW_EPOCH_HINT)
        case "42501":
            return SourceSetupError(message, hint="give the role the attribute REPLICATION")
    return SourceConnectionError(f"the source ended the stream: {message}", hint=_RETRY_HINT)


# The publication was missing when these changes were made; creating it now makes no difference to them.
_NEW_SLOT_HINT = (
    "what was changed while the publication was missing cannot be read from this slot any more: run 'python"
    " manage.py setup_logical_replication --drop' and again without --drop, then 'python manage.py"
    " archive_changes --new-epoch', and resync the tables on every local machine"
)

NEW_EPOCH_HINT = (
    "changes may be missing from the archive: run 'python manage.py setup_logical_replication', then"
    " 'python manage.py archive_changes --new-epoch', and resync the tables on every local machine"
)
