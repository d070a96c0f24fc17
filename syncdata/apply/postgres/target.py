"""The local database: applies a batch to its tables and its books in one transaction. Knows psycopg.

Invariants:

1. Rows, checkpoints, audit and metrics of a batch commit together, or none of them does. So whatever
   happens to the process or the connection, even during COMMIT, the checkpoints tell the truth: read
   them again and go on from there.
2. Whoever moves a checkpoint locks it first. A batch begins by locking those of its tables and goes on
   only if they still stand where the batch begins.
3. A table that fails is rolled back to where the batch began, and marked blocked in the same
   transaction in which the others advance.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply.plan.net_change import Counts, TablePlan
from syncdata.apply.plan.prepare import PreparedBatch, TablePart, plan_table, runs_of_one_table, without
from syncdata.apply.plan.schema import TableSchema, parents_first
from syncdata.apply.position import Position
from syncdata.apply.postgres.catalog import read_schemas
from syncdata.apply.postgres.connection import is_servers_fault, prepare_session, translated_errors
from syncdata.apply.postgres.writer import RowWriter
from syncdata.apply.result import Entry
from syncdata.apply.state.checkpoints import (
    Checkpoint,
    Skip,
    advance_checkpoints,
    open_checkpoints,
    require_position,
)
from syncdata.apply.state.holds import mark_blocked, mark_unblocked
from syncdata.apply.state.metrics import add_metrics, add_to_minute
from syncdata.apply.state.runs import add_to_run
from syncdata.apply.state.skips import settle_skips
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.changes.reader import NO_TABLE
from syncdata.errors import ApplyError, MetricsError, SyncError


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a batch did, by table, and which tables it left blocked."""

    counts: dict[TableName, Counts] = field(default_factory=dict)
    blocked: dict[TableName, SyncError] = field(default_factory=dict)


class Target:
    """The local database, over one connection in autocommit mode that nobody else uses."""

    def __init__(
        self,
        connection: Connection[Any],
        *,
        metric_freq_hours: int,
        run_id: int | None = None,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._connection = connection
        self._metric_freq_hours = metric_freq_hours
        self._run_id = run_id
        self._clock = clock
        self._sequences_due: dict[TableName, TableSchema] = {}
        self._known: set[TableName] = set()
        self._schemas: dict[TableName, TableSchema] = {}
        with translated_errors():
            prepare_session(connection)
            self._writer = RowWriter(connection)

    def is_on(self, connection: Connection[Any]) -> bool:
        return self._connection is connection

    def checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoint of every whitelisted table that is not paused, new ones at the beginning."""
        with translated_errors(), self._connection.transaction():
            checkpoints = open_checkpoints(self._connection)
        return [checkpoint for checkpoint in checkpoints if not checkpoint.is_paused]

    def schemas(self, tables: Collection[TableName]) -> dict[TableName, TableSchema]:
        """Return what the catalog says now of those of *tables* that exist."""
        with translated_errors():
            schemas = read_schemas(self._connection, tables)
        self._writer.forget_failures()
        # Rows that came before this process may be ahead of their sequences, too.
        for table in schemas.keys() - self._known:
            self._sequences_due[table] = schemas[table]
        self._known |= schemas.keys()
        self._schemas = schemas
        return schemas

    def rest(self) -> None:
        """Drop what the session holds between cycles: staging tables would keep types from being dropped."""
        with translated_errors():
            self._connection.execute("DISCARD TEMP")

    def unblock(self, tables: Collection[TableName]) -> None:
        """Mark *tables* as not blocked any more."""
        with translated_errors(), self._connection.transaction():
            mark_unblocked(self._connection, tables)

    def block(self, watermarks: Mapping[TableName, int | None], error: SyncError, *, start: Position) -> None:
        """Mark the tables of *watermarks*, which stand at *start*, blocked by *error*.

        Raises CheckpointMovedError when one does not stand there any more.
        """
        with translated_errors(), self._connection.transaction():
            require_position(self._connection, watermarks, start)
            mark_blocked(self._connection, watermarks.keys(), error, file=error.file or "", now=self._clock())

    def apply(
        self,
        prepared: PreparedBatch,
        watermarks: Mapping[TableName, int | None],
        *,
        start: Position,
        end: Position,
    ) -> Outcome:
        """Apply *prepared* to the tables of *watermarks* and move their checkpoints from *start* to *end*.

        All of that is one transaction.

        Tables that fail are in the outcome's ``blocked`` and stay at *start*, unless an operator has said to
        skip the record at which one fails: then it is left out, and audited. Raises CheckpointMovedError
        when a checkpoint is not at *start* with its watermark, ApplyError when the server fails.
        """
        failed: dict[TableName, SyncError] = {}
        skipped: dict[TableName, dict[Skip, SyncError | None]] = {}
        while True:
            try:
                with translated_errors(), self._connection.transaction():
                    return self._apply(prepared, watermarks, failed, skipped, start=start, end=end)
            except _SkippedError as told:
                skipped.setdefault(told.table, {})[told.skip] = told.error
                prepared = without(prepared, told.table, told.skip.line, self._schemas)
            except _TableFailedError as failure:
                # Constraints are checked when all rows are in: take the batch back, without that table.
                failed[failure.table] = failure.error

    def _apply(
        self,
        prepared: PreparedBatch,
        watermarks: Mapping[TableName, int | None],
        failed: dict[TableName, SyncError],
        skipped: dict[TableName, dict[Skip, SyncError | None]],
        *,
        start: Position,
        end: Position,
    ) -> Outcome:
        checkpoints = {c.table: c for c in require_position(self._connection, watermarks, start)}
        self._writer.begin()
        now = self._clock()
        entries: dict[TableName, Entry] = {}
        failed = dict(failed)
        parts = {t: part for t, part in prepared.parts.items() if t in watermarks and t not in failed}
        if self._may_cascade(parts):
            try:
                entries = self._apply_in_order(prepared, parts)
            except _TableFailedError as failure:
                _leave_out_if_told(checkpoints[failure.table], failure.error)
                raise
        else:
            for table in _parents_first(parts):
                try:
                    entries[table] = self._apply_part(prepared, parts[table])
                except SyncError as reason:
                    _leave_out_if_told(checkpoints[table], reason)
                    failed[table] = reason
        self._check_constraints(prepared, entries)
        if end.is_finished:
            self._advance_sequences()
        healthy = {table: watermark for table, watermark in watermarks.items() if table not in failed}
        advance_checkpoints(self._connection, healthy, entries, start=start, end=end, now=now)
        self._settle_skips(prepared, [checkpoints[table] for table in healthy], skipped, end, now=now)
        for table, error in failed.items():
            mark_blocked(self._connection, [table], error, file=prepared.file, now=now)
        self._add_metrics(entries, now)
        if entries:
            add_to_minute(self._connection, entries, now=now)
        if self._run_id is not None and entries:
            records = sum(entry.counts.records for entry in entries.values())
            add_to_run(self._connection, self._run_id, records=records)
        return Outcome(counts={table: entry.counts for table, entry in entries.items()}, blocked=failed)

    def _settle_skips(
        self,
        prepared: PreparedBatch,
        checkpoints: Iterable[Checkpoint],
        skipped: Mapping[TableName, Mapping[Skip, SyncError | None]],
        end: Position,
        *,
        now: dt.datetime,
    ) -> None:
        unreadable = prepared.parts.get(NO_TABLE)
        lines = {located.line for located in unreadable.records} if unreadable else set()
        for checkpoint in checkpoints:
            if checkpoint.skips:
                used = dict(skipped.get(checkpoint.table, {}))
                for skip in checkpoint.skips:
                    if skip.line in lines and skip.is_at(prepared.file, skip.line):
                        used.setdefault(skip, None)
                settle_skips(self._connection, checkpoint, used, end, now=now)

    def _may_cascade(self, parts: Mapping[TableName, TablePart]) -> bool:
        """Whether a delete of this batch can change rows that the batch has moved out of its way."""
        return not self._writer.is_silent and any(
            isinstance(part.plan, TablePlan) and part.plan.schema.has_cascades and part.plan.removes_rows
            for part in parts.values()
        )

    def _apply_in_order(
        self, prepared: PreparedBatch, parts: Mapping[TableName, TablePart]
    ) -> dict[TableName, Entry]:
        """Apply the batch in the order of its records, as runs of one table each: a cascade then finds
        what it found at the source. Raises _TableFailedError."""
        entries = {table: Entry() for table in parts}
        for table, run in runs_of_one_table(prepared.batch.records, parts):
            plan = parts[table].plan
            if isinstance(plan, TablePlan):
                plan = plan_table(
                    table,
                    run,
                    {table: plan.schema},
                    file=prepared.file,
                    is_plain_file=prepared.is_plain_file,
                )
            try:
                entry = self._apply_part(prepared, TablePart(records=run, plan=plan))
            except SyncError as error:
                raise _TableFailedError(table, error) from error
            before = entries[table]
            entry.counts.add(before.counts)
            entries[table] = replace(entry, duration_ms=before.duration_ms + entry.duration_ms)
        return entries

    def _apply_part(self, prepared: PreparedBatch, part: TablePart) -> Entry:
        if isinstance(part.plan, SyncError):
            raise part.plan
        started = time.monotonic()
        with self._connection.transaction():
            counts = self._writer.apply(
                part.records, part.plan, file=prepared.file, is_plain_file=prepared.is_plain_file
            )
        self._sequences_due[part.plan.schema.name] = part.plan.schema
        return Entry(
            counts=counts,
            last_change_at=parse_time(part.plan.last_ts),
            last_lsn=_valid_lsn(part.records[-1].record.lsn),
            duration_ms=round((time.monotonic() - started) * 1000),
        )

    def _check_constraints(self, prepared: PreparedBatch, entries: Mapping[TableName, Entry]) -> None:
        """Where constraints are awake, find out now whose rows break one, not at COMMIT."""
        if self._writer.is_silent or not entries:
            return
        try:
            with self._connection.transaction():
                self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except psycopg.errors.IntegrityError as error:
            table = self._find_offender(error, entries)
            if table is None:
                raise
            raise _TableFailedError(
                table,
                ApplyError(
                    f"the rows break the constraint {error.diag.constraint_name} of {error.diag.table_name}",
                    hint="whitelist the table it refers to as well, or let the role set"
                    " session_replication_role; it is tried again in every cycle",
                    table=str(table),
                    file=prepared.file,  # any of the batch's rows may be the one: there is no line to name
                ),
            ) from error

    def _find_offender(self, error: psycopg.Error, entries: Mapping[TableName, Entry]) -> TableName | None:
        """The table of the batch that broke a foreign key: the one that refers, else the one referred to."""
        rows = self._connection.execute(
            "SELECT n.nspname, c.relname FROM pg_constraint f"
            " JOIN pg_class r ON r.oid = f.conrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace"
            " CROSS JOIN LATERAL (VALUES (1, r.oid), (2, pg_partition_root(r.oid)::oid), (3, f.confrelid),"
            "  (4, pg_partition_root(f.confrelid)::oid)) AS candidate (rank, oid)"
            " JOIN pg_class c ON c.oid = candidate.oid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE f.conname = %s AND rn.nspname = %s AND r.relname = %s ORDER BY candidate.rank",
            (error.diag.constraint_name, error.diag.schema_name, error.diag.table_name),
        ).fetchall()
        return next((name for row in rows if (name := TableName(*row)) in entries), None)

    def _advance_sequences(self) -> None:
        for table, schema in list(self._sequences_due.items()):
            try:
                with self._connection.transaction():
                    self._writer.advance_sequences(schema)
            except psycopg.ProgrammingError:
                # A role that may not move a sequence may not draw from it, either; or the table has been
                # changed or dropped since its catalog was read.
                pass
            del self._sequences_due[table]

    def _add_metrics(self, entries: Mapping[TableName, Entry], now: dt.datetime) -> None:
        try:
            add_metrics(self._connection, entries, metric_freq_hours=self._metric_freq_hours, now=now)
        except psycopg.Error as error:
            if is_servers_fault(error):
                raise
            raise MetricsError(
                f"the metrics cannot be written ({type(error).__name__})",
                hint="run 'python manage.py migrate'; nothing was applied without its metrics",
            ) from error


class _TableFailedError(Exception):
    def __init__(self, table: TableName, error: SyncError) -> None:
        super().__init__(table)
        self.table = table
        self.error = error


class _SkippedError(Exception):
    def __init__(self, table: TableName, skip: Skip, error: SyncError) -> None:
        super().__init__(table)
        self.table = table
        self.skip = skip
        self.error = error


def _leave_out_if_told(checkpoint: Checkpoint, error: SyncError) -> None:
    """Raise _SkippedError where an operator has said to skip the record that *error* is about."""
    for skip in checkpoint.skips:
        if skip.is_at(error.file, error.line):
            raise _SkippedError(checkpoint.table, skip, error) from error


def parse_time(text: str | None) -> dt.datetime | None:
    """Return a record's ``ts`` (``T`` or a space, ``Z``, ``+00`` or ``+00:00``), or None if it is none."""
    try:
        moment = dt.datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    except OverflowError:
        return None


def _valid_lsn(text: str | None) -> str | None:
    """A record's own LSN only informs; a plain file may hold anything there."""
    try:
        return format_lsn(parse_lsn(text)) if text else None
    except ValueError:
        return None


def _parents_first(parts: Mapping[TableName, TablePart]) -> list[TableName]:
    return parents_first(
        {
            table: part.plan.schema.parents if isinstance(part.plan, TablePlan) else frozenset()
            for table, part in parts.items()
        }
    )
