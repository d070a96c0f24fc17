"""A session of the local database: the settings that rows depend on, and the driver's errors as ours.

Knows psycopg; knows nothing of syncdata's own tables. All of ``apply`` translates the driver's errors here,
and nowhere else. Messages never hold the server's DETAIL or CONTEXT, which may hold row values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.postgres.refusals import explain_refusal
from syncdata.changes.names import TableName
from syncdata.changes.reader import LocatedRecord
from syncdata.errors import ApplyError, SyncError
from syncdata.runtime.session_settings import SESSION_SETTINGS, pin_statement

# Beside the settings of `session_settings`, those that would harm this work. One is jit: staging tables have
# no statistics, and the planner's bad guesses would make it compile for nothing.
LOCAL_SETTINGS = SESSION_SETTINGS | {
    "jit": "off",
    "enable_nestloop": "on",
    "enable_indexscan": "on",
    # So that the server gives up a session whose client has vanished, and its locks, within two minutes.
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "5",
}


def prepare_session(connection: Connection[Any]) -> None:
    """Pin the settings of *connection* that rows depend on, and make its cursors plain ones."""
    connection.cursor_factory = psycopg.Cursor
    connection.execute(pin_statement(LOCAL_SETTINGS))


@contextmanager
def in_one_trip(connection: Connection[Any]) -> Iterator[None]:
    """Send what the block executes without waiting for an answer in between; raise what went wrong first.

    The answers can be fetched after the block. When the server refuses a statement, it skips what follows.

    psycopg logs the error of a statement, with the row's values, when another error has ended the block
    before its answer came. So the block ends without one, as psycopg sees it. Tests:
    test_what_the_server_says_of_rows_that_go_another_way_is_not_logged,
    test_an_interrupt_logs_nothing_of_the_rows_that_the_server_refuses_just_then.
    """
    first: BaseException | None = None
    try:
        with connection.pipeline():
            try:
                yield
            except BaseException as error:
                first = error
    except psycopg.Error as error:
        first = first or error
    if first is not None:
        raise first


def allow_only_nested_loops(cursor: psycopg.Cursor[Any], only: bool) -> None:
    """Leave the planner no other join, until the transaction ends or this is called again.

    Staging tables have no statistics, and with a wrong guess the planner hashes the whole target to find a
    few rows.
    """
    cursor.execute(
        "SELECT set_config(name, %s, true)"
        " FROM unnest('{enable_hashjoin,enable_mergejoin,enable_seqscan}'::text[]) AS name",
        ("off" if only else "on",),
    )


def limit_lock_waits(connection: Connection[Any], seconds: float) -> None:
    """Let the rest of the transaction wait so long for each lock, and no longer."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{round(seconds * 1000)}ms",))


def limit_statements(connection: Connection[Any], seconds: float) -> None:
    """Let each statement of the rest of the transaction take so long, and no longer."""
    connection.execute("SELECT set_config('statement_timeout', %s, true)", (f"{round(seconds * 1000)}ms",))


def do_not_wait_for_disk(connection: Connection[Any]) -> None:
    """Let the transaction commit before it is on the server's disk.

    A crash of the server may take it back, but with all that it did: rows and checkpoint go together, and the
    archive still has the records. Whoever is told of what was done must be told after a later commit that
    does wait (the end of a cycle, `Run`), for the log is flushed in its order. Test:
    test_what_a_crash_of_the_server_takes_back_is_applied_again.
    """
    connection.execute("SET LOCAL synchronous_commit = off")


# Those that a writer sets for its transaction.
_SET_FOR_A_TRANSACTION = ("session_replication_role", "enable_hashjoin", "enable_mergejoin", "enable_seqscan")


@contextmanager
def settings_restored(connection: Connection[Any]) -> Iterator[None]:
    """Give the settings that the block changes for its transaction their values back at its end.

    They last until the outermost transaction ends, and that may be the running request's, whose own
    statements need their triggers and foreign keys. An error leaves this to the rollback of the savepoint.
    """
    before = connection.execute(
        "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", (list(_SET_FOR_A_TRANSACTION),)
    ).fetchall()
    yield
    # Only those that differ: an ordinary role may not set session_replication_role, not even to what it is.
    connection.execute(
        "SELECT set_config(name, value, true) FROM unnest(%s::text[], %s::text[]) AS before (name, value)"
        " WHERE current_setting(name) <> value",
        ([name for name, _ in before], [value for _, value in before]),
    )


# Connection, rollback, resources, lock, intervention, system: no record is to blame, so a batch that fails
# with one of these is not halved to find it.
# Test: test_a_database_that_goes_away_in_the_middle_of_a_batch_loses_nothing.
_SERVER_FAULTS = ("08", "40", "53", "55P03", "57", "58")


def is_servers_fault(error: Exception) -> bool:
    """Tell whether the server or the connection, not a record, is to blame for *error*."""
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate.startswith(_SERVER_FAULTS)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the driver's errors in the block into an ApplyError."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from None


@contextmanager
def errors_as(kind: type[SyncError], outcome: str) -> Iterator[None]:
    """Turn the driver's errors in the block into a *kind* whose message begins with *outcome*, for example
    ``nothing is added``."""
    try:
        yield
    except psycopg.Error as error:
        cause = translate(error)
        raise kind(f"{outcome}: {cause.message}", hint=cause.hint) from None


def translate(error: psycopg.Error) -> ApplyError:
    """Return the ApplyError for a driver's error that no single record is to blame for."""
    if is_servers_fault(error):
        what = error.diag.message_primary or str(error).strip().partition("\n")[0]
        return ApplyError(
            f"the database failed or went away ({what})",
            hint="nothing is lost; syncing goes on from the checkpoints when it is back",
        )
    # Its message only where it speaks of definitions: else it may hold a value.
    state = error.sqlstate or ""
    words = error.diag.message_primary if state.startswith("42") else ""
    hint = {
        "42501": "give the role that right",
        "42P01": "run 'python manage.py migrate'",
        "42703": "run 'python manage.py migrate'",
    }.get(state, "PostgreSQL's log has its own words and the statement")
    return ApplyError(f"the database refuses ({': '.join(filter(None, (kind_of(error), words)))})", hint=hint)


def constraint_error(
    error: psycopg.errors.IntegrityError, table: TableName, *, rows: str = "the rows", file: str | None = None
) -> ApplyError:
    """Return the error for *rows* of *table* that break a constraint, checked when all rows are in."""
    refusal = explain_refusal(error, table)
    constraint = error.diag.constraint_name
    breach = f"break the constraint {constraint} of {error.diag.table_name}" if constraint else "do not fit"
    return ApplyError(
        f"{rows} {breach}: {refusal.what}",
        hint=f"{refusal.remedy}; it is tried again in every cycle",
        table=str(table),
        file=file,  # any of the rows may be the one: there is no line to name
    )


def record_error(error: psycopg.Error | None, record: LocatedRecord, schema: TableSchema) -> ApplyError:
    """Return the error for the one record that the database refuses, or that cannot be applied by itself."""
    op, table = record.record.op, schema.name
    if error is None:
        what = f"this {op} cannot be applied by itself"
        name = table.argument
        hint = f"take a snapshot at production (archive_changes --snapshot {name}), then resync {name}"
    else:
        refusal = explain_refusal(error, table, schema.columns)
        what = f"the database refuses this {op}: {refusal.what} ({kind_of(error)})"
        hint = f"{refusal.remedy}; the table goes on by itself"
    return ApplyError(
        what,
        hint=hint,
        table=str(table),
        file=record.file,
        line=record.line,
    )


def kind_of(error: psycopg.Error) -> str:
    return type(error).__name__ + (f", SQLSTATE {error.sqlstate}" if error.sqlstate else "")
