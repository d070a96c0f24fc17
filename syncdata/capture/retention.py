"""What the archive holds that no resync can need any more, and its removal.

A resync, or a new table, begins with the table's newest snapshot and replays the change files after it.
So of each table the newest snapshot that is proved whole stays, and every change file after the oldest of
these. What is left behind a reader that has been away for long is a gap, which that reader is told of.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile

from syncdata.engine.archive import ChangeFile, SnapshotFile, WritableArchive
from syncdata.engine.changefile import stem
from syncdata.engine.changes import TableName
from syncdata.engine.errors import ParseError
from syncdata.engine.snapshots import find_snapshots, open_snapshot

logger = logging.getLogger(__name__)

_TIME_IN_NAME = re.compile(r"changes_(\d{8}_\d{6})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A table's newest whole snapshot. ``prev``: the change file it goes on from; empty for none."""

    stamp: str
    prev: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Removals:
    """``files``: what can go, the oldest change files first; ``reasons``: why no more can."""

    files: tuple[ChangeFile | SnapshotFile, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def plan_removals(
    change_files: Sequence[ChangeFile],
    snapshots: Iterable[SnapshotFile],
    kept: Mapping[TableName, Kept],
    *,
    tables: Collection[TableName],
    keep_from: dt.datetime,
) -> Removals:
    """Return what can be removed of *change_files*, in their order, and *snapshots*. Pure.

    Nothing younger than *keep_from* goes, and never the newest change file, which tells where the chain
    stands. Without a snapshot of each of *tables* no change file goes.
    """
    boundary = f"{keep_from.astimezone(dt.UTC):%Y%m%d_%H%M%S}"
    old_snapshots = [
        file
        for file in snapshots
        if file.table in kept and file.stamp < kept[file.table].stamp and file.stamp < boundary
    ]
    bare = sorted(table for table in tables if table not in kept)
    reasons = [
        f"change files are kept: there is no whole snapshot of {table}"
        f" (python manage.py archive_changes --snapshot {table})"
        for table in bare
    ]
    old_files: list[ChangeFile] = []
    if tables and not bare:
        horizon = min(stem(kept[table].prev) for table in tables)
        # From the front and without a break, so that what stays is an unbroken chain.
        old_files += takewhile(
            lambda file: file.stem <= horizon and _is_older(file, boundary), change_files[:-1]
        )
    return Removals(files=(*old_files, *old_snapshots), reasons=tuple(reasons))


def prune(
    archive: WritableArchive,
    *,
    tables: Collection[TableName],
    keep_days: int,
    now: dt.datetime,
    is_dry_run: bool = False,
) -> Removals:
    """Remove what no resync of *tables* can need any more; return what was removed, or would be.

    May be interrupted and repeated. Raises RetentionError, DiscoveryError, FetchError or
    ArchiveConnectionError.
    """
    change_files = archive.discover(None)
    snapshots = find_snapshots(archive, tables, stop=threading.Event())
    kept = {table: newest for table, files in snapshots.items() if (newest := _newest_whole(archive, files))}
    plan = plan_removals(
        change_files,
        [file for files in snapshots.values() for file in files],
        kept,
        tables=tables,
        keep_from=now - dt.timedelta(days=keep_days),
    )
    if not is_dry_run:
        for file in plan.files:
            archive.remove(file.name)
        if plan.files:
            logger.info("pruned %d files, %d bytes", len(plan.files), plan.size_bytes)
    return plan


def _newest_whole(archive: WritableArchive, files: Sequence[SnapshotFile]) -> Kept | None:
    """Return the first of *files*, newest first, that is proved whole."""
    for file in files:
        try:
            with closing(open_snapshot(archive, file, stop=threading.Event())) as snapshot:
                return Kept(stamp=file.stamp, prev=snapshot.position.file)
        except ParseError as error:
            logger.warning("this snapshot does not count: %s", error, extra={"code": error.code})
    return None


def _is_older(file: ChangeFile, boundary: str) -> bool:
    """A file whose name tells no time is never old."""
    match = _TIME_IN_NAME.match(file.name)
    return match is not None and match[1] < boundary
