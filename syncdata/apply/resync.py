"""Give one table new rows from the archive: a resync, and how a new table begins.

Both start from the newest good snapshot and replay what committed later. Readers see the old rows or
the new ones, never an empty or half-built table; whatever fails leaves the old rows.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.apply.cycle import Activity, Cycle, CycleResult, NoProgress, Progress
from syncdata.apply.feed.groups import Group
from syncdata.apply.feed.snapshots import find_snapshots
from syncdata.apply.plan.batches import Limits
from syncdata.apply.postgres.shadow import ShadowTarget, drop_shadow
from syncdata.apply.postgres.target import prepare_session, translate
from syncdata.apply.postgres.writer import is_servers_fault
from syncdata.apply.state import checkpoints as ledger
from syncdata.apply.state.checkpoints import START, Position
from syncdata.archive.archive import Archive, SnapshotFile
from syncdata.changes.record import TableName
from syncdata.errors import ApplyError, ArchiveConnectionError, ParseError, ResyncError, SyncError
from syncdata.runtime.bounded_stream import ReadingStopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What both need, besides the table."""

    archive: Archive
    connection: Connection[Any]
    limits: Limits
    progress: Progress = field(default_factory=NoProgress)
    stop: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    run_id: int | None = None
    requested_by: str | None = None


@dataclass(slots=True, kw_only=True)
class Beginning:
    """How a new table began. ``result`` is None when none of its snapshots is good (``broken`` says why
    the newest is not) or when *error* kept it from being loaded."""

    result: CycleResult | None = None
    broken: ParseError | None = None
    error: SyncError | None = None


def rebuild(tools: Tools, table: TableName) -> CycleResult:
    """Rebuild *table* from its newest snapshot, else the first change file, to where the other tables
    stand, or to the end.

    Its checkpoint and an audit row commit with the rows. Raises ResyncError; the old rows remain.
    """
    started = time.monotonic()
    try:
        prepare_session(tools.connection)
        # A paused table may stand far back for long, and readers would see this one go back to it.
        until = _where_the_others_stand(tools.connection, table, counts_paused=False)
        snapshots = find_snapshots(tools.archive, [table], stop=tools.stop).get(table, [])
        shadow = ShadowTarget(tools.connection, table)
        group = _load_newest(tools, shadow, table, snapshots)
        result = _replay(tools, shadow, group, until)
        position = group.position_of(table)
        shadow.exchange(
            position,
            action="resync",
            now=tools.clock(),
            duration_ms=_ms_since(started),
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


def begin(tools: Tools, table: TableName, snapshots: Sequence[SnapshotFile]) -> Beginning:
    """Load the newest good one of *snapshots* into *table*, which stands at the archive's beginning.

    Its checkpoint, an audit row and the run's books commit with the rows. Where foreign keys are awake
    between it and other tables, it goes on to where those stand before its rows show. Raises ApplyError
    when the server fails, ArchiveConnectionError, CheckpointMovedError when the table has begun
    meanwhile, and ReadingStopped; what else fails is the table's own.
    """
    started = time.monotonic()
    beginning = Beginning()
    try:
        shadow = ShadowTarget(tools.connection, table)
        group = _load_newest(tools, shadow, table, snapshots)
        beginning.broken = shadow.broken
        if shadow.began_with is None:
            return beginning
        until = None
        if shadow.must_fit_others:
            until = _where_the_others_stand(tools.connection, table, counts_paused=True)
        result = _replay(tools, shadow, group, until or group.position)
        shadow.exchange(
            group.position_of(table),
            action="snapshot",
            now=tools.clock(),
            duration_ms=_ms_since(started),
            only_from=START,
            run_id=tools.run_id,
        )
        beginning.result = result
    except ArchiveConnectionError:
        raise
    except psycopg.Error as error:
        if is_servers_fault(error):
            raise translate(error) from error
        beginning.error = _refused(table, error)
    except SyncError as error:
        beginning.error = error
    finally:
        drop_shadow(tools.connection)
    return beginning


def _load_newest(
    tools: Tools, shadow: ShadowTarget, table: TableName, snapshots: Sequence[SnapshotFile]
) -> Group:
    position = shadow.load_newest(
        tools.archive, snapshots, limits=tools.limits, progress=tools.progress, stop=tools.stop
    )
    return Group(position, {table: position.commit_lsn})


def _replay(tools: Tools, shadow: ShadowTarget, group: Group, until: Position | None) -> CycleResult:
    """Apply the change files after *group* up to *until*, or to their end, to *shadow*.

    Raises ResyncError when the archive ends before *until* or holds nothing, and ReadingStopped.
    """
    cycle = Cycle(
        tools.archive,
        shadow,
        limits=tools.limits,
        progress=tools.progress,
        stop=tools.stop,
        broken={} if shadow.broken is None else dict.fromkeys(group.tables, shadow.broken),
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


def _where_the_others_stand(
    connection: Connection[Any], table: TableName, *, counts_paused: bool
) -> Position | None:
    """Return the farthest checkpoint of the other tables, so that this one joins them; None without any."""
    with connection.transaction():
        checkpoints = ledger.open_checkpoints(connection)
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


def _refused(table: TableName, error: psycopg.Error) -> ApplyError:
    """What the database has against the rows as a whole, without its DETAIL, which holds values."""
    cause = translate(error)
    if not isinstance(error, psycopg.errors.IntegrityError):
        return ApplyError(cause.message, hint=cause.hint, table=str(table))
    return ApplyError(
        f"the snapshot's rows break the constraint {error.diag.constraint_name} of {error.diag.table_name}",
        hint="whitelist the table it refers to as well, or let the role set session_replication_role; it is"
        " tried again in every cycle",
        table=str(table),
    )


def _ms_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
