"""A resync: gives one table new rows from the archive. Its steps also begin new tables (bootstrap.py).

Both start from the newest good snapshot and replay what committed later. Readers see the old rows or the new
ones, never an empty or half-built table; after a failure the old rows are still there. Knows snapshots, the
shadow, and the cycle that fills it; knows nothing of who asks for it, or of how rows are written.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply.context import Context
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.snapshots import find_snapshots
from syncdata.apply.load import Loaded, load_newest
from syncdata.apply.position import START, Position
from syncdata.apply.result import Activity, CycleResult
from syncdata.apply.sink import DaemonSink, Purpose, Rebuild, patiently
from syncdata.apply.state.audit import log_action
from syncdata.apply.state.checkpoints import TableCheckpoint
from syncdata.apply.state.queries import read_tables
from syncdata.apply.whitelist import parse_all
from syncdata.changes.names import TableName
from syncdata.errors import ResyncError, SchemaError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped

logger = logging.getLogger(__name__)


def resync(context: Context, open_sink: Callable[[], DaemonSink[Any]], table: TableName) -> CycleResult:
    """Rebuild *table* from its newest snapshot, else from the first change file, up to the position of the
    other tables, or to the end.

    Its checkpoint and an audit row commit with the rows. Raises ResyncError; the old rows remain.
    """
    started = time.monotonic()
    try:
        sink = open_sink()
        # Paused tables do not count: one may stand far back, and readers would see this table go back to it.
        until = where_the_others_stand(sink.checkpoints(), table, counts_paused=False)
        snapshots = find_snapshots(context.archive, [table], stop=context.stop).get(table, [])
        purpose = Purpose(action="resync", requested_by=context.requested_by)
        with rebuilding(context, sink, table, purpose) as rows:
            loaded = load_newest(context, rows, table, snapshots)
            return complete(context, rows, loaded, until=until, started=started)
    except ReadingStopped:
        raise _not_resynced(table, ResyncError("interrupted")) from None
    except SyncError as error:
        raise _not_resynced(table, error) from error


def complete(
    context: Context, rows: Rebuild[Any], loaded: Loaded, *, until: Position | None, started: float
) -> CycleResult:
    """Replay what follows *loaded* up to *until*, or to the end; let *rows* take the place of the table's.

    Returns what all of it has done since *started*, in monotonic seconds. Raises ResyncError when the archive
    ends before *until* or holds nothing, CheckpointMovedError, and ReadingStopped.
    """
    result = _replay(context, rows, loaded, until)
    (table,) = loaded.group.tables
    position = loaded.group.position_of(table)
    patiently(
        lambda: rows.exchange(
            position,
            counts=result.counts,
            reference=loaded.file or position.file,
            now=context.clock(),
            duration_ms=round((time.monotonic() - started) * 1000),
            is_whole=loaded.file is not None or result.counts.truncated > 0,
        ),
        stop=context.stop,
    )
    return result


@contextmanager
def rebuilding(
    context: Context, sink: DaemonSink[Any], table: TableName, purpose: Purpose
) -> Iterator[Rebuild[Any]]:
    """Open a rebuild of *table*; wait, with a limit, while others hold a lock on it."""
    with ExitStack() as stack:
        yield patiently(lambda: stack.enter_context(sink.open_rebuild(table, purpose)), stop=context.stop)


def _replay(context: Context, rows: Rebuild[Any], loaded: Loaded, until: Position | None) -> CycleResult:
    """Apply the change files after what is *loaded* to *rows*; return what both have done."""
    group = loaded.group
    cycle = Cycle(
        context.archive,
        rows,
        limits=context.limits,
        progress=context.progress,
        stop=context.stop,
        bad_snapshots={} if loaded.broken is None else dict.fromkeys(group.tables, loaded.broken),
    )
    result = cycle.result
    if loaded.file is not None:
        result.files_processed += 1
        result.counts.add(loaded.counts)
        for table in group.tables:
            result.activity.setdefault(table, Activity()).add(loaded.counts, file=loaded.file)
    is_there = until is not None and group.position.has_reached(until)
    files = [] if is_there else cycle.discover(since=group.position.file or None)
    if until is not None:
        files = [file for file in files if (file.stem, False, 0) < until.order]
    cycle.advance(group, files, until=until)
    if context.stop.is_set():
        raise ReadingStopped
    (table,) = group.tables
    is_short = until is not None and not group.position.has_reached(until)
    if is_short or group.position == START:
        raise ResyncError(
            "the archive ends before the position of the other tables",
            hint="bring the missing change files back, or see that it is the right archive; where they are"
            f" gone for good, take a snapshot at production (archive_changes --snapshot {table.argument})",
        )
    result.position = group.position
    return result


def where_the_others_stand(
    checkpoints: Sequence[TableCheckpoint], table: TableName, *, counts_paused: bool
) -> Position | None:
    """Return the farthest checkpoint of the other tables, so that this one joins them; None without any."""
    positions = [
        c.position
        for c in checkpoints
        if c.table != table and c.position.file and (counts_paused or not c.is_paused)
    ]
    return max(positions, key=lambda position: position.order, default=None)


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


def require_whitelisted(connection: Connection[Any], table: TableName) -> None:
    """Raises ResyncError unless *table* is whitelisted, and psycopg.Error."""
    if table not in parse_all(info.table_name for info in read_tables(connection)):
        raise ResyncError(
            "the table is not whitelisted",
            hint=f"run 'python manage.py add_tables {table.argument}'",
            table=str(table),
        )


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
