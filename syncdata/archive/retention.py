"""What the archive need not hold any longer, and its removal.

Knows names, times and what snapshots say of themselves; knows nothing of PostgreSQL. A resync loads a
table's newest snapshot and goes on with the change files after its ``prev``. So the rules:

1. The newest proved snapshot of each table stays; older ones of it go when they are old enough.
2. The *horizon* is the oldest ``prev`` of those that stay, over all tables of the source. Change files up
   to it go, oldest first, when they are old enough: those that read the archive late need them till then.
   What stays is always an unbroken end of the chain, and never empty.
3. What is not proved is not relied on. A table without a proved snapshot of today's chain needs all the
   change files there are, so then none goes.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from syncdata.archive.archive import Archive
from syncdata.changes.filenames import ChangeFile, SnapshotFile, file_time, parse_stamp, stem
from syncdata.changes.names import TableName
from syncdata.changes.reader import inspect

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedSnapshot:
    """A table's snapshot that is whole and of today's chain. ``prev``: the newest change file that is not
    needed after it; None when all are."""

    file: SnapshotFile
    prev: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removals:
    """What nobody needs, in the order in which it goes. ``without_snapshot``: the tables because of which
    all change files stay."""

    snapshots: tuple[SnapshotFile, ...] = ()
    change_files: tuple[ChangeFile, ...] = ()
    without_snapshot: tuple[TableName, ...] = ()

    @property
    def files(self) -> tuple[SnapshotFile | ChangeFile, ...]:
        # Snapshots first: one without the change files after it would be worth nothing.
        return self.snapshots + self.change_files

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def reason(self) -> str:
        """Why all change files stay; empty when that is not so."""
        if not self.without_snapshot:
            return ""
        tables = " ".join(map(str, self.without_snapshot))
        return (
            f"no change file can be removed, for there is no finished snapshot of {tables};"
            f" run 'python manage.py archive_changes --snapshot {tables}'"
        )


def plan_removals(
    change_files: Sequence[ChangeFile],
    snapshots: Iterable[SnapshotFile],
    proved: Mapping[TableName, ProvedSnapshot],
    *,
    tables: Collection[TableName],
    now: dt.datetime,
    keep_days: int,
) -> Removals:
    """Return what no resync of *tables* needs. Pure.

    *change_files* in order; *proved*: of each table the newest snapshot that can be relied on.
    """
    limit = now - dt.timedelta(days=keep_days)
    old_snapshots = tuple(
        sorted(
            (
                file
                for file in snapshots
                if file.table in proved
                and file.stamp < proved[file.table].file.stamp
                and _is_before(file.stamp, limit)
            ),
            key=lambda file: file.name,
        )
    )
    without_snapshot = tuple(sorted(set(tables) - proved.keys()))
    if without_snapshot or not tables:
        return Removals(snapshots=old_snapshots, without_snapshot=without_snapshot)
    horizon = min(stem(proved[table].prev or "") for table in tables)
    old_files = takewhile(
        lambda file: file.stem <= horizon and _is_old(file, limit),
        change_files[:-1],
    )
    return Removals(snapshots=old_snapshots, change_files=tuple(old_files))


def find_removals(
    archive: Archive,
    tables: Collection[TableName],
    *,
    source_id: str,
    now: dt.datetime,
    keep_days: int,
) -> Removals:
    """Return what can be removed from *archive*, whose chain is now that of *source_id*. Removes nothing.

    Snapshots are fetched and proved only when something is old enough. Raises as the archive does.
    """
    # In this order: a snapshot that comes meanwhile is one more that stays.
    snapshots = archive.discover_snapshots()
    change_files = archive.discover(None)
    limit = now - dt.timedelta(days=keep_days)
    has_old_files = bool(change_files[:-1]) and _is_old(change_files[0], limit)
    by_table: dict[TableName, list[SnapshotFile]] = {}
    for file in snapshots:
        by_table.setdefault(file.table, []).append(file)
    proved: dict[TableName, ProvedSnapshot] = {}
    for table, files in by_table.items():
        has_old_ones = any(_is_before(file.stamp, limit) for file in files[1:])
        if has_old_ones or (has_old_files and table in tables):
            found = (_prove(archive, file, source_id) for file in files)
            if newest := next(filter(None, found), None):
                proved[table] = newest
    if not has_old_files:
        change_files = []
        tables = ()  # Nothing is asked of them.
    return plan_removals(change_files, snapshots, proved, tables=tables, now=now, keep_days=keep_days)


def prune(archive: Archive, removals: Removals, *, stop: threading.Event) -> Removals:
    """Remove what *removals* says, and return what was removed: all of it, or less when *stop* was set.

    May be broken off and repeated at any time. Raises RetentionError or ArchiveConnectionError.
    """
    removed = 0
    for file in removals.files:
        if stop.is_set():
            break
        archive.remove(file.name)
        logger.info("removed %s (%d bytes)", file.name, file.size_bytes)
        removed += 1
    return replace(
        removals,
        snapshots=removals.snapshots[:removed],
        change_files=removals.change_files[: max(0, removed - len(removals.snapshots))],
    )


def _prove(archive: Archive, file: SnapshotFile, source_id: str) -> ProvedSnapshot | None:
    with archive.fetch(file) as stream:
        inspection = inspect(stream, file.name)
    header = inspection.header
    if header is None or inspection.footer is None:
        logger.warning("%s is not a whole snapshot; it is not relied on", file.name)
        return None
    is_of_table = header.snapshot == f"{file.table.schema}.{file.table.name}" and header.commit_lsn
    return (
        ProvedSnapshot(file=file, prev=header.prev) if is_of_table and header.source_id == source_id else None
    )


def _is_old(file: ChangeFile, limit: dt.datetime) -> bool:
    moment = file_time(file.name)
    return moment is not None and moment < limit


def _is_before(stamp: str, limit: dt.datetime) -> bool:
    """Whether the time in a name is before *limit*; not when it is none."""
    moment = parse_stamp(stamp)
    return moment is not None and moment < limit
