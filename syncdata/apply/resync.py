"""A resync: gives tables new rows from the archive. Its steps also begin new tables (bootstrap.py).

Both start from the newest good snapshot and replay what committed later. Readers see the old rows or the new
ones, never an empty or half-built table; after a failure the old rows are still there. Knows snapshots, the
shadow, and the cycle that fills it; knows nothing of who asks for it, or of how rows are written.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply.context import Context
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.groups import Group, group_by_position
from syncdata.apply.feed.snapshots import find_snapshots
from syncdata.apply.load import Loaded, load_newest
from syncdata.apply.position import START, Position
from syncdata.apply.result import Activity, CycleResult
from syncdata.apply.sink import DaemonSink, Purpose, Rebuild, patiently
from syncdata.apply.state.audit import log_action
from syncdata.apply.state.checkpoints import TableCheckpoint
from syncdata.apply.state.queries import read_tables
from syncdata.apply.whitelist import parse_all
from syncdata.archive.archive import ChangeFile
from syncdata.changes.names import TableName
from syncdata.errors import ApplyError, ArchiveConnectionError, ResyncError, SchemaError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped

logger = logging.getLogger(__name__)

_MOST_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilding:
    """A table whose new rows have been begun: ``rows``, with what is ``loaded``. ``started``: in monotonic
    seconds."""

    table: TableName
    rows: Rebuild[Any]
    loaded: Loaded
    started: float


def resync(
    context: Context, open_sink: Callable[[], DaemonSink[Any]], tables: Sequence[TableName]
) -> dict[TableName, CycleResult | ResyncError]:
    """Rebuild *tables*, each from its newest snapshot, else from the first change file, up to the position of
    the other tables, or to the end, which may be that of the context. They go through the change files
    together, so these are read once.

    The checkpoint and an audit row commit with the rows of each table. Returns, by table, what was done, or
    the error that has left the old rows there.
    """
    started = time.monotonic()
    done: dict[TableName, CycleResult | ResyncError] = {}
    failure: SyncError = ResyncError("interrupted")
    try:
        sink = open_sink()
        # A whitelisted table has a checkpoint from now on, whatever happens.
        paused = {checkpoint.table for checkpoint in sink.checkpoints() if checkpoint.is_paused}
        snapshots = find_snapshots(context.archive, tables, stop=context.stop)
        sink.begin_file(tables)
        with ExitStack() as opened:
            begun = []
            for table in tables:
                purpose = Purpose(
                    action="resync", requested_by=context.requested_by, ends_pause=table in paused
                )
                try:
                    with ExitStack() as stack:
                        rows = stack.enter_context(rebuilding(context, sink, table, purpose))
                        loaded = load_newest(context, rows, table, snapshots.get(table, []))
                        if context.needs_snapshot and loaded.file is None:
                            raise _without_snapshot(table)
                        if context.end is not None and loaded.file is None and loaded.broken is not None:
                            raise loaded.broken
                        opened.push(stack.pop_all())
                except SyncError as error:
                    if not is_tables_own(error):
                        raise
                    done[table] = _not_resynced(table, error)
                else:
                    begun.append(Rebuilding(table=table, rows=rows, loaded=loaded, started=started))
            goal = partial(_where_to_go, sink, tables)
            if (end := context.end) is not None:
                goal = partial(_stay_at, end.position)
            for table, outcome in complete(context, sink, begun, goal=goal):
                done[table] = _not_resynced(table, outcome) if isinstance(outcome, SyncError) else outcome
    except ReadingStopped:
        pass
    except SyncError as error:
        failure = error
    return {table: done.get(table) or _not_resynced(table, failure) for table in tables}


def complete(
    context: Context,
    sink: DaemonSink[Any],
    begun: Sequence[Rebuilding],
    *,
    goal: Callable[[], Position | None],
) -> Iterator[tuple[TableName, CycleResult | SyncError]]:
    """Replay what follows the rows of *begun* up to *goal*, or to the end, and let them take their places.

    Yields each table with what all of it has done, or with the error that is its own: a ResyncError when the
    archive ends before the goal or holds nothing. Raises CheckpointMovedError, ReadingStopped, and SyncError
    when archive or sink fail.
    """
    together = sink.together({each.table: each.rows for each in begun})
    broken = {each.table: each.loaded.broken for each in begun if each.loaded.broken is not None}
    cycle = Cycle(
        context.archive,
        together,
        limits=context.limits,
        progress=context.progress,
        stop=context.stop,
        bad_snapshots=broken,
    )
    groups = group_by_position({each.table: each.loaded.group.position_of(each.table) for each in begun})
    until = _follow(context, cycle, groups, goal)
    group_of = {table: group for group in groups for table in group.tables}
    for each in begun:
        try:
            if (failure := together.failed.get(each.table)) is not None:
                raise failure
            yield each.table, _exchange(context, cycle.result, each, group_of[each.table], until)
        except SyncError as error:
            if not is_tables_own(error):
                raise
            yield each.table, error


def _follow(
    context: Context, cycle: Cycle, groups: Sequence[Group], goal: Callable[[], Position | None]
) -> Position | None:
    """Replay to *goal*, which may move on meanwhile, for other tables go on; return where it was in the end.

    Readers would see the tables go back by as much as is left, so it is followed until little can be.
    """
    until = goal()
    for rounds_left in reversed(range(_MOST_ROUNDS)):
        replay(cycle, groups, until)
        if context.stop.is_set():
            raise ReadingStopped
        later = goal()
        if not rounds_left or until is None or later is None or until.has_reached(later):
            break
        until = later
    return until


def replay(cycle: Cycle, groups: Sequence[Group], until: Position | None) -> None:
    """Apply the change files to *groups*, those farthest behind first, up to *until*.

    They go up to those before them, and join them: so each file is read once.
    """
    files: list[ChangeFile] = []
    if groups and not (until is not None and groups[0].position.has_reached(until)):
        files = cycle.discover(since=groups[0].position.file or None)
    for number, group in enumerate(groups):
        for ahead in groups[number + 1 :]:
            # Those beyond the end stay there: the other tables come to them.
            if not group.tables or (until is not None and ahead.position.has_reached(until)):
                break
            if not cycle.advance(group, files, until=ahead.position):
                break
            if group.is_with(ahead):
                ahead.watermarks |= group.watermarks
                group.watermarks = {}
        if group.tables:
            is_there = until is not None and group.position.has_reached(until)
            cycle.advance(group, [] if is_there else files, until=until)


def _exchange(
    context: Context, replayed: CycleResult, each: Rebuilding, group: Group, until: Position | None
) -> CycleResult:
    """Let the new rows take the place of the table's old ones; return what all of it has done."""
    is_short = until is not None and not group.position.has_reached(until)
    if is_short or group.position == START:
        goal = "the position of the other tables" if context.end is None else context.end.point.text
        snapshot = f"archive_changes --snapshot {each.table.argument}"
        raise ResyncError(
            f"the archive ends before {goal}",
            hint="bring the missing change files back, or see that it is the right archive; where they are"
            f" gone for good, take a snapshot at production ({snapshot})",
        )
    loaded, position = each.loaded, group.position_of(each.table)
    activity = Activity()
    if loaded.file is not None:
        activity.add(loaded.counts, file=loaded.file)
    if (changes := replayed.activity.get(each.table)) is not None:
        activity.join(changes)
    patiently(
        lambda: each.rows.exchange(
            position,
            counts=activity.counts,
            reference=loaded.file or position.file,
            now=context.clock(),
            duration_ms=round((time.monotonic() - each.started) * 1000),
            is_whole=loaded.file is not None or activity.counts.truncated > 0,
        ),
        stop=context.stop,
    )
    return CycleResult(
        files_processed=replayed.files_processed + (loaded.file is not None),
        counts=activity.counts,
        activity={each.table: activity},
        skipped=replayed.skipped,
        last_lsn=replayed.last_lsn,
        position=group.position,
        waiting_for=replayed.waiting_for,
    )


def is_tables_own(error: SyncError) -> bool:
    """Tell whether *error* concerns the rebuilt table alone, not the archive or the sink itself."""
    if isinstance(error, ApplyError):
        return error.table is not None
    return not isinstance(error, ArchiveConnectionError)


@contextmanager
def rebuilding(
    context: Context, sink: DaemonSink[Any], table: TableName, purpose: Purpose
) -> Iterator[Rebuild[Any]]:
    """Open a rebuild of *table*; wait, with a limit, while others hold a lock on it."""
    with ExitStack() as stack:
        yield patiently(lambda: stack.enter_context(sink.open_rebuild(table, purpose)), stop=context.stop)


def _where_to_go(sink: DaemonSink[Any], tables: Sequence[TableName]) -> Position | None:
    """Return the farthest checkpoint of the tables that stay, or else of *tables* themselves; None for the
    archive's end, to which a table that is alone goes.

    Paused tables do not count: one may stand far back, and readers would see the others go back to it.
    """
    checkpoints = sink.checkpoints()
    stays = where_the_others_stand(checkpoints, tables, counts_paused=False)
    return stays or (
        where_the_others_stand(checkpoints, (), counts_paused=False) if len(tables) > 1 else None
    )


def _stay_at(position: Position) -> Position | None:
    return position


def where_the_others_stand(
    checkpoints: Sequence[TableCheckpoint], tables: Collection[TableName], *, counts_paused: bool
) -> Position | None:
    """Return the farthest checkpoint of tables that are not among *tables*, so that these join them; None
    without any."""
    positions = [
        c.position
        for c in checkpoints
        if c.table not in tables and c.position.file and (counts_paused or not c.is_paused)
    ]
    return max(positions, key=lambda position: position.order, default=None)


def _without_snapshot(table: TableName) -> ResyncError:
    return ResyncError(
        "the archive has no good snapshot of it, and rows that are older than the archive would be lost",
        hint=f"run 'archive_changes --snapshot {table.argument}' at production",
    )


def _not_resynced(table: TableName, error: SyncError) -> ResyncError:
    # Without a file, it is about the table as such: it is not there, or is none that has rows of its own.
    has_rows = not isinstance(error, SchemaError) or error.file is not None
    still = ", its old rows are still there" if has_rows else ""
    again = f"run 'python manage.py resync {table.argument}' again"
    return ResyncError(
        f"not rebuilt{still}: {error.message}",
        hint=f"{error.hint}; then {again}" if error.hint else again,
        table=str(table),
        file=error.file,
        line=error.line,
    )


def refuse_unknown(connection: Connection[Any], tables: Sequence[TableName]) -> dict[TableName, ResyncError]:
    """Return the errors of those of *tables* that are not whitelisted. Raises psycopg.Error."""
    whitelist = parse_all(info.table_name for info in read_tables(connection))
    return {
        table: ResyncError(
            "the table is not whitelisted",
            hint=f"run 'python manage.py add_tables {table.argument}'",
            table=str(table),
        )
        for table in tables
        if table not in whitelist
    }


def audit_failure(
    connect: Callable[[], Connection[Any]], table: TableName, error: ResyncError, requested_by: str | None
) -> None:
    """Audit that *table* was not rebuilt, over a new connection where the old one is what failed."""
    try:
        log_action(
            connect(),
            table,
            action="resync",
            reference=error.file or "",
            now=dt.datetime.now(dt.UTC),
            error=error,
            requested_by=requested_by,
        )
    except (psycopg.Error, SyncError) as log_error:
        logger.warning("the failed resync is not in the audit log: %s", type(log_error).__name__)
