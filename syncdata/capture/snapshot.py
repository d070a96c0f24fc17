"""Snapshots: tables of the source, as they are at one exactly known commit, into the archive.

Knows the order of things and what the files say; leaves SQL to consistent.py. The order is what makes
snapshot and change files meet:

1. The newest change file of the archive is noted, as ``prev``. All that it and those before it hold was
   committed before the point, which is found later.
2. The point is found. The slot that the archiver reads is older, so what commits after the point is, or
   will be, in files after ``prev``.
3. Each table is written to the spool, finished with a footer, and put into the archive.

A reader loads the file, goes on after ``prev``, and leaves out commits up to the point.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from syncdata.archive.archive import Archive
from syncdata.capture.archiver import CaptureSettings
from syncdata.capture.chain import Chain, format_moment, require_same_system
from syncdata.capture.encoder import line_start
from syncdata.capture.exported_snapshot import (
    ConsistentSource,
    Point,
    SourceTable,
    open_consistent,
)
from syncdata.capture.pgoutput import Relation
from syncdata.capture.replication import NEW_EPOCH_HINT, Identity
from syncdata.capture.slot import Slot
from syncdata.capture.spool import FileWriter, SpooledFile, translated
from syncdata.changes.filenames import next_stamp, snapshot_name
from syncdata.changes.header import Header
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn
from syncdata.errors import SlotError, SnapshotError, SourceChangedError, SyncError
from syncdata.runtime.interruptible import interruptible

logger = logging.getLogger(__name__)

_TELL_EVERY_ROWS = 1_000
_encode = msgspec.json.Encoder().encode


class SnapshotProgress(Protocol):
    """Who wants to see how far the snapshot is."""

    def tables_found(self, tables: int, rows: int) -> None:
        """So many tables are copied, with about so many rows in all (0 when the source does not know)."""
        ...

    def table_started(self, table: TableName, rows: int) -> None:
        """This one has about so many."""
        ...

    def rows_copied(self, rows: int) -> None:
        """So many more rows of this table are copied."""
        ...

    def table_finished(self, table: TableName) -> None:
        """It is in the archive."""
        ...


class _NoProgress:
    def tables_found(self, tables: int, rows: int) -> None: ...
    def table_started(self, table: TableName, rows: int) -> None: ...
    def rows_copied(self, rows: int) -> None: ...
    def table_finished(self, table: TableName) -> None: ...


NO_PROGRESS: SnapshotProgress = _NoProgress()


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenSnapshot:
    """One table's copy in the archive. ``commit_lsn``: the last commit that it holds."""

    table: TableName
    name: str
    records: int
    size_bytes: int
    commit_lsn: int


def take_snapshots(
    settings: CaptureSettings,
    open_archive: Callable[[], Archive],
    chain: Chain,
    tables: Sequence[TableName],
    *,
    stop: threading.Event,
    progress: SnapshotProgress = NO_PROGRESS,
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> list[TakenSnapshot]:
    """Put a copy of each of *tables* into the archive, all of one point; return those that are there.

    When *stop* is set it ends soon: what is finished counts, of the rest nothing is left. The archiver may
    run meanwhile. Raises SnapshotError when a table cannot be copied, SlotError and SourceChangedError when
    the stream would not go on from there, and what the archive and the spool raise.
    """
    taken: list[TakenSnapshot] = []
    tables = list(dict.fromkeys(tables))
    if not tables:
        return taken
    archive = open_archive()
    try:
        with (
            _alone(settings.spool_dir),
            open_consistent(settings.params, settings.publication, stop) as source,
        ):
            _require_stream(chain, source.identify(), source.slot(settings.slot_name), settings.slot_name)
            prev = _newest_file(archive, chain)
            stamp = _stamp(archive, clock())
            point = source.begin(tables)
            logger.info("snapshot: %d table(s) as of %s", len(tables), format_lsn(point.commit_lsn))
            copying = _Copying(
                source=source,
                archive=archive,
                spool_dir=settings.spool_dir,
                header=_header(chain, point, prev, clock()),
                stamp=stamp,
                point=point,
                stop=stop,
                progress=progress,
            )
            progress.tables_found(len(tables), sum(table.rows for table in point.tables))
            for table in point.tables:
                taken.append(copying.take(table))
    except (_Stopped, SyncError):
        # What is interrupted by a stop complains in many ways.
        if not stop.is_set():
            raise
        logger.warning("stopped: %d of %d snapshots are in the archive", len(taken), len(tables))
    finally:
        archive.close()
    return taken


class _Stopped(Exception):
    """Whoever asked for the snapshots wants no more of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copying:
    """What the tables of one snapshot have in common."""

    source: ConsistentSource
    archive: Archive
    spool_dir: Path
    header: Header
    stamp: str
    point: Point
    stop: threading.Event
    progress: SnapshotProgress

    def take(self, table: SourceTable) -> TakenSnapshot:
        self.progress.table_started(table.name, table.rows)
        file = self._write(table)
        try:
            name = snapshot_name(self.stamp, table.name)
            size_bytes = self._put(file, name)
        finally:
            with translated(file.path):
                file.path.unlink(missing_ok=True)
        self.progress.table_finished(table.name)
        logger.info("%s: %d rows, %d bytes", name, file.footer.records, size_bytes)
        return TakenSnapshot(
            table=table.name,
            name=name,
            records=file.footer.records,
            size_bytes=size_bytes,
            commit_lsn=self.point.commit_lsn,
        )

    def _write(self, table: SourceTable) -> SpooledFile:
        """Write the table's rows to the spool: one at a time, whatever their number."""
        name = f"{table.name.schema}.{table.name.name}"
        header = msgspec.structs.replace(self.header, snapshot=name)
        writer = FileWriter(self.spool_dir, ".snapshot.part", header, "gzip")
        try:
            records = self._write_rows(table, writer)
            return writer.finish(
                ".snapshot",
                records=records,
                transactions=1,
                first_commit_lsn=self.point.commit_lsn,
                last_commit_lsn=self.point.commit_lsn,
                end_lsn=self.point.commit_lsn + 1,
            )
        except BaseException:
            writer.discard()
            raise

    def _write_rows(self, table: SourceTable, writer: FileWriter) -> int:
        relation = Relation(
            schema=table.name.schema, name=table.name.name, columns=table.columns, key=frozenset()
        )
        start = line_start(relation, "INSERT") + b'"data":'
        columns = table.columns
        records = 0
        for row in self.source.rows(table):
            writer.write(b"%b%b}\n" % (start, _encode(dict(zip(columns, row, strict=True)))))
            records += 1
            if records % _TELL_EVERY_ROWS == 0:
                self.progress.rows_copied(_TELL_EVERY_ROWS)
                if self.stop.is_set():
                    raise _Stopped
        self.progress.rows_copied(records % _TELL_EVERY_ROWS)
        if self.stop.is_set():
            raise _Stopped
        return records

    def _put(self, file: SpooledFile, name: str) -> int:
        """Put the file into the archive as *name*; return its size in bytes."""
        with translated(file.path):
            content = file.path.open("rb")
        with content:
            size_bytes = content.seek(0, io.SEEK_END)
            interruptible(
                lambda: self.archive.put(name, content), stop=self.stop, interrupt=self.archive.close
            )
        return size_bytes


def _newest_file(archive: Archive, chain: Chain) -> str | None:
    """Return the archive's newest change file, which must not be older than the chain's last."""
    files = archive.discover(chain.last_file)
    if chain.last_file is not None and not files:
        raise SourceChangedError(
            f"the archive does not hold {chain.last_file}, the last change file that was delivered",
            hint="check the archive_* keys; if the archive was replaced on purpose: " + NEW_EPOCH_HINT,
        )
    return files[-1].name if files else None


def _stamp(archive: Archive, now: dt.datetime) -> str:
    """Return a stamp that sorts behind those of all snapshots."""
    last_stamp = max((file.stamp for file in archive.discover_snapshots()), default=None)
    try:
        return next_stamp(now, last_stamp)
    except (ValueError, OverflowError) as error:
        raise SnapshotError(
            f"no snapshot can follow snapshot_{last_stamp}", hint="remove that directory from the archive"
        ) from error


def _header(chain: Chain, point: Point, newest_file: str | None, now: dt.datetime) -> Header:
    return Header(
        syncdata=1,
        system_id=chain.system_id,
        timeline=chain.timeline,
        slot=chain.slot,
        epoch=chain.epoch,
        prev=newest_file,
        created=format_moment(now),
        commit_lsn=format_lsn(point.commit_lsn),
    )


def _require_stream(chain: Chain, identity: Identity, slot: Slot | None, slot_name: str) -> None:
    """Raise unless the chain's own slot stands ready, so that the changes after the point will be there.

    How far it is confirmed tells nothing here: an archiver that runs moves it all the time.
    """
    require_same_system(chain, identity)
    if slot_name != chain.slot:
        raise SourceChangedError(
            f"slot_name is {slot_name}, but the chain was written from {chain.slot}",
            hint="set slot_name back; if it was changed on purpose: " + NEW_EPOCH_HINT,
        )
    if slot is None or slot.is_lost:
        state = "is missing" if slot is None else "has lost WAL that it needed"
        raise SlotError(
            f"the slot {slot_name} {state}: changes after a snapshot would be missing", hint=NEW_EPOCH_HINT
        )


@contextmanager
def _alone(spool_dir: Path) -> Iterator[None]:
    """Keep a second snapshot from writing to the same spool; the lock dies with the process."""
    with translated(spool_dir):
        spool_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (spool_dir / ".snapshot.lock").open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SnapshotError(
                "another snapshot is being taken", hint="wait until it is finished", file=str(spool_dir)
            ) from error
        yield
