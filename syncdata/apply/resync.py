"""A resync: gives one table new rows from the archive. Its steps also begin new tables (bootstrap.py).

Both start from the newest good snapshot and replay what committed later. Readers see the old rows or the new
ones, never an empty or half-built table; after a failure the old rows are still there. Knows snapshots, the
shadow, and the cycle that fills it; knows nothing of who asks for it, or of how rows are written.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply.context import Context
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.groups import Group
from syncdata.apply.feed.snapshots import find_snapshots
from syncdata.apply.position import START, Position
from syncdata.apply.postgres.connection import prepare_session, translate
from syncdata.apply.postgres.shadow import ShadowTarget, drop_shadow
from syncdata.apply.result import Activity, CycleResult
from syncdata.apply.state.audit import log_action
from syncdata.apply.state.checkpoints import open_checkpoints
from syncdata.apply.state.queries import read_tables
from syncdata.apply.whitelist import parse_all
from syncdata.archive.archive import SnapshotFile
from syncdata.changes.names import TableName
from syncdata.errors import ResyncError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped

logger = logging.getLogger(__name__)


def resync(context: Context, table: TableName) -> CycleResult:
    """Rebuild *table* from its newest snapshot, else from the first change file, up to the position of the
    other tables, or to the end.

    Its checkpoint and an audit row commit with the rows. Raises ResyncError; the old rows remain.
    """
    started = time.monotonic()
    try:
        prepare_session(context.connection)
        # Paused tables do not count: one may stand far back, and readers would see this table go back to it.
        until = where_the_others_stand(context.connection, table, counts_paused=False)
        snapshots = find_snapshots(context.archive, [table], stop=context.stop).get(table, [])
        shadow = ShadowTarget(context.connection, table)
        group = load_newest(context, shadow, table, snapshots)
        result = replay(context, shadow, group, until)
        position = group.position_of(table)
        shadow.exchange(
            position,
            action="resync",
            now=context.clock(),
            duration_ms=ms_since(started),
            requested_by=context.requested_by,
        )
        return result
    except ReadingStopped:
        raise _not_resynced(table, ResyncError("interrupted")) from None
    except psycopg.Error as error:
        raise _not_resynced(table, translate(error)) from error
    except SyncError as error:
        raise _not_resynced(table, error) from error
    finally:
        drop_shadow(context.connection)


def load_newest(
    context: Context, shadow: ShadowTarget, table: TableName, snapshots: Sequence[SnapshotFile]
) -> Group:
    position = shadow.load_newest(
        context.archive, snapshots, limits=context.limits, progress=context.progress, stop=context.stop
    )
    return Group(position, {table: position.commit_lsn})


def replay(context: Context, shadow: ShadowTarget, group: Group, until: Position | None) -> CycleResult:
    """Apply the change files after *group* up to *until*, or to their end, to *shadow*.

    Raises ResyncError when the archive ends before *until* or holds nothing, and ReadingStopped.
    """
    cycle = Cycle(
        context.archive,
        shadow,
        limits=context.limits,
        progress=context.progress,
        stop=context.stop,
        bad_snapshots={} if shadow.broken is None else dict.fromkeys(group.tables, shadow.broken),
    )
    result = cycle.result
    if shadow.began_with is not None:
        result.files_processed += 1
        result.counts.add(shadow.counts)
        for table in group.tables:
            result.activity.setdefault(table, Activity()).add(shadow.counts, file=shadow.began_with)
    is_there = until is not None and group.position.has_reached(until)
    files = [] if is_there else cycle.discover(since=group.position.file or None)
    if until is not None:
        files = [file for file in files if (file.stem, False, 0) < until.order]
    cycle.advance(group, files, until=until)
    if context.stop.is_set():
        raise ReadingStopped
    is_short = until is not None and not group.position.has_reached(until)
    if is_short or group.position == START:
        raise ResyncError(
            "the archive ends before the position of the other tables",
            hint="bring the missing change files back; check archive_dir",
        )
    result.position = group.position
    return result


def where_the_others_stand(
    connection: Connection[Any], table: TableName, *, counts_paused: bool
) -> Position | None:
    """Return the farthest checkpoint of the other tables, so that this one joins them; None without any."""
    with connection.transaction():
        checkpoints = open_checkpoints(connection)
    positions = [
        c.position
        for c in checkpoints
        if c.table != table and c.position.file and (counts_paused or not c.is_paused)
    ]
    return max(positions, key=lambda position: position.order, default=None)


def _not_resynced(table: TableName, error: SyncError) -> ResyncError:
    return ResyncError(
        f"not rebuilt, its old rows are still there: {error.message}",
        hint=error.hint,
        table=str(table),
        file=error.file,
        line=error.line,
    )


def require_whitelisted(connection: Connection[Any], table: TableName) -> None:
    """Raises ResyncError unless *table* is whitelisted, and psycopg.Error."""
    if table not in parse_all(info.table_name for info in read_tables(connection)):
        raise ResyncError(
            "the table is not whitelisted",
            hint=f"run 'python manage.py add_tables {table}'",
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


def ms_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
