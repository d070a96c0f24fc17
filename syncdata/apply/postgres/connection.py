"""A session of the local database: the settings that rows depend on, and the driver's errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.errors import ApplyError, SyncError

# Connection, rollback, resources, lock, intervention, system: halving the batch would not help.
_SERVER_FAULTS = ("08", "40", "53", "55P03", "57", "58")


def is_servers_fault(error: Exception) -> bool:
    """Whether the server or the connection, not a row, is to blame."""
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate.startswith(_SERVER_FAULTS)


# What the values' text forms depend on, and what keeps the planner from compiling its bad guesses.
SESSION_SETTINGS = {
    "client_encoding": "UTF8",
    "client_min_messages": "warning",
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "xmloption": "content",
    "array_nulls": "on",
    "lc_monetary": "C",
    "jit": "off",
    "row_security": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # So that the server gives up a session whose client has vanished, and its locks, within two minutes.
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "5",
}


def prepare_session(connection: Connection[Any]) -> None:
    """Pin the settings of *connection* that rows depend on, and make its cursors plain ones."""
    connection.cursor_factory = psycopg.Cursor
    connection.execute(
        "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS setting (name, value)",
        (list(SESSION_SETTINGS), list(SESSION_SETTINGS.values())),
    )


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what the driver raises into an ApplyError, without DETAIL, which may hold row values."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


@contextmanager
def errors_as(kind: type[SyncError], outcome: str) -> Iterator[None]:
    """Turn what the driver raises into a *kind* whose message begins with *outcome*: ``nothing is added``."""
    try:
        yield
    except psycopg.Error as error:
        cause = translate(error)
        raise kind(f"{outcome}: {cause.message}", hint=cause.hint) from error


def translate(error: psycopg.Error) -> ApplyError:
    """Return the ApplyError for a driver's error that no single record is to blame for."""
    if is_servers_fault(error):
        what = error.diag.message_primary or str(error).strip().partition("\n")[0]
        return ApplyError(
            f"the database failed or went away ({what})",
            hint="nothing is lost; syncing goes on from the checkpoints when it is back",
        )
    detail = f"{type(error).__name__}" + (f", SQLSTATE {error.sqlstate}" if error.sqlstate else "")
    # Not its message, which may hold a value.
    return ApplyError(
        f"the database refuses ({detail})",
        hint="run 'python manage.py migrate' and check the role's rights",
    )
