"""How a new table begins: with the rows of its newest good snapshot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from syncdata.apply.context import Tools
from syncdata.apply.position import START
from syncdata.apply.postgres.connection import constraint_error, is_servers_fault, translate
from syncdata.apply.postgres.shadow import ShadowTarget, drop_shadow
from syncdata.apply.result import CycleResult
from syncdata.apply.resync import load_newest, ms_since, replay, where_the_others_stand
from syncdata.archive.archive import SnapshotFile
from syncdata.changes.names import TableName
from syncdata.errors import ApplyError, ArchiveConnectionError, ParseError, SyncError


@dataclass(slots=True, kw_only=True)
class Beginning:
    """How a new table began. ``result`` is None when none of its snapshots is good (``broken`` says why
    the newest is not) or when *error* kept it from being loaded."""

    result: CycleResult | None = None
    broken: ParseError | None = None
    error: SyncError | None = None


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
        group = load_newest(tools, shadow, table, snapshots)
        beginning.broken = shadow.broken
        if shadow.began_with is None:
            return beginning
        until = None
        if shadow.must_fit_others:
            until = where_the_others_stand(tools.connection, table, counts_paused=True)
        result = replay(tools, shadow, group, until or group.position)
        shadow.exchange(
            group.position_of(table),
            action="snapshot",
            now=tools.clock(),
            duration_ms=ms_since(started),
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


def _refused(table: TableName, error: psycopg.Error) -> ApplyError:
    """What the database has against the rows as a whole, without its DETAIL, which holds values."""
    if isinstance(error, psycopg.errors.IntegrityError):
        return constraint_error(error, table, rows="the snapshot's rows")
    cause = translate(error)
    return ApplyError(cause.message, hint=cause.hint, table=str(table))
