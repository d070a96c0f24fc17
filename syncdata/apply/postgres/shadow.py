"""Gives a table new rows: they grow in a temporary table until they are complete, then replace the old ones.

A snapshot's rows come before the temporary table's indexes. Rows that these would not have let in are found
when they are made; then the snapshot is loaded once more, now with the indexes in place.

The temporary table vanishes with the connection. In the end old rows that differ are deleted and new ones
inserted. Renaming the temporary table instead would lose the table's oid, rights, views and foreign keys;
truncating the old one would show readers with an older database snapshot an empty table. Test:
test_readers_never_see_a_half_built_table_during_a_resync. Knows snapshots and batches; knows nothing of which
file comes next.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import psycopg
from psycopg import Connection, sql

from syncdata.apply.counts import Counts
from syncdata.apply.plan.batches import Batch, BatchFile
from syncdata.apply.plan.drift import is_older
from syncdata.apply.plan.prepare import PreparedBatch, TableShare, prepare
from syncdata.apply.plan.relation import find_fault
from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.plan.table_plan import TableBatch, TablePlan
from syncdata.apply.position import Advance, Position
from syncdata.apply.postgres.connection import (
    constraint_error,
    do_not_wait_for_disk,
    in_one_trip,
    is_servers_fault,
    kind_of,
    limit_lock_waits,
    translate,
)
from syncdata.apply.postgres.definitions import Definitions
from syncdata.apply.postgres.effects import effect_of, last_truncate
from syncdata.apply.postgres.fallback import apply_table
from syncdata.apply.postgres.held import RefusedError, refused_rows, require_visible
from syncdata.apply.postgres.late_indexes import read_late_indexes
from syncdata.apply.postgres.locks import lock_waits, locked_error
from syncdata.apply.postgres.refusals import explain_refusal
from syncdata.apply.postgres.relations import read_relations
from syncdata.apply.postgres.whole_table import advance_sequences, differences, exchange
from syncdata.apply.postgres.writer import RowWriter
from syncdata.apply.result import Effect
from syncdata.apply.sink import ApartError, Differences, LockedError, Outcome, Purpose
from syncdata.apply.state.audit import log_action
from syncdata.apply.state.checkpoints import (
    TableCheckpoint,
    lock_checkpoints,
    read_checkpoint,
    require_position,
    reset_checkpoints,
)
from syncdata.apply.state.holds import add_mark, mark_paused
from syncdata.apply.state.marks import partial, unlogged
from syncdata.apply.state.published import Known, after_truncate, keep_known, look, suspicion
from syncdata.apply.state.runs import add_to_run
from syncdata.changes.filenames import is_change_file
from syncdata.changes.names import TableName
from syncdata.errors import ApplyError, SyncError, VerificationError

logger = logging.getLogger(__name__)

_WAIT_S = 5.0


@contextmanager
def open_shadow(
    writer: RowWriter,
    definitions: Definitions,
    table: TableName,
    purpose: Purpose,
    *,
    run_id: int | None,
    taken: set[TableName],
) -> Iterator[ShadowTarget]:
    """Open a rebuild of *table*, translate what the driver raises meanwhile, and drop it at the end.

    *writer*, *definitions*: of the connection that it works on. *run_id*: the run whose counts it adds to.
    *taken*: the temporary tables of the rebuilds that are open there.
    """
    shadow = next(name for n in count() if (name := _shadow_name(n)) not in taken)
    taken.add(shadow)
    target = None
    try:
        with _translated(table, purpose):
            target = ShadowTarget(writer, definitions, table, purpose, run_id=run_id, shadow=shadow)
            yield target
    finally:
        if target is None or not target.is_exchanged:
            _let_go(writer.connection, shadow)
        taken.discard(shadow)


def _shadow_name(number: int) -> TableName:
    return TableName("pg_temp", f"syncdata_rebuild_{number}" if number else "syncdata_rebuild")


@contextmanager
def _translated(table: TableName, purpose: Purpose) -> Iterator[None]:
    """Turn what the driver raises about the new rows of *table* into one of our errors."""
    try:
        yield
    except psycopg.Error as error:
        raise _reason(error, table, purpose) from None
    except RefusedError as error:
        raise refused_rows(error, table) from None


class ShadowTarget:
    """A sink like the real target, but into a temporary table; without metrics, and its checkpoint and audit
    row are written once, in `exchange`."""

    def __init__(
        self,
        writer: RowWriter,
        definitions: Definitions,
        table: TableName,
        purpose: Purpose,
        *,
        run_id: int | None,
        shadow: TableName,
    ) -> None:
        self._writer = writer
        self._definitions = definitions
        connection = self._connection = writer.connection
        self._purpose = purpose
        self._run_id = run_id
        self._schema = self._read_schema(table, shadow)
        require_visible(replace(self._schema, shadow=None))
        self._known = Known(is_rebuild=True)
        self._looked_under: str | None = None
        self._newest = Effect()
        self._may_copy = True  # as long as no two rows of the snapshot were found to have one key
        self.is_exchanged = False
        _drop(connection, shadow)
        # INCLUDING IDENTITY: an identity column that production lacks gets its values here. Test:
        # test_a_first_load_fills_columns_that_production_lacks.
        with self._waiting(), connection.transaction(), in_one_trip(connection):
            do_not_wait_for_disk(connection)  # No crash leaves anything of it that would have to be there.
            limit_lock_waits(connection, _WAIT_S)
            connection.execute(
                sql.SQL(
                    "CREATE TEMPORARY TABLE {}"
                    " (LIKE {} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING IDENTITY)"
                ).format(sql.Identifier(shadow.name), _relation(table))
            )
            self._missing = read_late_indexes(connection, table, shadow)

    @property
    def schema(self) -> TableSchema:
        return self._schema

    def _translated(self) -> AbstractContextManager[None]:
        return _translated(self._schema.name, self._purpose)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Turn the end of a wait for a lock on the table into a LockedError that says who holds it."""
        try:
            with lock_waits(self._schema.name):
                yield
        except LockedError as locked:
            locked.error = locked_error(self._connection, locked.table)
            raise

    def _read_schema(self, table: TableName, shadow: TableName) -> TableSchema:
        relation = read_relations(self._connection, [table]).get(table)
        if fault := find_fault(table, relation, is_of_archiver=False):
            raise fault
        self._unlogged_part = relation and relation.unlogged(table)
        self._definitions.refresh([table])
        return replace(self._definitions.current[table], shadow=shadow)

    @property
    def must_fit_others(self) -> bool:
        """Tell whether active foreign keys tie the table to others, so that all must be of one moment.
        Test: test_an_ordinary_role_loads_tables_that_refer_to_each_other."""
        return not self._writer.is_silent and bool(self._schema.parents or self._schema.has_inbound_keys)

    def restart(self) -> None:
        self._known, self._looked_under, self._newest = Known(is_rebuild=True), None, Effect()
        with self._translated():
            self._connection.execute(sql.SQL("TRUNCATE {}").format(_relation(self._schema.written_to)))

    def accept(self) -> bool:
        """Make the indexes that the rows could break. Where they do, two may have one key here, and the later
        one is to stay: then all are thrown away, to come anew past the indexes. Test:
        test_a_snapshot_with_a_key_twice_here_leaves_the_later_row."""
        with self._translated():
            try:
                self._make_unique_indexes()
            except (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation):
                self.restart()
                self._make_unique_indexes()
                self._may_copy = False
                return False
            return True

    def _make_unique_indexes(self) -> None:
        with self._connection.transaction(), in_one_trip(self._connection):
            do_not_wait_for_disk(self._connection)
            for statement in self._missing.unique:
                self._connection.execute(statement)
        self._missing = replace(self._missing, unique=())

    def _are_new(self, plan: TablePlan | SyncError, file: BatchFile) -> bool:
        """Tell whether *plan* holds rows of a snapshot that no other one can have been before."""
        return (
            isinstance(plan, TablePlan)
            and plan.only_inserts
            and not is_change_file(file.name)
            and not self._schema.is_key_deferrable
        )

    def _make_indexes_for(self, share: TableShare, file: BatchFile) -> None:
        """Make the indexes that *share* needs to be applied. New rows of a snapshot need none."""
        if self._are_new(share.plan, file):
            return
        if self._missing.unique:
            self._make_unique_indexes()
        if not self._schema.key:  # Where there is no key, any index may find the rows.
            for statement in self._missing.others:
                self._connection.execute(statement)
            self._missing = replace(self._missing, others=())

    # As a sink

    def begin_file(self, tables: Collection[TableName]) -> None:
        """Do nothing: the schema is that of the rebuild's begin."""

    def prepare(self, batch: Batch) -> PreparedBatch:
        return prepare(batch, {self._schema.name: self._schema})

    def block(self, watermarks: Mapping[TableName, int | None], error: SyncError, *, start: Position) -> None:
        raise error

    def unblock(self, tables: Collection[TableName]) -> None:
        """Do nothing: the table's checkpoint, which `exchange` writes anew, is not blocked."""

    def apply(self, prepared: PreparedBatch, advance: Advance) -> Outcome:
        """Apply *prepared*; the checkpoint moves in `exchange`. Raises errors that would block a table, and
        ApartError instead where they may be of any of several files; nothing is done then."""
        with self.all_or_nothing():
            try:
                return self._apply(prepared, may_miss=not advance.files)
            except SyncError:
                if advance.files:
                    raise ApartError from None
                raise

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Forget what the block noted of the new rows, if it raises: its transaction takes them back, and the
        indexes that were made in it. Test: test_indexes_go_with_the_files_that_are_taken_apart."""
        before = self._known, self._looked_under, self._newest, self._missing
        try:
            yield
        except BaseException:
            self._known, self._looked_under, self._newest, self._missing = before
            raise

    def _apply(self, prepared: PreparedBatch, *, may_miss: bool) -> Outcome:
        outcome = Outcome()
        self._look(prepared.batch, has_records=bool(prepared.shares))
        if not prepared.shares:
            return outcome
        if (counts := self._copy_new(prepared)) is not None:
            outcome.counts[self._schema.name] = counts
            self._newest = effect_of(prepared.shares[self._schema.name], counts)
            return outcome
        with self._translated(), self._connection.transaction():
            self._writer.begin()
            for table, share in prepared.shares.items():
                if isinstance(share.plan, SyncError):
                    raise share.plan
                self._make_indexes_for(share, prepared.file)
                batch = TableBatch(schema=share.plan.schema, records=share.records, file=prepared.file)
                outcome.counts[table] = apply_table(self._writer, batch, share.plan)
                if outcome.counts[table].missing and not may_miss:
                    raise ApartError
                self._newest = effect_of(share, outcome.counts[table])
                if outcome.counts[table].truncated:
                    self._known = after_truncate(self._known, last_truncate(share))
        return outcome

    def _copy_new(self, prepared: PreparedBatch) -> Counts | None:
        """COPY the rows of a snapshot, by this one statement alone; return their counts.

        None, with nothing done, where it is another batch, or the server refuses a row: the way that finds
        the row needs a transaction. Test: test_a_snapshots_batch_is_one_statement.
        """
        plan = prepared.shares[self._schema.name].plan
        if not self._may_copy or not isinstance(plan, TablePlan) or not self._are_new(plan, prepared.file):
            return None
        with self._translated():
            try:
                return self._writer.copy_new(plan)
            except psycopg.Error as error:
                if is_servers_fault(error):
                    raise
                return None

    def _look(self, batch: Batch, *, has_records: bool) -> None:
        """Look at the table under the catalog of *batch*; a snapshot's is what its rows agree with.

        Raises SchemaError where the new rows would not be production's.
        """
        catalog, published = batch.catalog, batch.published
        if catalog is None or published is None or catalog.digest == self._looked_under:
            return
        table, known = self._schema.name, self._known
        is_snapshot = not is_change_file(batch.file.name)
        older = not is_snapshot and is_older(catalog.lsn, known.baseline, commit_lsn=batch.commit_lsn)
        found = look(
            table,
            known,
            published.find(table),
            self._schema,
            is_older=older,
            catalog_lsn=catalog.lsn,
            snapshot_lsn=catalog.lsn if is_snapshot else None,
            has_records=has_records,
            commit_lsn=batch.commit_lsn,
        )
        if found.error is not None:
            found.error.file = batch.file.name
            raise found.error
        self._known = found.known
        self._looked_under = None if older else catalog.digest

    # Beside the table

    def compare(self, position: Position) -> Differences | None:
        live = replace(self._schema, shadow=None)
        with self._translated(), self._connection.transaction():
            # Rows and checkpoint of one moment, and nobody waits.
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            checkpoint = read_checkpoint(self._connection, live.name)
            if checkpoint is None or not _is_same_place(checkpoint.position, position):
                return None
            return differences(self._writer.cursor, live, self._schema, columns=self._published_columns())

    def _published_columns(self) -> list[str]:
        """Return the columns whose values come from production. Of others, the new rows have what the table
        itself gives them. Test: test_a_column_that_production_lacks_is_not_compared."""
        baseline = self._known.baseline
        if baseline is None:
            raise VerificationError(
                "cannot be verified: the archive does not say which of its columns production has",
                hint="take a new snapshot of it with the archiver of this version",
                table=str(self._schema.name),
            )
        table = baseline.table
        published = {column.name for column in table.columns}
        if table.column_list is not None:
            published &= set(table.column_list)
        published -= self._schema.rules.withheld if self._schema.rules else frozenset()
        return [column.name for column in self._schema.writable if column.name in published]

    # Into the table's place

    def exchange(
        self,
        position: Position,
        *,
        counts: Counts,
        reference: str,
        now: dt.datetime,
        duration_ms: int,
        is_whole: bool,
    ) -> None:
        live, only_from = replace(self._schema, shadow=None), self._purpose.only_from
        if (error := suspicion(live.name, self._known)) is not None:
            raise error
        with self._translated(), self._waiting(), self._connection.transaction():
            is_paused = False
            if only_from is None:
                is_paused = self._lock_checkpoint().is_paused and not self._purpose.ends_pause
            else:
                require_position(self._connection, {live.name: only_from.commit_lsn}, only_from)
            with in_one_trip(self._connection):
                self._writer.begin()
                limit_lock_waits(self._connection, _WAIT_S)
            exchange(self._writer.cursor, live, self._schema, is_silent=self._writer.is_silent)
            self._require_as_begun(live)
            advance_sequences(self._writer.cursor, live)
            reset_checkpoints(
                self._connection,
                [live.name],
                position,
                counts=counts,
                now=now,
                is_whole=is_whole,
                local_oid=live.oid,
                newest=self._newest,
            )
            marks = tuple(dict.fromkeys([*(() if is_whole else (partial(live.name),)), *self._known.marks]))
            with in_one_trip(self._connection):
                if is_paused:
                    mark_paused(self._connection, [live.name])
                keep_known(self._connection, {live.name: replace(self._known, marks=marks)})
                if self._unlogged_part:
                    add_mark(self._connection, live.name, unlogged(live.name, self._unlogged_part))
                log_action(
                    self._connection,
                    live.name,
                    action=self._purpose.action,
                    reference=reference,
                    now=now,
                    counts=counts,
                    duration_ms=duration_ms,
                    requested_by=self._purpose.requested_by,
                )
                if self._run_id is not None:
                    add_to_run(self._connection, self._run_id, records=counts.records)
                # By itself it would wait for the disk once more, as whatever removes files does.
                _drop(self._connection, self._schema.written_to)
        self.is_exchanged = True

    def _lock_checkpoint(self) -> TableCheckpoint:
        """Raises ApplyError for a table that is not whitelisted any more: its rows are not ours to exchange.
        Test: test_a_table_that_is_removed_while_it_is_resynced_keeps_its_rows."""
        table = self._schema.name
        for checkpoint in lock_checkpoints(self._connection, [table]):
            return checkpoint
        raise ApplyError(
            "it was taken off the whitelist meanwhile",
            hint=f"run 'python manage.py add_tables {table.argument}'",
            table=str(table),
        )

    def _require_as_begun(self, live: TableSchema) -> None:
        """Raise ApplyError where the table is another than the one that the new rows were made for: values
        may have been cut on their way, or a column may lack them. The exchange has locked it. Test:
        test_a_table_that_is_altered_while_it_is_resynced_keeps_its_rows."""
        self._definitions.refresh([live.name])
        if self._definitions.current.get(live.name) != live:
            raise ApplyError(
                "it was altered while its new rows were being loaded",
                hint="let the migration end",
                table=str(live.name),
            )


class ShadowGroup:
    """A sink for batches of several tables that are being rebuilt. A table that fails leaves the others."""

    def __init__(self, connection: Connection[Any], shadows: Mapping[TableName, ShadowTarget]) -> None:
        self._connection = connection
        self._shadows = shadows
        self.failed: dict[TableName, SyncError] = {}

    def begin_file(self, tables: Collection[TableName]) -> None:
        for table in tables:
            self._shadows[table].begin_file([table])

    def prepare(self, batch: Batch) -> PreparedBatch:
        return prepare(batch, {table: shadow.schema for table, shadow in self._shadows.items()})

    def block(self, watermarks: Mapping[TableName, int | None], error: SyncError, *, start: Position) -> None:
        self.failed |= dict.fromkeys(watermarks, error)

    def unblock(self, tables: Collection[TableName]) -> None:
        """Do nothing: see `ShadowTarget.unblock`."""

    def apply(self, prepared: PreparedBatch, advance: Advance) -> Outcome:
        """Apply *prepared* to the tables of *advance*. Raises ApplyError when the server itself fails, and
        ApartError, with nothing done to any table, where several files do not go through as they are.

        Test: test_a_row_that_one_of_two_rebuilt_tables_misses_doubles_none_of_the_other.
        """
        if not advance.files:
            return self._apply(prepared, advance)
        try:
            with ExitStack() as stack:
                for table in advance.watermarks:
                    stack.enter_context(self._shadows[table].all_or_nothing())
                stack.enter_context(self._connection.transaction())
                return self._apply(prepared, advance)
        except psycopg.Error as error:
            if is_servers_fault(error):
                raise translate(error) from None
            raise ApartError from None

    def _apply(self, prepared: PreparedBatch, advance: Advance) -> Outcome:
        outcome = Outcome()
        for table in advance.watermarks:
            shares = {table: prepared.shares[table]} if table in prepared.shares else {}
            try:
                applied = self._shadows[table].apply(replace(prepared, shares=shares), advance)
            except SyncError as error:
                if isinstance(error, ApplyError) and error.table is None:
                    raise
                outcome.blocked[table] = self.failed[table] = error
            else:
                outcome.counts |= applied.counts
        return outcome


def _reason(error: psycopg.Error, table: TableName, purpose: Purpose) -> ApplyError:
    """What the database has against the rows as a whole, without its DETAIL, which holds values; it names no
    table where the server is at fault."""
    if is_servers_fault(error):
        return translate(error)
    # Of these two, only the beginning is tried again in every cycle, as that error says.
    if purpose.action == "snapshot" and isinstance(error, psycopg.errors.IntegrityError):
        return constraint_error(error, table, rows="the snapshot's rows")
    refusal = explain_refusal(error, table)
    return ApplyError(
        f"the database refuses the new rows: {refusal.what} ({kind_of(error)})",
        hint=refusal.remedy,
        table=str(table),
    )


def _is_same_place(one: Position, other: Position) -> bool:
    return one.has_reached(other) and other.has_reached(one) and one.commit_lsn == other.commit_lsn


def _drop(connection: Connection[Any], shadow: TableName) -> None:
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_relation(shadow)))


def _let_go(connection: Connection[Any], shadow: TableName) -> None:
    """Drop *shadow*, whose rows may be in their place by now; with a lost connection it goes by itself."""
    try:
        if not connection.closed:
            _drop(connection, shadow)
    except psycopg.Error as error:
        if not is_servers_fault(error):
            raise
        logger.debug("the table beside is left to the server: %s", type(error).__name__)


def _relation(table: TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)
