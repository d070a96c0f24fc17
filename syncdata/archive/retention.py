"""Finds the files that nobody needs any longer, and removes them.

Knows names, times, and the headers of snapshots; knows nothing of PostgreSQL. A resync loads a table's
newest snapshot and goes on with the change files after the one that its ``prev`` names. So the rules:

1. A snapshot is *proved* when it is whole and belongs to today's chain. The newest proved snapshot of each
   table stays; older ones of that table go when they are older than ``keep_days``. Of a table that the
   privacy policy withholds, all go then.
2. The *horizon* is the oldest ``prev`` of the snapshots that stay, over all tables of the source. Change
   files up to it go, oldest first, when they are older than ``keep_days``: a local machine that reads the
   archive rarely may need them until then. The change files that stay are an unbroken end of the chain,
   with one file at least.
3. A catalog goes when the last file that named it is older than every file that stays. Where that last file
   is not known, as after the loss of the spool, the catalog stays.
4. A table without a proved snapshot needs all the change files there are. So none is removed until the table
   has a snapshot.
5. On demand, what is older than the privacy policy goes at once, whatever ``keep_days`` says: change files up
   to the last one of before, and snapshots that were taken under other rules. Not before each published table
   has a snapshot under the policy that goes on from a file behind those.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from types import MappingProxyType

from syncdata.archive.archive import Archive
from syncdata.changes.catalog import PublishedTable, catalog_name
from syncdata.changes.filenames import (
    ArchivedFile,
    ChangeFile,
    SnapshotFile,
    file_time,
    is_change_file,
    parse_stamp,
    stamp_of,
    stem,
)
from syncdata.changes.names import TableName
from syncdata.changes.reader import inspect, read_header
from syncdata.errors import DiscoveryError, ParseError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvedSnapshot:
    """A snapshot of a table that is whole and of today's chain.

    ``prev`` is the last change file that a resync from it does not need; None when it needs all.
    ``catalog``: the digest of the catalog that it was taken under.
    """

    file: SnapshotFile
    prev: str | None
    catalog: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInForce:
    """The privacy policy that files are written under now: the ``tables`` as they travel under it, those that
    it ``withheld``, and the last change file that was written ``last_before`` it (None: there was none)."""

    tables: Mapping[TableName, PublishedTable]
    withheld: Collection[TableName] = ()
    last_before: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removals:
    """Files to be removed, in the order in which they go.

    ``without_snapshot`` holds the tables that need all change files, so that none of these goes; ``needed``
    says of what kind of snapshot. ``catalogs`` are digests. ``last``: the change file that would go as well,
    were it not the newest one, to which the chain's next one must be tied.
    """

    snapshots: tuple[SnapshotFile, ...] = ()
    change_files: tuple[ChangeFile, ...] = ()
    without_snapshot: tuple[TableName, ...] = ()
    catalogs: tuple[str, ...] = ()
    needed: str = "finished snapshot"
    last: str = ""

    @property
    def files(self) -> tuple[SnapshotFile | ChangeFile, ...]:
        # Snapshots first: an old one without the change files that follow it would be worth nothing.
        return self.snapshots + self.change_files

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def reason(self) -> str:
        """Say why no change file goes, or one stays, and how to change that; empty when some may go."""
        if self.last:
            return f"{self.last} is the newest change file, and stays until another one follows: run it again"
        if not self.without_snapshot:
            return ""
        tables = ", ".join(map(str, self.without_snapshot))
        arguments = " ".join(table.argument for table in self.without_snapshot)
        return (
            f"no change file can be removed, for there is no {self.needed} of {tables};"
            f" run 'python manage.py archive_changes --snapshot {arguments}'"
        )


def plan_removals(
    change_files: Sequence[ChangeFile],
    snapshots: Iterable[SnapshotFile],
    proved: Mapping[TableName, ProvedSnapshot],
    *,
    tables: Collection[TableName],
    now: dt.datetime,
    keep_days: int,
    withheld: Collection[TableName] = (),
) -> Removals:
    """Return the files that no resync of *tables* needs. Pure.

    *change_files* are in order; *proved* has the newest proved snapshot of each table that has one. No table
    is in *withheld* as well.
    """
    limit = now - dt.timedelta(days=keep_days)
    old_snapshots = tuple(
        sorted(
            (
                file
                for file in snapshots
                if _is_before(file.stamp, limit)
                and (
                    file.table in withheld
                    or (file.table in proved and file.stamp < proved[file.table].file.stamp)
                )
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
    named: Mapping[str, str] = MappingProxyType({}),
    withheld: Collection[TableName] = (),
) -> Removals:
    """Return the files that can be removed from *archive*; remove none of them.

    *source_id* is today's chain. *named* has the stamp of the last file that names a catalog, by its digest;
    catalogs that it lacks stay. Snapshots are fetched and proved only when something is old enough.
    Raises as the archive does.
    """
    # In this order, so that a snapshot that arrives in between is not removed.
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
            newest_stem = change_files[-1].stem if change_files else ""
            found = (_prove(archive, file, source_id, newest_stem) for file in files)
            if newest := next(filter(None, found), None):
                proved[table] = newest
    if not has_old_files:
        tables = ()  # No change file goes, so it does not matter which tables have no snapshot.
    removals = plan_removals(
        change_files if has_old_files else [],
        snapshots,
        proved,
        tables=tables,
        now=now,
        keep_days=keep_days,
        withheld=withheld,
    )
    return _with_catalogs(removals, archive, [*change_files, *snapshots], named)


def _with_catalogs(
    removals: Removals, archive: Archive, files: Iterable[ArchivedFile], named: Mapping[str, str]
) -> Removals:
    """Return *removals*, which are of *files*, with the catalogs that go as well."""
    staying = {file.name for file in files} - {file.name for file in removals.files}
    digests = archive.catalog_digests() if named else []
    return replace(removals, catalogs=old_catalogs(digests, named, staying))


def find_older_than_policy(
    archive: Archive,
    tables: Collection[TableName],
    policy: PolicyInForce,
    *,
    source_id: str,
    named: Mapping[str, str] = MappingProxyType({}),
) -> Removals:
    """Return the files of *archive* that hold, or may hold, values from before *policy*; remove none of them.

    There are none to be removed while one of *tables* that travels has no snapshot under the policy, or its
    newest one goes on from a file of before. Raises as the archive does.
    """
    # In this order, so that a snapshot that arrives in between is not removed.
    snapshots = archive.discover_snapshots()
    change_files = archive.discover(None)
    last_before = stem(policy.last_before or "")
    newest_stem = change_files[-1].stem if change_files else ""
    good: dict[TableName, SnapshotFile] = {}
    required = set(tables) - set(policy.withheld)
    for table in required:
        files = (file for file in snapshots if file.table == table)
        found = (_prove(archive, file, source_id, newest_stem) for file in files)
        newest = next(filter(None, found), None)
        if (
            newest is not None
            and stem(newest.prev or "") >= last_before
            and _is_under(archive, table, newest.catalog, policy)
        ):
            good[table] = newest.file
    if not required or (missing := required - good.keys()):
        return Removals(
            without_snapshot=tuple(sorted(missing if required else tables)),
            needed="snapshot under the privacy policy that is in force",
        )
    old_files = tuple(takewhile(lambda file: file.stem <= last_before, change_files))
    last = old_files[-1].name if old_files and len(old_files) == len(change_files) else ""
    old_snapshots = tuple(
        file
        for file in snapshots
        if file != good.get(file.table)
        and not _is_under(archive, file.table, _catalog_of(archive, file), policy)
    )
    removals = Removals(
        snapshots=tuple(sorted(old_snapshots, key=lambda file: file.name)),
        change_files=old_files[:-1] if last else old_files,
        last=last,
    )
    return _with_catalogs(removals, archive, [*change_files, *snapshots], named)


def is_alike(before: PublishedTable, now: PublishedTable) -> bool:
    """Tell whether rows that were written of a table as it was *before* hold nothing but what its rules of
    *now* let travel. Pure. A column that has gone since may have had anything."""
    rules = dict(_rules(now))
    return _rows_of(before) == _rows_of(now) and all(
        rules.get(number) == rule for number, rule in _rules(before)
    )


def _rows_of(published: PublishedTable) -> tuple[object, ...]:
    """Return what says which rows travel. A filter's text may be hidden, and every other filter is another
    membership."""
    return published.oid, published.row_filter, published.row_filter and published.membership


def _rules(published: PublishedTable) -> Iterator[tuple[int, tuple[bool, str, str]]]:
    """Yield each column's number, and what is done with its values."""
    travelling = frozenset(published.travelling)
    for column in published.columns:
        yield column.number, (column.name in travelling, column.privacy, column.privacy_id)


def _is_under(archive: Archive, table: TableName, digest: str | None, policy: PolicyInForce) -> bool:
    """Tell whether what was written of *table* under the catalog of that *digest* was so under *policy*; not
    where the catalog cannot be read."""
    now = policy.tables.get(table)
    if now is None or digest is None:
        return False
    try:
        before = archive.read_catalog(digest).find(table)
    except (DiscoveryError, ParseError):
        return False
    return before is not None and is_alike(before, now)


def old_catalogs(
    digests: Iterable[str], named: Mapping[str, str], staying: Collection[str]
) -> tuple[str, ...]:
    """Return those of *digests* that none of the files *staying* names. Pure."""
    stamps = [stamp_of(name) for name in staying]
    if not stamps or None in stamps:
        return ()
    oldest = min(filter(None, stamps))
    return tuple(sorted(digest for digest in digests if digest in named and named[digest] < oldest))


def prune(archive: Archive, removals: Removals, *, stop: threading.Event) -> Removals:
    """Remove the files of *removals*; return those that were removed: fewer than all when *stop* was set.

    This may be interrupted at any time, and repeated. Raises RetentionError or ArchiveConnectionError.
    """
    removed = 0
    for file in removals.files:
        if stop.is_set():
            break
        archive.remove(file.name)
        logger.info("removed %s (%d bytes)", file.name, file.size_bytes)
        removed += 1
    catalogs = 0
    for digest in removals.catalogs if removed == len(removals.files) else ():
        if stop.is_set():
            break
        archive.remove(catalog_name(digest))
        catalogs += 1
    return replace(
        removals,
        catalogs=removals.catalogs[:catalogs],
        snapshots=removals.snapshots[:removed],
        change_files=removals.change_files[: max(0, removed - len(removals.snapshots))],
    )


def _catalog_of(archive: Archive, file: SnapshotFile) -> str | None:
    """Return the digest of the catalog that *file* was taken under; None where it does not say."""
    with archive.fetch(file) as stream:
        header = read_header(stream, file.name)
    return None if header is None else header.catalog


def _prove(archive: Archive, file: SnapshotFile, source_id: str, newest_stem: str) -> ProvedSnapshot | None:
    with archive.fetch(file) as stream:
        inspection = inspect(stream, file.name)
    header = inspection.header
    if header is None or inspection.footer is None:
        logger.warning("%s is not a whole snapshot; it is not relied on", file.name)
        return None
    if header.prev is not None and not (is_change_file(header.prev) and stem(header.prev) <= newest_stem):
        # Test: test_a_snapshot_that_goes_on_from_no_change_file_lets_none_be_removed.
        logger.warning("%s goes on from no change file of the archive; it is not relied on", file.name)
        return None
    is_of_table = header.snapshot == f"{file.table.schema}.{file.table.name}" and header.commit_lsn
    if not is_of_table or header.source_id != source_id:
        return None
    return ProvedSnapshot(file=file, prev=header.prev, catalog=header.catalog)


def _is_old(file: ChangeFile, limit: dt.datetime) -> bool:
    moment = file_time(file.name)
    return moment is not None and moment < limit


def _is_before(stamp: str, limit: dt.datetime) -> bool:
    """Tell whether the time that *stamp* stands for is before *limit*; False when it is no time."""
    moment = parse_stamp(stamp)
    return moment is not None and moment < limit
