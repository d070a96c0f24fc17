"""The actions that an operator may ask for beside syncing: pause, resume, skip a record, empty tables.

Every function is one transaction of the connection it is given, or a part of the caller's, and audits what
it did. Knows the state; knows nothing of files, or of the daemon, which finds the state changed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

from syncdata.apply.plan.schema import parents_first
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.connection import errors_as, settings_restored
from syncdata.apply.postgres.held import RefusedError
from syncdata.apply.postgres.whole_table import empty_all
from syncdata.apply.postgres.writer import RowWriter
from syncdata.apply.state.audit import log_action
from syncdata.apply.state.checkpoints import (
    Skip,
    TableCheckpoint,
    lock_checkpoints,
    open_checkpoints,
    reset_checkpoints,
)
from syncdata.apply.state.holds import mark_paused, mark_resumed, mark_whole
from syncdata.apply.state.skips import remember_skip
from syncdata.apply.state.status import record_place
from syncdata.changes.names import TableName
from syncdata.errors import ClearError, ParseError, RequestError


def pause(
    connection: Connection[Any], tables: Sequence[TableName], *, requested_by: str | None
) -> list[TableName]:
    """Keep tables where they stand until they are resumed; return those that were not paused before.

    Raises RequestError, with nothing changed, when one is not whitelisted.
    """
    return _change_state(connection, tables, mark_paused, action="pause", requested_by=requested_by)


def resume(
    connection: Connection[Any], tables: Sequence[TableName], *, requested_by: str | None
) -> list[TableName]:
    """Let paused tables go on from where they stand; return those that were paused.

    Raises RequestError, with nothing changed, when one is not whitelisted.
    """
    return _change_state(connection, tables, mark_resumed, action="resume", requested_by=requested_by)


def skip_record(
    connection: Connection[Any], table: TableName, place: str, *, requested_by: str | None
) -> list[TableName]:
    """Remember to leave out the record at *place* (``file:line``), at which *table* is blocked. A line that
    cannot be parsed is left out for all tables that it blocks. Returns the tables that go on.

    Raises RequestError when the table is not blocked there.
    """
    with _in_transaction(connection, "nothing is skipped"):
        whitelist = _require_whitelisted(connection, [table])
        names = _blocked_at(place, table, lock_checkpoints(connection, whitelist))
        if not read_schemas(connection, names):
            raise RequestError(
                "the table does not exist locally",
                hint="create it (migrate); the next cycle tries the record again",
                table=str(table),
            )
        file, _, line = place.rpartition(":")
        for blocked in names:
            skip = Skip(file=file, line=int(line), requested_by=requested_by or "")
            remember_skip(connection, blocked, skip)
    return names


def empty(
    connection: Connection[Any], tables: Sequence[TableName] | None, *, requested_by: str | None
) -> list[TableName]:
    """Empty *tables* (all synced ones without it) and set their checkpoints back; return them.

    Raises ClearError; then nothing is changed.
    """
    now = _utcnow()
    with errors_as(ClearError, "nothing is cleared"), connection.transaction():
        names = [checkpoint.table for checkpoint in open_checkpoints(connection)]
        if tables is not None:
            if unknown := set(tables) - set(names):
                raise ClearError(
                    f"not whitelisted: {', '.join(sorted(map(str, unknown)))}", hint="nothing is cleared"
                )
            names = [name for name in names if name in tables]
        lock_checkpoints(connection, names)
        _empty_tables(connection, names)
        reset_checkpoints(connection, names, is_whole=False)
        for name in names:
            log_action(connection, name, action="clear", reference="", now=now, requested_by=requested_by)
    return names


def declare_whole(
    connection: Connection[Any], tables: Sequence[TableName], *, requested_by: str | None
) -> list[TableName]:
    """Believe the operator that *tables* hold all older rows, loaded by other means; return those that were
    not known to.

    Raises RequestError, with nothing changed, when one is not whitelisted.
    """
    return _change_state(connection, tables, mark_whole, action="whole", requested_by=requested_by)


def _change_state(
    connection: Connection[Any],
    tables: Sequence[TableName],
    change: Callable[[Connection[Any], Sequence[TableName]], list[TableName]],
    *,
    action: str,
    requested_by: str | None,
) -> list[TableName]:
    with _in_transaction(connection, "nothing is changed"):
        _require_whitelisted(connection, tables)
        lock_checkpoints(connection, tables)
        changed = change(connection, tables)
        for table in changed:
            log_action(
                connection, table, action=action, reference="", now=_utcnow(), requested_by=requested_by
            )
    return changed


@contextmanager
def _in_transaction(connection: Connection[Any], outcome: str) -> Iterator[None]:
    """Run the block in a transaction. Raises RequestError, beginning with *outcome*, for a driver's error."""
    with errors_as(RequestError, outcome), connection.transaction():
        yield


def _require_whitelisted(connection: Connection[Any], tables: Sequence[TableName]) -> list[TableName]:
    """Return the whole whitelist. Raises RequestError unless all of *tables* are in it."""
    whitelist = [checkpoint.table for checkpoint in open_checkpoints(connection)]
    if missing := [str(table) for table in dict.fromkeys(tables) if table not in whitelist]:
        raise RequestError(
            f"not whitelisted: {', '.join(missing)}",
            hint="list_tables shows what is; nothing was changed",
        )
    return whitelist


def _blocked_at(place: str, table: TableName, checkpoints: Sequence[TableCheckpoint]) -> list[TableName]:
    """Return the tables that go on when the record at *place* is skipped for *table*.

    Raises RequestError when *table* is not blocked at that record.
    """
    reasons = {
        checkpoint.table: checkpoint.reason
        for checkpoint in checkpoints
        if checkpoint.reason and not checkpoint.is_paused and record_place(checkpoint.reason) == place
    }
    if table not in reasons:
        raise RequestError(
            f"the table is not blocked at {place or 'a record'} (any more)",
            hint="list_tables shows where it is blocked now; nothing is skipped",
            table=str(table),
        )
    if reasons[table].code != ParseError.code:
        return [table]
    return [other for other, reason in reasons.items() if reason.code == ParseError.code]


def _empty_tables(connection: Connection[Any], names: Sequence[TableName]) -> None:
    """Truncate the tables together; those that tables outside *names* refer to are emptied by DELETE."""
    schemas = read_schemas(connection, names)
    order = parents_first({name: schema.parents for name, schema in schemas.items()})
    writer = RowWriter(connection)
    # Test: test_after_a_clear_triggers_and_foreign_keys_of_the_requests_transaction_are_awake.
    with settings_restored(connection):
        writer.begin()
        try:
            empty_all(writer.cursor, [schemas[name] for name in order], is_silent=writer.is_silent)
        except RefusedError as error:
            raise RequestError(f"nothing is cleared: {error.reason}", hint=error.hint) from error


def _utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
