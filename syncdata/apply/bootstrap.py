"""One pass over all tables: those that have begun go on, and new ones begin with their newest good snapshot.

Knows snapshots, cycles and which table waits for which; knows nothing of the daemon that runs it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from syncdata.apply.context import Context
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.snapshots import find_snapshots
from syncdata.apply.load import load_newest
from syncdata.apply.position import START, Advance
from syncdata.apply.progress import Progress
from syncdata.apply.result import CycleResult
from syncdata.apply.resync import complete, where_the_others_stand
from syncdata.apply.sink import DaemonSink, Outcome, Purpose, Sink
from syncdata.apply.state.checkpoints import TableCheckpoint
from syncdata.archive.archive import SnapshotFile
from syncdata.changes.names import TableName
from syncdata.errors import ApplyError, ArchiveConnectionError, ParseError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped

logger = logging.getLogger(__name__)


class RequestedError(Exception):
    """A request has come in. The pass ends early for it: between two batches, or two tables' loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over all whitelisted tables into *sink*; *result* grows as it commits.

    *watch* makes the watcher of each cycle's progress. *is_called* tells whether a request waits.
    *deadline*: monotonic seconds after which new tables and those behind wait for the next pass.
    """

    context: Context
    sink: DaemonSink[Any]
    result: CycleResult
    watch: Callable[[], Progress]
    is_called: Callable[[], bool]
    deadline: float | None = None

    def run(self) -> None:
        """Bring all tables on. Tables that have begun go first: they must not grow stale while a new table's
        snapshot is loaded. Then the new ones begin, and go on with the others.

        Raises RequestedError, CheckpointMovedError, and SyncError when it cannot go on.
        """
        checkpoints = self._checkpoints()
        new = {checkpoint.table for checkpoint in checkpoints if checkpoint.position == START}
        try:
            snapshots = find_snapshots(self.context.archive, new, stop=self.context.stop)
        except ReadingStopped:
            return
        self._advance([checkpoint for checkpoint in checkpoints if checkpoint.table not in snapshots])
        if not snapshots:
            return
        bad_snapshots = self._begin_all(snapshots, {c.table: c.error for c in checkpoints})
        # Tables that were added or cleared meanwhile begin with the next cycle, which looks for snapshots.
        from_files = new - snapshots.keys() | bad_snapshots.keys()
        self._advance(self._going_on(from_files), bad_snapshots)

    def _advance(
        self,
        checkpoints: Sequence[TableCheckpoint],
        bad_snapshots: Mapping[TableName, ParseError] | None = None,
    ) -> None:
        """Run a cycle for the tables of *checkpoints*."""
        cycle = Cycle(
            self.context.archive,
            _InterruptibleSink(self.sink, self.is_called),
            limits=self.context.limits,
            progress=self.watch(),
            stop=self.context.stop,
            deadline=self.deadline,
            bad_snapshots=bad_snapshots,
            told=self.context.told,
        )
        try:
            cycle.run(checkpoints)
        finally:
            self.result.add(cycle.result)  # what was applied before it failed, too

    def _begin_all(
        self,
        snapshots: Mapping[TableName, Sequence[SnapshotFile]],
        reasons: Mapping[TableName, str | None],
    ) -> dict[TableName, ParseError]:
        """Let the tables of *snapshots* begin, until the time is up. Return, by table, the error of a newest
        snapshot that is broken. *reasons*: the errors that blocked the tables before."""
        bad_snapshots = {}
        for table in self.sink.parents_first(snapshots.keys()):
            if self.context.stop.is_set():
                break
            if self.is_called():
                raise RequestedError
            try:
                beginning = begin(self.context, self.sink, table, snapshots[table])
            except ReadingStopped:
                break
            if beginning.broken is not None:
                bad_snapshots[table] = beginning.broken
            self._note(table, beginning, reason_before=reasons.get(table))
            if self.deadline is not None and time.monotonic() > self.deadline:
                break
        return bad_snapshots

    def _note(self, table: TableName, beginning: Beginning, *, reason_before: str | None) -> None:
        if beginning.error is not None:
            extra = beginning.error.fields | {"table": str(table)}
            self.context.told.trouble(logger, beginning.error, f"table {table}", extra=extra)
            self.sink.block({table: None}, beginning.error, start=START)
            self.result.note_blocked(table, beginning.error, reason_before=reason_before)
            self.result.failed += 1
        elif beginning.result is not None:
            logger.info("%s begins with its newest snapshot", table)
            self.result.add(beginning.result)

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
    context: Context, sink: DaemonSink[Any], table: TableName, snapshots: Sequence[SnapshotFile]
) -> Beginning:
    """Load the newest good one of *snapshots* into *table*, which stands at the archive's beginning.

    Its checkpoint, an audit row and the run's counts commit with the rows. Where active foreign keys tie it
    to other tables, its rows are brought to where those stand before readers see them. Raises ApplyError
    when the sink itself fails, ArchiveConnectionError, CheckpointMovedError when the table has begun
    meanwhile, and ReadingStopped. Any other error concerns this table alone, and is returned.
    """
    started = time.monotonic()
    beginning = Beginning()
    try:
        with sink.open_rebuild(table, Purpose(action="snapshot", only_from=START)) as rows:
            loaded = load_newest(context, rows, table, snapshots)
            beginning.broken = loaded.broken
            if loaded.file is None:
                return beginning
            until = None
            if rows.must_fit_others:
                until = where_the_others_stand(sink.checkpoints(), table, counts_paused=True)
            until = until or loaded.group.position
            beginning.result = complete(context, rows, loaded, until=until, started=started)
    except SyncError as error:
        if not _is_the_tables_own(error):
            raise
        beginning.error = error
    return beginning


def _is_the_tables_own(error: SyncError) -> bool:
    """Tell whether *error* concerns the loaded table alone, not the archive or the sink itself."""
    if isinstance(error, ApplyError):
        return error.table is not None
    return not isinstance(error, ArchiveConnectionError)
