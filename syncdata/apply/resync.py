"""Give one table new rows from the archive: a resync, and how a new table begins.

Both start from the newest good snapshot and replay what committed later. Readers see the old rows or
the new ones, never an empty or half-built table; whatever fails leaves the old rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply.context import Tools
from syncdata.apply.cycle import Cycle
from syncdata.apply.feed.groups import Group
from syncdata.apply.feed.snapshots import find_snapshots
from syncdata.apply.position import START, Position
from syncdata.apply.postgres.connection import prepare_session, translate
from syncdata.apply.postgres.shadow import ShadowTarget, drop_shadow
from syncdata.apply.result import Activity, CycleResult
from syncdata.apply.state.checkpoints import open_checkpoints
from syncdata.archive.archive import SnapshotFile
from syncdata.changes.names import TableName
from syncdata.errors import ResyncError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped


def rebuild(tools: Tools, table: TableName) -> CycleResult:
    """Rebuild *table* from its newest snapshot, else the first change file, to where the other tables
    stand, or to the end.

    Its checkpoint and an audit row commit with the rows. Raises ResyncError; the old rows remain.
    """
    started = time.monotonic()
    try:
        prepare_session(tools.connection)
        # A paused table may stand far back for long, and readers would see this one go back to it.
        until = where_the_others_stand(tools.connection, table, counts_paused=False)
        snapshots = find_snapshots(tools.archive, [table], stop=tools.stop).get(table, [])
        shadow = ShadowTarget(tools.connection, table)
        group = load_newest(tools, shadow, table, snapshots)
        result = replay(tools, shadow, group, until)
        position = group.position_of(table)
        shadow.exchange(
            position,
            action="resync",
            now=tools.clock(),
            duration_ms=ms_since(started),
            requested_by=tools.requested_by,
        )
        return result
    except ReadingStopped:
        raise _not_rebuilt(table, ResyncError("interrupted")) from None
    except psycopg.Error as error:
        raise _not_rebuilt(table, translate(error)) from error
    except SyncError as error:
        raise _not_rebuilt(table, error) from error
    finally:
        drop_shadow(tools.connection)


def load_newest(
    tools: Tools, shadow: ShadowTarget, table: TableName, snapshots: Sequence[SnapshotFile]
) -> Group:
    position = shadow.load_newest(
        tools.archive, snapshots, limits=tools.limits, progress=tools.progress, stop=tools.stop
    )
    return Group(position, {table: position.commit_lsn})


def replay(tools: Tools, shadow: ShadowTarget, group: Group, until: Position | None) -> CycleResult:
    """Apply the change files after *group* up to *until*, or to their end, to *shadow*.

    Raises ResyncError when the archive ends before *until* or holds nothing, and ReadingStopped.
    """
    cycle = Cycle(
        tools.archive,
        shadow,
        limits=tools.limits,
        progress=tools.progress,
        stop=tools.stop,
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
    if tools.stop.is_set():
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


def _not_rebuilt(table: TableName, error: SyncError) -> ResyncError:
    return ResyncError(
        f"not rebuilt, its old rows are still there: {error.message}",
        hint=error.hint,
        table=str(table),
        file=error.file,
        line=error.line,
    )


def ms_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
