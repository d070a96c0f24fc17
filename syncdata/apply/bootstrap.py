"""One pass over all tables: those that have begun go on, and new ones begin with their newest good snapshot.

Knows snapshots, cycles and which table waits for which; knows nothing of the daemon that runs it.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from syncdata.apply.context import Context
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.snapshots import find_snapshots
from syncdata.apply.hands import Hand, OpenHand, side_by_side
from syncdata.apply.load import load_newest
from syncdata.apply.position import START, Advance, Position
from syncdata.apply.progress import Progress
from syncdata.apply.result import CycleResult
from syncdata.apply.resync import (
    Rebuilding,
    complete,
    is_tables_own,
    rebuilding,
    where_the_others_stand,
)
from syncdata.apply.sink import DaemonSink, Outcome, Purpose, Sink
from syncdata.apply.state.checkpoints import TableCheckpoint
from syncdata.apply.verifying import Verifying
from syncdata.archive.archive import SnapshotFile
from syncdata.changes.filenames import file_time, parse_stamp
from syncdata.changes.names import TableName
from syncdata.errors import ParseError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped

logger = logging.getLogger(__name__)

_AHEAD = dt.timedelta(seconds=5)
# When a rebuild from the same snapshot is tried again: what kept it, such as a lock, may have gone.
_TRY_AGAIN_S = 3600.0
# How long new tables may be begun in a pass, even where that leaves the others behind the interval. They go
# on from their snapshots together: with few of them a pass, the same change files are read again and again.
_LEAST_LOADING_S = 5.0


class RequestedError(Exception):
    """A request has come in. The pass ends early for it: between two batches, or two tables' loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over all whitelisted tables into *sink*; *result* grows as it commits.

    *watch* makes the watcher of each cycle's progress. *is_called* tells whether a request waits. *jobs*:
    how many tables are loaded at once, all but one by hands of *open_hand*. *deadline*: monotonic seconds
    after which tables behind wait for the next pass, and new ones, too, when they have had their share.
    *tried*: by table, the newest snapshot when it was rebuilt for lacking rows, and the monotonic seconds
    then; the run keeps it, and waits for another snapshot, or for an hour.
    """

    context: Context
    sink: DaemonSink[Any]
    result: CycleResult
    watch: Callable[[], Progress]
    is_called: Callable[[], bool]
    open_hand: OpenHand
    jobs: int = 1
    deadline: float | None = None
    started_s: float = field(default_factory=time.monotonic)
    tried: dict[TableName, tuple[str, float]] = field(default_factory=dict)

    def run(self) -> None:
        """Bring all tables on. Tables that have begun go first: they must not grow stale while a new table's
        snapshot is loaded. Then the new ones begin, and go on with the others. Last, tables whose rows are
        not production's are rebuilt, once there is a snapshot that settles it.

        Raises RequestedError, CheckpointMovedError, and SyncError when it cannot go on.
        """
        checkpoints, replaced = self._examine()
        new = {checkpoint.table for checkpoint in checkpoints if not checkpoint.has_begun}
        try:
            snapshots = find_snapshots(self.context.archive, new | replaced.keys(), stop=self.context.stop)
        except ReadingStopped:
            return
        self._hold(
            {c: replaced[c.table] for c in checkpoints if c.table in replaced.keys() - snapshots.keys()}
        )
        beginning = new & snapshots.keys() | replaced.keys()
        self._advance([checkpoint for checkpoint in checkpoints if checkpoint.table not in beginning])
        if snapshots:
            self._begin_new(new, snapshots, checkpoints, replaced)
        self._rebuild_lacking()

    def _begin_new(
        self,
        new: Set[TableName],
        snapshots: Mapping[TableName, Sequence[SnapshotFile]],
        checkpoints: Sequence[TableCheckpoint],
        replaced: Mapping[TableName, SyncError],
    ) -> None:
        """Let the tables of *snapshots* begin, and go on with the others."""
        bad_snapshots = self._begin_all(snapshots, {c.table: c for c in checkpoints}, replaced)
        # Tables that were added or cleared meanwhile begin with the next cycle, which looks for snapshots.
        from_files = new - snapshots.keys() | bad_snapshots.keys()
        self._advance(self._going_on(from_files), bad_snapshots)

    def _rebuild_lacking(self) -> None:
        """Rebuild tables that lack rows, or whose rows may differ, from snapshots that settle it. With an end
        to the work, that is left to a time without.

        Test: test_a_table_whose_rows_changed_without_a_record_heals_by_itself.
        """
        lacking = {c.table: c for c in self._checkpoints() if c.has_begun and is_healed_by_snapshot(c)}
        if not lacking or self.context.end is not None or self.context.stop.is_set():
            return
        try:
            found = find_snapshots(self.context.archive, lacking.keys(), stop=self.context.stop)
        except ReadingStopped:
            return
        snapshots = {
            table: files
            for table, files in found.items()
            if self._is_due(table, files[0]) and settles(files[0], lacking[table], now=self.context.clock())
        }
        if not snapshots:
            return
        self._begin_all(snapshots, lacking, {})
        self._advance(self._going_on(()))

    def _is_due(self, table: TableName, newest: SnapshotFile) -> bool:
        name, tried_s = self.tried.get(table, ("", 0.0))
        return name != newest.name or time.monotonic() > tried_s + _TRY_AGAIN_S

    def _examine(self) -> tuple[list[TableCheckpoint], dict[TableName, SyncError]]:
        """Look at the tables before any record goes there. Return the checkpoints of those that can take
        rows, and the errors of those that are others than the ones that their rows went to."""
        checkpoints = self._checkpoints()
        found = self.sink.examine(checkpoints)
        self._hold({c: found.unfit[c.table] for c in checkpoints if c.table in found.unfit})
        return [c for c in checkpoints if c.table not in found.unfit], found.replaced

    def _hold(self, errors: Mapping[TableCheckpoint, SyncError]) -> None:
        """Block the tables of those checkpoints where they stand."""
        for checkpoint, error in errors.items():
            table, position = checkpoint.table, checkpoint.position
            if str(error) != checkpoint.error:
                logger.error("%s", error, extra=error.fields)
            self.sink.block({table: position.commit_lsn}, error, start=position)
            self.result.note_blocked(table, error, reason_before=checkpoint.error)

    def _advance(
        self,
        checkpoints: Sequence[TableCheckpoint],
        bad_snapshots: Mapping[TableName, ParseError] | None = None,
    ) -> None:
        """Run a cycle for the tables of *checkpoints*. Those beyond the end of the work stay there: a paused
        table may be resumed."""
        context = self.context
        until = None
        if (end := context.end) is not None:
            until = end.position
            checkpoints = [c for c in checkpoints if not end.is_passed_by(c.position)]
        verifying = None
        if context.budget is not None:
            verifying = Verifying(self.sink, context.budget, stop=context.stop)
        cycle = Cycle(
            context.archive,
            _InterruptibleSink(self.sink, self.is_called),
            limits=context.limits,
            progress=self.watch(),
            stop=context.stop,
            deadline=self.deadline,
            bad_snapshots=bad_snapshots,
            told=context.told,
            verifying=verifying,
        )
        try:
            cycle.run(checkpoints, until=until)
        finally:
            self.result.add(cycle.result)  # what was applied before it failed, too

    def _begin_all(
        self,
        snapshots: Mapping[TableName, Sequence[SnapshotFile]],
        checkpoints: Mapping[TableName, TableCheckpoint],
        replaced: Mapping[TableName, SyncError],
    ) -> dict[TableName, ParseError]:
        """Let the tables of *snapshots* begin, or begin anew, until the time is up.

        Return, by table, the error of a new table's newest snapshot where that is broken. *checkpoints*:
        where they stood before the pass. *replaced*: the errors of those that were made anew.
        """
        bad_snapshots = {}
        positions = {checkpoint.table: checkpoint.position for checkpoint in self.sink.checkpoints()}

        def load(hand: Hand, table: TableName) -> Beginning:
            start = positions.get(table, START)
            return begin(hand.context, hand.sink, table, snapshots[table], start=start)

        for table, beginning in self._loads(snapshots.keys(), load):
            before = checkpoints[table]
            if not before.has_begun:
                if beginning.broken is not None:
                    bad_snapshots[table] = beginning.broken
                self._note(before, beginning)
            elif table in replaced:
                self._note(before, beginning, otherwise=replaced[table])
            else:
                self._note_rebuild(table, beginning)
                self.tried[table] = snapshots[table][0].name, time.monotonic()
        return bad_snapshots

    def _loads(
        self, tables: Collection[TableName], load: Callable[[Hand, TableName], Beginning]
    ) -> Iterator[tuple[TableName, Beginning]]:
        """Load *tables*, side by side as far as they may; yield what each has come to, until the time is up.

        Raises RequestedError, between two tables' loads.
        """
        own = Hand(context=self.context, sink=self.sink)
        left = set(tables)
        deadline = loading_deadline(self.deadline, started_s=self.started_s, now_s=time.monotonic())

        def may_begin() -> bool:
            is_late = len(left) < len(tables) and deadline is not None and time.monotonic() > deadline
            return not (is_late or self.context.stop.is_set() or self.is_called())

        try:
            for turn in self.sink.turns(tables):
                for loaded in side_by_side(
                    own, self.open_hand, turn, load, jobs=self.jobs, may_begin=may_begin
                ):
                    left.discard(loaded[0])
                    yield loaded
                if left and not self.context.stop.is_set() and self.is_called():
                    raise RequestedError
        except ReadingStopped:
            return

    def _note(
        self, before: TableCheckpoint, beginning: Beginning, *, otherwise: SyncError | None = None
    ) -> None:
        """Note how a table has begun; block it when it cannot, or by *otherwise* when no snapshot is good."""
        table, error = before.table, beginning.error
        if beginning.result is None and error is None:
            error = otherwise
        if error is not None:
            extra = error.fields | {"table": str(table)}
            self.context.told.trouble(logger, error, f"table {table}", extra=extra)
            self.sink.block({table: before.position.commit_lsn}, error, start=before.position)
            self.result.note_blocked(table, error, reason_before=before.error)
            self.result.failed += 1
        elif beginning.result is not None:
            logger.info("%s begins with its newest snapshot", table)
            self.result.add(beginning.result)

    def _note_rebuild(self, table: TableName, beginning: Beginning) -> None:
        """Note how a table that lacks older rows was rebuilt. Where it was not, its rows are as before."""
        if beginning.result is not None:
            logger.info("%s has all its rows now: it is rebuilt from its newest snapshot", table)
            self.result.blocked.pop(table, None)
            self.result.newly_blocked.pop(table, None)
            if not self.result.blocked:
                self.result.failed = 0  # Test: test_a_table_that_heals_in_its_cycle_did_not_fail.
            self.result.add(beginning.result)
            return
        logger.warning(
            "%s is not rebuilt from its newest snapshot, its rows are as before: %s",
            table,
            beginning.error or beginning.broken,
        )

    def _going_on(self, from_files: Collection[TableName]) -> list[TableCheckpoint]:
        """Return the checkpoints of tables that have begun, and of *from_files*, which begin with files."""
        return [
            checkpoint
            for checkpoint in self._checkpoints()
            if checkpoint.table not in self.result.blocked
            and (checkpoint.position != START or checkpoint.table in from_files)
        ]

    def _checkpoints(self) -> list[TableCheckpoint]:
        return [checkpoint for checkpoint in self.sink.checkpoints() if not checkpoint.is_paused]


def loading_deadline(deadline: float | None, *, started_s: float, now_s: float) -> float | None:
    """Return until when new tables may begin in a pass that began at *started_s* and ends at *deadline*, if
    ever. The first of them begins at *now_s*. All are monotonic seconds.

    They have as long as the pass has taken so far, and at least some seconds. Tests:
    test_new_tables_have_as_long_as_the_others, test_new_tables_begin_together_however_short_the_interval_is.
    """
    return None if deadline is None else max(deadline, now_s + max(_LEAST_LOADING_S, now_s - started_s))


def is_healed_by_snapshot(checkpoint: TableCheckpoint) -> bool:
    """Tell whether a rebuild from a newer snapshot gives the table its missing or other rows."""
    return (checkpoint.is_partial and not checkpoint.error) or any(mark.since for mark in checkpoint.marks)


def settles(snapshot: SnapshotFile, checkpoint: TableCheckpoint, *, now: dt.datetime) -> bool:
    """Tell whether *snapshot* may be newer than the change files that showed that rows may differ.

    Its rows alone can tell; the times in the names spare loading those that cannot be. The archiver gives a
    file a name ahead of its time where files come faster than names: a name of after *now* says nothing.
    Test: test_a_snapshot_may_settle_what_files_ahead_of_their_time_have_shown.
    """
    taken = parse_stamp(snapshot.stamp)
    shown = [moment for mark in checkpoint.marks if (moment := file_time(mark.since))]
    return taken is None or all(moment - _AHEAD <= taken or moment > now for moment in shown)


class _InterruptibleSink:
    """A sink that does not begin another batch when a request waits: it raises RequestedError."""

    def __init__(self, sink: Sink[Any], is_called: Callable[[], bool]) -> None:
        self._sink = sink
        self._is_called = is_called
        self.begin_file, self.prepare = sink.begin_file, sink.prepare
        self.block, self.unblock = sink.block, sink.unblock

    def apply(self, prepared: Any, advance: Advance) -> Outcome:
        if self._is_called():
            raise RequestedError
        return self._sink.apply(prepared, advance)


@dataclass(slots=True, kw_only=True)
class Beginning:
    """The outcome of a new table's beginning. ``result`` is None when none of its snapshots is good
    (``broken`` is the newest one's error), or when ``error`` kept the rows from being loaded."""

    result: CycleResult | None = None
    broken: ParseError | None = None
    error: SyncError | None = None


def begin(
    context: Context,
    sink: DaemonSink[Any],
    table: TableName,
    snapshots: Sequence[SnapshotFile],
    *,
    start: Position,
) -> Beginning:
    """Load the newest good one of *snapshots* into *table*, which stands at *start*.

    Its checkpoint, an audit row and the run's counts commit with the rows. Where active foreign keys tie it
    to other tables, its rows are brought to where those stand before readers see them; where it has begun
    already, at least to where it stands itself, for readers must not see it go back. Raises ApplyError
    when the sink itself fails, ArchiveConnectionError, CheckpointMovedError when the table has begun
    meanwhile, and ReadingStopped. Any other error concerns this table alone, and is returned.
    """
    started = time.monotonic()
    beginning = Beginning()
    try:
        purpose = Purpose(action="snapshot", only_from=start)
        with rebuilding(context, sink, table, purpose) as rows:
            loaded = load_newest(context, rows, table, snapshots)
            beginning.broken = loaded.broken
            if loaded.file is None:
                if context.end is not None:
                    beginning.error = loaded.broken  # Older rows than those of the change files are missing.
                return beginning
            until = max(start, loaded.group.position, key=lambda position: position.order)
            if rows.must_fit_others or start != START:
                others = where_the_others_stand(sink.checkpoints(), [table], counts_paused=start == START)
                until = max(until, others or until, key=lambda position: position.order)
            if context.end is not None:
                until = min(until, context.end.position, key=lambda position: position.order)
            begun = [Rebuilding(table=table, rows=rows, loaded=loaded, started=started)]
            ((_, outcome),) = complete(context, sink, begun, goal=lambda: until)
            if isinstance(outcome, SyncError):
                raise outcome
            beginning.result = outcome
    except SyncError as error:
        if not is_tables_own(error):
            raise
        beginning.error = error
    return beginning
