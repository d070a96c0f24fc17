"""The local database as a sink: applies a batch to its tables and syncdata's own in one transaction.

Knows the database; knows nothing of the archive, or of which batch comes next.

Invariants:

1. Rows, checkpoints, audit and metrics of a batch commit together, or none of them does. So whatever
   happens to the process or the connection, even during COMMIT, the checkpoints tell the truth: read
   them again and go on from there. Test: tests/acceptance/test_exactly_once.py kills it everywhere.
2. Whoever moves a checkpoint locks it first. A batch begins by locking those of its tables and goes on
   only if they still stand where the batch begins. Tests:
   test_a_batch_that_was_prepared_before_a_clear_is_not_applied,
   test_a_clear_waits_for_the_batch_that_is_running.
3. A table that fails is rolled back to its rows before the batch, and marked blocked in the same
   transaction in which the others advance.
   Test: test_a_missing_column_blocks_its_table_while_the_others_go_on.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply.counts import Counts
from syncdata.apply.plan.batches import Batch, BatchFile
from syncdata.apply.plan.prepare import (
    PreparedBatch,
    TableShare,
    cut_at_truncates,
    in_order,
    prepare,
    shares_of,
    without,
)
from syncdata.apply.plan.relation import find_fault, made_anew
from syncdata.apply.plan.schema import TableSchema, parents_first
from syncdata.apply.plan.table_plan import TableBatch, TablePlan, removals_apart
from syncdata.apply.position import Advance, Position
from syncdata.apply.postgres.at_once import AtOnceWriter, NotAtOnceError
from syncdata.apply.postgres.connection import (
    constraint_error,
    do_not_wait_for_disk,
    in_one_trip,
    is_servers_fault,
    limit_lock_waits,
    prepare_session,
    translated_errors,
)
from syncdata.apply.postgres.constraints import check_constraints
from syncdata.apply.postgres.definitions import LOOK_AGAIN_S, REST, Definitions
from syncdata.apply.postgres.effects import effect_of, last_truncate
from syncdata.apply.postgres.fallback import apply_table
from syncdata.apply.postgres.held import RefusedError
from syncdata.apply.postgres.keyed import ReplayNeededError
from syncdata.apply.postgres.locks import lock_waits, locked_error
from syncdata.apply.postgres.relations import read_relations
from syncdata.apply.postgres.rests import Rests
from syncdata.apply.postgres.sequences import Sequences
from syncdata.apply.postgres.shadow import ShadowGroup, ShadowTarget, open_shadow
from syncdata.apply.postgres.stamps import send_stamps, stamps_of
from syncdata.apply.postgres.verify import pass_over, verify
from syncdata.apply.postgres.watch import Watch
from syncdata.apply.postgres.writer import RowWriter
from syncdata.apply.result import Effect
from syncdata.apply.sink import ApartError, Fitness, LockedError, Outcome, Purpose, Verdict
from syncdata.apply.state.checkpoints import (
    Moved,
    Skip,
    TableCheckpoint,
    advance_checkpoints,
    require_all_at,
    require_position,
)
from syncdata.apply.state.holds import add_mark, mark_blocked, mark_unblocked
from syncdata.apply.state.kept import KeptCheckpoints, LockedCheckpoints
from syncdata.apply.state.marks import Mark, unlogged
from syncdata.apply.state.metrics import add_metrics, add_to_minute
from syncdata.apply.state.runs import add_to_run
from syncdata.apply.state.skips import settle_skips
from syncdata.changes.catalog import Catalog
from syncdata.changes.names import TableName
from syncdata.changes.reader import NO_TABLE, LocatedRecord
from syncdata.changes.verification import Check
from syncdata.errors import MetricsError, SyncError
from syncdata.privacy.policy import Policy

# How long a batch waits for a lock before it is rolled back, so that a stop is heeded, and tried again.
_WAIT_S, _SHORT_WAIT_S = 5.0, 1.0

# The quick way rests for all tables of a batch together: no table has this oid.
_ALL = 0


class Target:
    """The local database, over one connection in autocommit mode that nobody else uses.

    *policy*: this side's own privacy rules, which rows follow before they are written.
    """

    def __init__(
        self,
        connection: Connection[Any],
        *,
        metric_freq_hours: int,
        run_id: int | None = None,
        waits_for_disk: bool = False,
        policy: Policy | None = None,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._connection = connection
        self._metric_freq_hours = metric_freq_hours
        self._run_id = run_id
        self._waits_for_disk = waits_for_disk
        self._clock = clock
        self._known: set[TableName] = set()
        self._shadows: set[TableName] = set()
        self._definitions = Definitions(connection, policy)
        self._watch = Watch(connection)
        self._quick_rests = Rests()
        self._kept = KeptCheckpoints(connection)
        self._fit: list[tuple[object, ...]] = []
        self._look_again_s = float("-inf")
        with translated_errors():
            prepare_session(connection)
            self._writer = RowWriter(connection)
        self._at_once = AtOnceWriter(self._writer)
        self._sequences = Sequences(self._writer.cursor)

    @property
    def _schemas(self) -> Mapping[TableName, TableSchema]:
        return self._definitions.current

    def is_on(self, connection: Connection[Any]) -> bool:
        return self._connection is connection

    def learn_from(self, other: Any) -> None:
        if isinstance(other, Target):
            self._definitions.learn_from(other._definitions)

    def checkpoints(self) -> list[TableCheckpoint]:
        with translated_errors(), self._connection.transaction():
            return self._kept.read()

    def examine(self, checkpoints: Collection[TableCheckpoint]) -> Fitness:
        """Tables that were all fit a moment ago, and are the same, are not looked at again yet."""
        began_s = time.monotonic()
        # All that the outcome depends on beside the tables themselves.
        looked_at: list[tuple[object, ...]] = [
            (c.table, c.id, c.local_oid, c.reason, c.position.source_id) for c in checkpoints
        ]
        if looked_at == self._fit and began_s < self._look_again_s:
            return Fitness()
        with translated_errors():
            relations = read_relations(self._connection, [checkpoint.table for checkpoint in checkpoints])
        found, has_unlogged = Fitness(), False
        for checkpoint in checkpoints:
            table, relation = checkpoint.table, relations.get(checkpoint.table)
            is_of_archiver = checkpoint.position.source_id != ""
            if fault := find_fault(table, relation, is_of_archiver=is_of_archiver):
                found.unfit[table] = fault
            elif relation and checkpoint.local_oid not in (None, relation.oid):
                found.replaced[table] = made_anew(table)
            # A crash may empty it now; once it is logged again, nothing would tell. Test:
            # test_a_table_that_was_unlogged_is_suspect_until_it_is_logged_and_rebuilt.
            if relation and (part := relation.unlogged(table)):
                has_unlogged = True
                mark = unlogged(table, part)
                if mark not in checkpoint.marks:
                    self._mark(table, mark)
        self._fit = [] if found.unfit or found.replaced or has_unlogged else looked_at
        self._look_again_s = time.monotonic() + min(LOOK_AGAIN_S, REST * (time.monotonic() - began_s))
        return found

    def _mark(self, table: TableName, mark: Mark) -> None:
        with translated_errors(), self._connection.transaction():
            add_mark(self._connection, table, mark)

    def turns(self, tables: Collection[TableName]) -> list[list[TableName]]:
        with translated_errors():
            self._definitions.refresh(tables)
        schemas = {table: self._schemas[table] for table in tables if table in self._schemas}
        order = parents_first(
            {table: schemas[table].parents if table in schemas else frozenset() for table in tables}
        )
        # Keys that are awake need the rows that they refer to.
        are_tied = any(schema.parents or schema.has_inbound_keys for schema in schemas.values())
        return [[table] for table in order] if are_tied and not self._writer.is_silent else [order]

    def open_rebuild(self, table: TableName, purpose: Purpose) -> AbstractContextManager[ShadowTarget]:
        return open_shadow(
            self._writer, self._definitions, table, purpose, run_id=self._run_id, taken=self._shadows
        )

    def together(self, rebuilds: Mapping[TableName, Any]) -> ShadowGroup:
        return ShadowGroup(self._connection, rebuilds)

    def begin_file(self, tables: Collection[TableName]) -> None:
        """Know the tables' schemas. Whether they still hold is looked at in each batch's transaction."""
        with translated_errors():
            self._definitions.open(tables)

    def prepare(self, batch: Batch) -> PreparedBatch:
        """Plan *batch*. Does not touch the connection, which is at work on the batch before."""
        return prepare(batch, self._schemas)

    def verify(
        self, checks: Sequence[Check], published: Catalog | None, *, position: Position
    ) -> list[Verdict]:
        """Hold rows to *checks*, and keep the verdicts."""
        with translated_errors():
            self._definitions.refresh({check.name for check in checks})
            return verify(
                self._connection, checks, published, self._schemas, position=position, clock=self._clock
            )

    def pass_over(self, ends: Sequence[Check], *, position: Position) -> None:
        """Note that rounds ended with *ends*, to which no rows were held."""
        with translated_errors():
            pass_over(self._connection, ends, self._schemas, position=position, now=self._clock())

    def rest(self) -> None:
        """Drop the staging tables between cycles: they would keep types from being dropped."""
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

    def apply(self, prepared: PreparedBatch, advance: Advance) -> Outcome:
        """Apply *prepared* to the tables of *advance* and move their checkpoints, in one transaction.

        Tables that fail are in the outcome's ``blocked`` and stay at the start, unless an operator has said
        to skip the record at which one fails: then it is left out, and audited. Raises CheckpointMovedError
        when a checkpoint is not at the start with its watermark, ApplyError when the server fails, and
        ApartError where several files do not go through as they are.
        """
        failed: dict[TableName, SyncError] = {}
        skipped: dict[TableName, dict[Skip, SyncError | None]] = {}
        if self._is_outdated(prepared):
            prepared = self.prepare(prepared.batch)
        may_be_quick = self._quick_rests.may_try(_ALL)
        while True:
            try:
                with translated_errors(), self._taken_back_if_it_fails(), lock_waits(None):
                    is_quick = may_be_quick and not failed and not skipped
                    outcome = self._apply(prepared, advance, failed, skipped, is_quick=is_quick)
                self._watch.settle()
                return outcome
            except _NotQuickError:
                may_be_quick = False
            except LockedError as locked:
                with translated_errors():
                    locked.error = locked_error(self._connection, locked.table)
                raise
            except _AlteredError:
                prepared = self.prepare(prepared.batch)
            except _SkippedError as told:
                if advance.files:
                    raise ApartError from None
                skipped.setdefault(told.table, {})[told.skip] = told.error
                prepared = without(prepared, told.table, told.skip.is_at, self._schemas)
            except _TableFailedError as failure:
                # Constraints are checked when all rows are in. Roll the batch back; the loop applies it again
                # without this table.
                if advance.files:
                    raise ApartError from None
                failed[failure.table] = failure.error

    def _apply(
        self,
        prepared: PreparedBatch,
        advance: Advance,
        failed: Mapping[TableName, SyncError],
        skipped: Mapping[TableName, Mapping[Skip, SyncError | None]],
        *,
        is_quick: bool,
    ) -> Outcome:
        """Apply *prepared* without the tables that have *failed*, in a transaction from BEGIN to COMMIT.

        *skipped*: the records that are left out of it already, each with its error. *is_quick*: hope that
        nothing is out of the ordinary, and wait for fewer answers. Raises _SkippedError or _TableFailedError
        where the batch must be taken back and applied without that record or table, _AlteredError where it
        must be planned anew, and _NotQuickError where hope was in vain.
        """
        plans = [share.plan for share in prepared.shares.values()]
        # In which file a row was missing shows one by one, as below.
        if advance.files and any(isinstance(plan, TablePlan) and plan.hides_missing for plan in plans):
            raise ApartError
        locked = self._begin(prepared, advance)
        if self._is_outdated(prepared):
            raise _AlteredError
        checkpoints = {checkpoint.table: checkpoint for checkpoint in locked.checkpoints}
        now = self._clock()
        self._note_sequences(advance)
        failed = {**failed, **self._made_anew(locked.checkpoints)}
        with_records = prepared.shares.keys()
        found = self._watch.look_at(prepared.batch, checkpoints, self._schemas, with_records=with_records)
        failed = {**failed, **found}
        effects, newly_failed = self._apply_shares(prepared, checkpoints, failed, is_quick=is_quick)
        failed = {**failed, **newly_failed}
        if advance.files and (failed or any(effect.counts.missing for effect in effects.values())):
            # Which file's table, row or record it is shows when they are applied one by one.
            # Test: test_files_together_leave_what_they_leave_one_by_one.
            raise ApartError
        done = _Done(prepared, advance, checkpoints, effects, failed, skipped, now)
        moved = self._finish(done, is_quick=is_quick)
        self._kept.note_moved(locked, moved.tables, moved.position)
        return Outcome(counts={table: effect.counts for table, effect in effects.items()}, blocked=failed)

    def _begin(self, prepared: PreparedBatch, advance: Advance) -> LockedCheckpoints:
        """Begin a transaction, lock the checkpoints and look at the tables that the batch may find altered;
        return the checkpoints. Raises CheckpointMovedError.

        Looked at are those that the batch writes to; those that are blocked, which an ALTER TABLE may have
        mended; and, where production's catalog is another one, all. Tests:
        test_a_change_of_one_table_in_the_middle_of_a_file_does_not_stop_the_others,
        test_a_table_that_is_altered_after_its_batch_was_planned_takes_its_rows_as_it_is.
        """
        is_new = self._watch.is_new(prepared.batch)
        looked_at = [table for table in advance.watermarks if is_new or table in prepared.shares]
        with in_one_trip(self._connection):
            self._connection.execute("BEGIN")
            locks = self._kept.send_locks(advance.watermarks)
            if not self._waits_for_disk:
                do_not_wait_for_disk(self._connection)
            self._writer.begin()
            self._at_once.begin()
            self._sequences.begin()
            # Not before the checkpoints are locked: a resync that ends just now may hold those for longer.
            limit_lock_waits(self._connection, _WAIT_S)
            stamps = send_stamps(self._connection, looked_at)
        locked = self._kept.locked(locks)
        checkpoints = locked.checkpoints
        require_all_at(advance.start, advance.watermarks, checkpoints)
        if all(checkpoint.reason for checkpoint in checkpoints):
            # Tables that are blocked already, perhaps by a lock, must not hold up every cycle.
            limit_lock_waits(self._connection, _SHORT_WAIT_S)
        self._definitions.take_in(looked_at, stamps_of(stamps))
        blocked = {checkpoint.table for checkpoint in checkpoints if checkpoint.reason}
        if unseen := blocked.difference(looked_at):
            self._definitions.refresh(unseen)
        return locked

    @contextmanager
    def _taken_back_if_it_fails(self) -> Iterator[None]:
        """Roll back what the block has begun, where it raises. Else it has committed itself: COMMIT travels
        with the last statements."""
        try:
            yield
        except BaseException:
            try:
                self._connection.rollback()
            except psycopg.Error:
                # Most likely it has gone, and the transaction with it. If not, that must not stay open. Test:
                # test_a_transaction_that_cannot_be_rolled_back_ends_with_its_connection.
                self._connection.close()
            raise

    def _is_outdated(self, prepared: PreparedBatch) -> bool:
        """Tell whether a table of *prepared* is known to be another than it was planned for."""
        return any(prepared.schemas.get(table) is not self._schemas.get(table) for table in prepared.shares)

    def _note_sequences(self, advance: Advance) -> None:
        """Note whose sequences may be behind rows that an earlier process applied: in the middle of a file.

        Test: test_sequences_follow_rows_that_came_before_a_restart_in_the_middle_of_a_file.
        """
        new = advance.watermarks.keys() - self._known
        self._known |= new
        if advance.start.file and not advance.start.is_finished:
            self._sequences.note_earlier(self._schemas[table] for table in new & self._schemas.keys())

    def _made_anew(self, checkpoints: Collection[TableCheckpoint]) -> dict[TableName, SyncError]:
        """Return the errors of tables that were others than those that their rows went to, when the file
        began. Test: test_a_table_that_is_made_anew_after_the_cycle_has_looked_takes_no_rows."""
        return {
            checkpoint.table: made_anew(checkpoint.table)
            for checkpoint in checkpoints
            if (schema := self._schemas.get(checkpoint.table)) is not None
            and checkpoint.local_oid not in (None, schema.oid)
        }

    def _new_oids(self, checkpoints: Mapping[TableName, TableCheckpoint]) -> dict[TableName, int]:
        """Return the oids of the tables whose checkpoints do not hold them yet."""
        return {
            table: schema.oid
            for table, checkpoint in checkpoints.items()
            if (schema := self._schemas.get(table)) is not None and checkpoint.local_oid != schema.oid
        }

    def _apply_shares(
        self,
        prepared: PreparedBatch,
        checkpoints: Mapping[TableName, TableCheckpoint],
        failed: Mapping[TableName, SyncError],
        *,
        is_quick: bool,
    ) -> tuple[dict[TableName, Effect], dict[TableName, SyncError]]:
        """Write the rows of the tables of *checkpoints* that have not *failed*; return what was done to each,
        and the errors of those that fail now. Raises _NotQuickError."""
        shares = {t: share for t, share in prepared.shares.items() if t in checkpoints and t not in failed}
        newly_failed: dict[TableName, SyncError] = {}
        if self._may_cascade(shares):
            try:
                return self._apply_with_cascades(prepared, shares), newly_failed
            except _TableFailedError as failure:
                _leave_out_if_told(checkpoints[failure.table], failure.error)
                raise
        order = _parents_first(shares)
        effects = self._apply_at_once({table: shares[table] for table in order}) if is_quick else {}
        for table in order:
            if table in effects:
                continue
            try:
                effects[table] = self._apply_share(prepared.file, shares[table])
            except SyncError as reason:
                _leave_out_if_told(checkpoints[table], reason)
                newly_failed[table] = reason
        return effects, newly_failed

    def _may_cascade(self, shares: Mapping[TableName, TableShare]) -> bool:
        """Tell whether a delete of this batch can cascade to rows that the batch has moved out of its way.

        Order line 1 leaves order 7, then order 7 is deleted, with ON DELETE CASCADE. Table by table, orders
        come first, and the delete would remove the line, too; the line's UPDATE does not bring it back.
        Test: test_a_child_that_left_its_parent_before_the_parent_went_stays_whole.
        """
        return not self._writer.is_silent and any(
            isinstance(share.plan, TablePlan) and share.plan.schema.has_cascades and share.plan.removes_rows
            for share in shares.values()
        )

    def _apply_with_cascades(
        self, prepared: PreparedBatch, shares: Mapping[TableName, TableShare]
    ) -> dict[TableName, Effect]:
        """Apply a batch whose deletes may cascade. Raises _TableFailedError.

        First all rows are written, then the rows are removed that are to go, those that refer to others
        before these: in the end no row that stays refers to one that goes, so a cascade finds nothing but
        what production's own cascade took, and rows that exist only here. Where that cannot be done, for one
        of the rows written needs a unique value of one that is to go, or a table is emptied, the records are
        halved, and the halves are applied one after the other in this way. Tests:
        test_a_child_that_left_its_parent_before_the_parent_went_stays_whole,
        test_a_unique_value_of_a_row_that_goes_is_free_for_the_next_one,
        test_an_ordinary_role_ends_with_the_rows_that_production_has.
        """
        effects = {table: Effect() for table in shares}
        for piece in cut_at_truncates(in_order(prepared), shares):
            self._apply_piece(prepared.file, piece, shares, effects)
        return effects

    def _apply_piece(
        self,
        file: BatchFile,
        piece: Sequence[LocatedRecord],
        shares: Mapping[TableName, TableShare],
        effects: dict[TableName, Effect],
    ) -> None:
        """Apply the records *piece* of *shares*, and add what that did to *effects*.

        Raises _TableFailedError.
        """
        mine = shares_of(piece, shares, file)
        for table, share in mine.items():
            if isinstance(share.plan, SyncError):
                raise _TableFailedError(table, share.plan)
        try:
            with self._connection.transaction():
                done = self._write_then_remove(file, mine)
        except (psycopg.Error, ReplayNeededError, RefusedError, SyncError) as error:
            if is_servers_fault(error):
                raise
            if len(piece) > 1:
                middle = len(piece) // 2
                for half in (piece[:middle], piece[middle:]):
                    self._apply_piece(file, half, shares, effects)
                return
            ((table, share),) = mine.items()
            try:
                done = {table: self._apply_share(file, share)}
            except SyncError as reason:
                raise _TableFailedError(table, reason) from reason
        for table, effect in done.items():
            before = effects[table]
            effect.counts.add(before.counts)
            effects[table] = replace(effect, duration_ms=before.duration_ms + effect.duration_ms)

    def _write_then_remove(
        self, file: BatchFile, shares: Mapping[TableName, TableShare]
    ) -> dict[TableName, Effect]:
        """Write all rows of *shares*, then remove those that are to go.

        Raises SyncError, psycopg.Error, ReplayNeededError and RefusedError where it cannot be done like this.
        """
        order = _parents_first(shares)
        removals: dict[TableName, TablePlan] = {}
        effects = {}
        for table in order:
            share = shares[table]
            if (
                isinstance(share.plan, TablePlan)
                and share.plan.schema.has_cascades
                and share.plan.removes_rows
            ):
                if (apart := removals_apart(share.plan)) is None:
                    raise ReplayNeededError
                started = time.monotonic()
                writes, removals[table] = apart
                with lock_waits(table):
                    counts = self._writer.write(writes)
                effects[table] = self._effect(share, counts, started)
            else:
                effects[table] = self._apply_share(file, share)
        for table in reversed(order):
            if table in removals:
                started = time.monotonic()
                with lock_waits(table):
                    counts = self._writer.write(removals[table])
                if counts.missing and removals[table].replay_if_missing and len(shares[table].records) > 1:
                    raise ReplayNeededError
                counts.add(effects[table].counts)
                took_ms = effects[table].duration_ms + round((time.monotonic() - started) * 1000)
                effects[table] = replace(effects[table], counts=counts, duration_ms=took_ms)
        return effects

    def _apply_at_once(self, shares: Mapping[TableName, TableShare]) -> dict[TableName, Effect]:
        """Apply those of *shares* that can go together; return what was done to each. Raises _NotQuickError.

        The time that it took is shared among them by their records.
        """
        started = time.monotonic()
        plans = {table: share.plan for table, share in shares.items() if isinstance(share.plan, TablePlan)}
        try:
            counts = self._at_once.write(plans)
        except NotAtOnceError:
            raise _NotQuickError from None
        took_ms = (time.monotonic() - started) * 1000
        records = sum(of_table.records for of_table in counts.values())
        for table in counts:
            self._sequences.note_written(plans[table])
        return {
            table: effect_of(
                shares[table], of_table, duration_ms=round(took_ms * of_table.records / max(records, 1))
            )
            for table, of_table in counts.items()
        }

    def _apply_share(self, file: BatchFile, share: TableShare) -> Effect:
        if isinstance(share.plan, SyncError):
            raise share.plan
        started = time.monotonic()
        batch = TableBatch(schema=share.plan.schema, records=share.records, file=file)
        with lock_waits(batch.schema.name):
            counts = apply_table(self._writer, batch, share.plan)
        return self._effect(share, counts, started)

    def _effect(self, share: TableShare, counts: Counts, started: float) -> Effect:
        """Return what writing *share* did, which began at *started*, in monotonic seconds."""
        if isinstance(share.plan, TablePlan):
            self._sequences.note_written(share.plan)
        return effect_of(share, counts, duration_ms=round((time.monotonic() - started) * 1000))

    def _finish(self, done: _Done, *, is_quick: bool) -> Moved:
        """Check what must be checked at the end, note what was *done*, and commit; return as `_commit` does.

        Raises _TableFailedError, and _NotQuickError where *is_quick* and something is refused: what it is
        about shows when one waits for each answer.
        """
        is_end_of_file = done.advance.end.is_finished
        if not is_quick:
            self._check_constraints(done.prepared.file, done.effects)
            self._sequences.advance(is_end_of_file=is_end_of_file)
            return self._commit(done)
        try:
            with in_one_trip(self._connection):
                self._at_once.send_rest()
                if not self._writer.is_silent and done.effects:
                    self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                self._sequences.send(is_end_of_file=is_end_of_file)
                moved = self._commit(done)
        except (psycopg.Error, MetricsError) as error:
            if is_servers_fault(error) and not isinstance(error, psycopg.errors.LockNotAvailable):
                raise
            self._quick_rests.note_failure(_ALL)
            raise _NotQuickError from None
        self._quick_rests.note_success(_ALL)
        self._sequences.note_advanced(is_end_of_file=is_end_of_file)
        return moved

    def _commit(self, done: _Done) -> Moved:
        """Note what was *done* in our own tables, and commit; return which checkpoints it moved only."""
        advance, effects, now = done.advance, done.effects, done.now
        healthy = advance.without(done.failed).watermarks
        written = set(self._watch.keep(healthy))
        self._watch.note_truncated(
            {
                table: last_truncate(done.prepared.shares[table])
                for table, effect in effects.items()
                if effect.counts.truncated
            }
        )
        moved = advance_checkpoints(
            self._connection,
            healthy,
            effects,
            start=advance.start,
            end=advance.end,
            now=now,
            local_oids=self._new_oids(done.checkpoints),
            files=advance.files,
        )
        for table in healthy:
            if (checkpoint := done.checkpoints[table]).skips:
                used = _used_skips(checkpoint, done.prepared, done.skipped.get(table, {}))
                settle_skips(self._connection, checkpoint, used, advance.end, now=now)
                written.add(table)
        for table, error in done.failed.items():
            mark_blocked(self._connection, [table], error, file=done.prepared.file.name, now=now)
        self._count(effects, now)
        self._connection.execute("COMMIT")
        return replace(moved, tables=moved.tables - written)

    def _check_constraints(self, file: BatchFile, effects: Mapping[TableName, Effect]) -> None:
        """Where constraints are active, find the table whose rows break one: at COMMIT all tables would fail.

        Raises _TableFailedError. Test: test_a_child_whose_parent_is_not_whitelisted_blocks_alone.
        """
        if self._writer.is_silent or not effects:
            return
        if (broken := check_constraints(self._connection, effects)) is not None:
            table, cause = broken
            raise _TableFailedError(table, constraint_error(cause, table, file=file.name)) from cause

    def _count(self, effects: Mapping[TableName, Effect], now: dt.datetime) -> None:
        """Add *effects* to the metrics, the minutes and the run."""
        try:
            add_metrics(self._connection, effects, metric_freq_hours=self._metric_freq_hours, now=now)
        except psycopg.Error as error:
            if is_servers_fault(error):
                raise
            raise MetricsError(
                f"the metrics cannot be written ({type(error).__name__})",
                hint="run 'python manage.py migrate'; nothing was applied without its metrics",
            ) from None
        if effects:
            add_to_minute(self._connection, effects, now=now)
        if self._run_id is not None and effects:
            records = sum(effect.counts.records for effect in effects.values())
            add_to_run(self._connection, self._run_id, records=records)


@dataclass(frozen=True, slots=True)
class _Done:
    """What a batch has come to when all rows are in. ``failed``: the tables that stay where they are;
    ``skipped``: the records that were left out."""

    prepared: PreparedBatch
    advance: Advance
    checkpoints: Mapping[TableName, TableCheckpoint]
    effects: Mapping[TableName, Effect]
    failed: Mapping[TableName, SyncError]
    skipped: Mapping[TableName, Mapping[Skip, SyncError | None]]
    now: dt.datetime


class _NotQuickError(Exception):
    """Something is not as it mostly is: the batch must be applied step by step."""


class _AlteredError(Exception):
    """A table is not what it was when the batch was planned."""


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


def _leave_out_if_told(checkpoint: TableCheckpoint, error: SyncError) -> None:
    """Raise _SkippedError where an operator has said to skip the record that *error* is about."""
    for skip in checkpoint.skips:
        if skip.is_at(error.file, error.line):
            raise _SkippedError(checkpoint.table, skip, error) from error


def _used_skips(
    checkpoint: TableCheckpoint, prepared: PreparedBatch, left_out: Mapping[Skip, SyncError | None]
) -> dict[Skip, SyncError | None]:
    """Return the skips of *checkpoint* that this batch has used: the records that it left out, each with its
    error, and the lines of no table that an operator has said to skip."""
    unreadable = prepared.shares.get(NO_TABLE)
    places = [(located.file, located.line) for located in unreadable.records] if unreadable else []
    used = dict(left_out)
    for skip in checkpoint.skips:
        if any(skip.is_at(file, line) for file, line in places):
            used.setdefault(skip, None)
    return used


def _parents_first(shares: Mapping[TableName, TableShare]) -> list[TableName]:
    return parents_first(
        {
            table: share.plan.schema.parents if isinstance(share.plan, TablePlan) else frozenset()
            for table, share in shares.items()
        }
    )
