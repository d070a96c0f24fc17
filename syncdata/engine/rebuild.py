"""Rebuild one table from the archive, beside the table, and exchange the rows in one transaction.

Readers see the old rows or the new ones, never an empty or half-built table; whatever fails leaves the
old rows. The new rows grow in a temporary table, which vanishes with the connection. The exchange
deletes and inserts instead of renaming: the table keeps its oid, rights, views and foreign keys; and
instead of truncating, which readers with an older snapshot would see as an empty table.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import Connection, sql

from syncdata.engine import ledger
from syncdata.engine.archive import Archive
from syncdata.engine.batch import Limits
from syncdata.engine.catalog import read_schemas
from syncdata.engine.changes import TableName
from syncdata.engine.cycle import Cycle, CycleResult, Group, Progress
from syncdata.engine.errors import ResyncError, SyncError
from syncdata.engine.ledger import START, Position
from syncdata.engine.plan import Counts
from syncdata.engine.rows import RowWriter
from syncdata.engine.schema import TableSchema
from syncdata.engine.target import Outcome, PreparedBatch, prepare_session, translate

_SHADOW = TableName("pg_temp", "syncdata_rebuild")


def rebuild(
    archive: Archive,
    connection: Connection[Any],
    table: TableName,
    *,
    limits: Limits,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> CycleResult:
    """Rebuild *table* from the first change file to where the other tables stand, or to the end.

    Its checkpoint and an audit row commit with the rows. Raises ResyncError; the old rows remain.
    """
    stop = stop or threading.Event()
    started = time.monotonic()
    try:
        prepare_session(connection)
        until = _where_the_others_stand(connection, table)
        shadow = _ShadowTarget(connection, table)
        cycle = Cycle(archive, shadow, limits=limits, progress=progress, stop=stop)
        files = cycle.discover(since=None)
        group = Group({table}, START)
        if until is not None:
            files = [file for file in files if (file.stem, False, 0) < until.order]
        cycle.advance(group, files, until=until)
        if stop.is_set():
            raise ResyncError("interrupted")
        if not files or (until is not None and group.position.order < until.order):
            raise ResyncError(
                "the archive ends before the position of the other tables",
                hint="bring the missing change files back; check archive_dir",
            )
        duration_ms = round((time.monotonic() - started) * 1000)
        shadow.exchange(group.position, now=clock(), duration_ms=duration_ms)
        cycle.result.position = group.position
        return cycle.result
    except psycopg.Error as error:
        raise _not_rebuilt(table, translate(error)) from error
    except SyncError as error:
        raise _not_rebuilt(table, error) from error
    finally:
        _drop_shadow(connection)


def _not_rebuilt(table: TableName, error: SyncError) -> ResyncError:
    return ResyncError(
        f"not rebuilt, its old rows are still there: {error.message}",
        hint=error.hint,
        table=str(table),
        file=error.file,
        line=error.line,
    )


def _where_the_others_stand(connection: Connection[Any], table: TableName) -> Position | None:
    """Return the farthest checkpoint of the other tables, so that this one joins them; None without any."""
    with connection.transaction():
        checkpoints = ledger.open_checkpoints(connection)
    positions = [c.position for c in checkpoints if c.table != table and c.position.file]
    return max(positions, key=lambda position: position.order, default=None)


def _drop_shadow(connection: Connection[Any]) -> None:
    if not connection.closed:
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_relation(_SHADOW)))


def _relation(table: TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


class _ShadowTarget:
    """Takes batches as the real target does, into a temporary table and without any books."""

    def __init__(self, connection: Connection[Any], table: TableName) -> None:
        self._connection = connection
        self._schema = self._read_schema(table)
        self._writer = RowWriter(connection)
        self._counts = Counts()
        _drop_shadow(connection)
        connection.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING INDEXES)"
            ).format(sql.Identifier(_SHADOW.name), _relation(table))
        )

    def _read_schema(self, table: TableName) -> TableSchema:
        schema = read_schemas(self._connection, [table]).get(table)
        if schema is None:
            raise ResyncError("the table does not exist in the local database", hint="create it (migrate)")
        return replace(schema, shadow=_SHADOW)

    def schemas(self, tables: Collection[TableName]) -> dict[TableName, TableSchema]:
        self._writer.forget_failures()
        return {self._schema.name: self._schema}

    def block(self, tables: Collection[TableName], error: SyncError, *, start: Position) -> None:
        raise error

    def unblock(self, tables: Collection[TableName]) -> None:
        """A rebuilt table is not blocked: its checkpoint is a new one."""

    def apply(
        self, prepared: PreparedBatch, tables: Collection[TableName], *, start: Position, end: Position
    ) -> Outcome:
        outcome = Outcome()
        with self._connection.transaction():
            self._writer.begin()
            for table, part in prepared.parts.items():
                if isinstance(part.plan, SyncError):
                    raise part.plan
                outcome.counts[table] = self._writer.apply(
                    part.records, part.plan, file=prepared.file, is_plain_file=prepared.is_plain_file
                )
                self._counts.add(outcome.counts[table])
        return outcome

    def exchange(self, position: Position, *, now: dt.datetime, duration_ms: int) -> None:
        """Put the new rows in the place of the old ones and the checkpoint at *position*."""
        live = replace(self._schema, shadow=None)
        with self._connection.transaction():
            ledger.lock_checkpoints(self._connection, [live.name])
            self._writer.begin()
            self._writer.exchange(live, self._schema)
            self._writer.advance_sequences(live)
            ledger.reset_checkpoints(self._connection, [live.name], position, counts=self._counts, now=now)
            ledger.log_action(
                self._connection,
                live.name,
                action="resync",
                reference=position.file,
                now=now,
                counts=self._counts,
                duration_ms=duration_ms,
            )
