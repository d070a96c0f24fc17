"""Turns the refusals of the source, of its server and of the driver into errors for the operator.

Knows psycopg's errors and PostgreSQL's SQLSTATEs; opens no connection. The one place on the production side
where a `psycopg.Error` becomes a `SyncError`. Only an error's primary message is passed on: its details can
hold values of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from syncdata.errors import (
    SlotError,
    SnapshotError,
    SourceConnectionError,
    SourceSetupError,
    SyncError,
    UnreadableChangeError,
)

NEW_EPOCH_HINT = (
    "changes may be missing from the archive: run 'python manage.py setup_logical_replication', then"
    " 'python manage.py archive_changes --new-epoch', and resync the tables on every local machine ('python"
    " manage.py resync --all')"
)
# The publication was missing when these changes were made; creating it now makes no difference to them.
NEW_SLOT_HINT = (
    "what was changed while the publication was missing cannot be read from this slot any more: run 'python"
    " manage.py setup_logical_replication --drop' and again without --drop, then 'python manage.py"
    " archive_changes --new-epoch', and resync the tables on every local machine"
)
RETRY_HINT = "check that PostgreSQL runs there; the archiver tries again by itself"
_REPLICATION_HINT = "give the role the attribute REPLICATION (on Amazon RDS: membership in rds_replication)"
# Classes of SQLSTATEs that say something of what is decoded, not of the server's life or of the connection:
# a value without an equivalent in UTF-8, an output function that fails, a row that is too large, a damaged
# page.
_OF_THE_DATA = frozenset(("0A", "21", "22", "23", "38", "39", "42", "54", "P0", "XX"))
# The server lacks memory, space or a file. It may have them at the next try.
_OF_RESOURCES = frozenset(("53", "58"))
_TOO_MANY_CONNECTIONS = "53300"
# Their primary messages name an encoding, a size or an object, but no value of a row.
_TELLING_STATES = frozenset(("22021", "22P05"))
_TELLING_CLASSES = frozenset(("0A", "53", "54", "58", "XX"))
_find_lsn = re.compile(r"\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b").findall

_CHECK_HINT = "run 'python manage.py setup_logical_replication --check' to see what is missing"


class SlotInUseError(SlotError):
    """Another session reads the slot: perhaps our own lost one, until the server notices that it is gone."""


@contextmanager
def source_errors() -> Iterator[None]:
    """Turn the driver's errors in the block into those of `source_error`."""
    try:
        yield
    except psycopg.Error as error:
        raise source_error(error) from None


def source_error(error: psycopg.Error) -> SyncError:
    """Return the archiver's error: the source is away, or refuses the login or a statement."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return SourceSetupError(error.diag.message_primary or "the role lacks a right", hint=_CHECK_HINT)
    return SourceConnectionError(
        f"the source cannot be used: {_primary(error)}",
        hint="check that PostgreSQL runs there, the [source] keys and pg_hba.conf",
    )


def refusal_of_read(error: psycopg.Error) -> str:
    """Return why the source does not hand over rows of a table, without any value of them."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return error.diag.message_primary or "the role lacks a right"
    return _telling(error.sqlstate or "", error.diag.message_primary or type(error).__name__)


def replication_error(sqlstate: str, message: str) -> SyncError:
    """Return the error for *message*, which the server sent in place of the replication stream.

    Only the slot is looked up before that begins, the publication at its first change (`stream_error`)."""
    match sqlstate:
        case "55006":
            return SlotInUseError(
                message, hint="stop the other reader; after a crash the server frees the slot by itself"
            )
        case "42704" | "55000" | "42809":
            return SlotError(message, hint=NEW_EPOCH_HINT)
        case "42501":
            return SourceSetupError(message, hint=_REPLICATION_HINT)
    return SourceConnectionError(f"the source ended the stream: {message}", hint=RETRY_HINT)


def stream_error(sqlstate: str, message: str, context: str = "") -> SyncError:
    """Return the error for *message*, with which the server ended a stream that had begun.

    *context* is the server's: it names the plugin's callback and the WAL position of the change, in the
    language of the server. Nothing else of it is passed on, for it may hold values.
    """
    if sqlstate == "42704":  # The slot was found. The message may be in any language.
        return SourceSetupError(message, hint=NEW_SLOT_HINT)
    known = replication_error(sqlstate, message)
    if not isinstance(known, SourceConnectionError) or sqlstate == _TOO_MANY_CONNECTIONS:
        return known
    if sqlstate[:2] not in _OF_THE_DATA | _OF_RESOURCES:
        return known
    where = _find_lsn(context)
    at = f" at {where[-1]}" if where else ""
    return UnreadableChangeError(f"the source cannot hand over a change{at}: {_telling(sqlstate, message)}")


def _telling(sqlstate: str, message: str) -> str:
    """Return *message* where it can hold no value of a row, else the name of the condition."""
    if sqlstate in _TELLING_STATES or sqlstate[:2] in _TELLING_CLASSES:
        return message
    try:
        return f"{psycopg.errors.lookup(sqlstate).__name__} ({sqlstate})"
    except KeyError:
        return f"SQLSTATE {sqlstate}"


def snapshot_login_error(error: psycopg.Error) -> SyncError:
    """Return the error for a connection that could not be made to take a snapshot."""
    # libpq gives no SQLSTATE for a login that fails, only the text.
    message = str(error).strip().splitlines()[-1]
    if "max_wal_senders" in message:
        return SnapshotError(message, hint="raise max_wal_senders at the source, and restart it")
    if "walsender" in message or "WAL sender" in message:
        return SnapshotError(message, hint=_REPLICATION_HINT)
    return source_error(error)


def snapshot_error(error: psycopg.Error, *, is_lost: bool) -> SyncError:
    """Return the error for a snapshot that the source ended. *is_lost*: the connection is gone, too."""
    if is_lost:
        return source_error(error)
    match error:
        case psycopg.errors.ConfigurationLimitExceeded():
            hint = "raise max_replication_slots at the source, or drop a slot that nobody needs"
        case psycopg.errors.ObjectNotInPrerequisiteState():
            hint = "set wal_level = logical at the source, and restart it"
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedColumn():
            hint = "the table was altered when the snapshot began; take it again"
        case psycopg.errors.InsufficientPrivilege():
            hint = _CHECK_HINT
        case _:
            hint = "see the source's log; the snapshot can be taken again at any time"
    message = error.diag.message_primary or type(error).__name__
    return SnapshotError(f"the source refuses: {message}", hint=hint)


def copy_error(error: psycopg.Error, table: str) -> SnapshotError:
    """Return the error for rows of *table* that the source cannot hand over, while the connection lives."""
    if (error.sqlstate or "")[:2] not in _OF_THE_DATA - {"42"}:
        found = snapshot_error(error, is_lost=False)
        return SnapshotError(found.message, hint=found.hint, table=table)
    message = _telling(error.sqlstate or "", error.diag.message_primary or type(error).__name__)
    return SnapshotError(
        f"the source cannot hand over a row: {message}",
        hint="find the row and mend its value at the source, then take the snapshot again; the documentation"
        " (Production, 'A value that cannot be handed over') has a query that finds it",
        table=table,
    )


def setup_login_error(error: psycopg.Error) -> SourceConnectionError:
    """Return the error for a connection that could not be made to check or set up the source."""
    return SourceConnectionError(
        f"the source cannot be reached: {_primary(error)}",
        hint="check the keys of [source], pg_hba.conf and TLS",
    )


def setup_error(error: psycopg.Error, *, is_lost: bool) -> SourceConnectionError | SourceSetupError:
    """Return the error for a statement of the setup. *is_lost*: the connection is gone, too."""
    if is_lost:
        return SourceConnectionError(
            f"the connection to the source was lost: {_primary(error)}", hint="try again"
        )
    match error:
        case psycopg.errors.InsufficientPrivilege():
            hint = "run the setup as the tables' owner or as a superuser"
        case psycopg.errors.LockNotAvailable():
            hint = "a transaction holds a table for long; nothing was changed, try again when it has ended"
        case _:
            hint = "see the server's log"
    return SourceSetupError(f"the source refuses: {_primary(error)}", hint=hint)


def _primary(error: psycopg.Error) -> str:
    """Return the server's primary message, else the driver's first line, which holds no values either."""
    return error.diag.message_primary or str(error).strip().partition("\n")[0] or type(error).__name__
