"""Takes snapshots: copies tables of the source, as they are at one exactly known commit, into the archive.

Knows the order of the steps and the header of a snapshot file; leaves SQL to exported_snapshot.py. Because
of this order, snapshot and change files meet:

1. The name of the archive's newest change file, say changes_20260205_103000.json.zst, is noted as ``prev``.
   All that this file and the earlier ones hold was committed before the point, which is found later.
2. The point is found, say 0/16B3D50. The slot that the archiver reads is older, so every transaction that
   commits after the point is, or will be, in a file after ``prev``.
3. The catalog of the point is put into the archive, as the point's own snapshot of the source shows it.
4. Each table is written to the spool, finished with a footer, and put into the archive.

Where there is a privacy policy, it is applied to the look and to each row before anything is written, and it
must be the archiver's: change files under another one could not go on from the snapshot.

A reader loads the snapshot, goes on with the file after ``prev``, and leaves out commits up to the point.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import io
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from syncdata.archive.archive import Archive
from syncdata.archive.signatures import Signer
from syncdata.capture.catalog_state import judge_beside, load_state, next_state, note_snapshot
from syncdata.capture.chain import (
    Chain,
    format_moment,
    load_chain,
    require_same_system,
    require_slot_name,
    timeline_problem,
)
from syncdata.capture.copied_rows import LineMaker
from syncdata.capture.copy_plan import CopyPlan, plan_copy
from syncdata.capture.encoder import line_start
from syncdata.capture.exported_snapshot import (
    ConsistentSource,
    CopiedTable,
    Point,
    open_consistent,
)
from syncdata.capture.pgoutput import Relation
from syncdata.capture.policy_note import id_of, require_noted_policy
from syncdata.capture.protection import CANNOT_HOLD
from syncdata.capture.published import Look, SourceEye
from syncdata.capture.refusals import NEW_EPOCH_HINT
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.slot import Slot
from syncdata.capture.source import SystemIdentity
from syncdata.capture.spool import FileWriter, SpooledFile, make_spool, remove_from_spool, translated
from syncdata.changes.catalog import catalog_name, digest_of, encode_catalog
from syncdata.changes.filenames import next_stamp, snapshot_name, stem
from syncdata.changes.header import Header
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn
from syncdata.changes.reader import inspect
from syncdata.errors import SlotError, SnapshotError, SourceChangedError, SyncError
from syncdata.privacy.row_mask import RowMask
from syncdata.runtime.durable import private
from syncdata.runtime.interruptible import interruptible
from syncdata.runtime.progress import NoProgress, Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenSnapshot:
    """One table's copy in the archive, with all that was committed at ``commit_lsn`` or earlier."""

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
    progress: Progress | None = None,
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> list[TakenSnapshot]:
    """Put a copy of each of *tables* into the archive, all of one point; return those that are there.

    When *stop* is set this ends soon; the snapshots that are finished by then stay, and the others leave
    nothing behind. The archiver may run meanwhile. Raises PartlyTakenError when some table cannot be copied
    and the others are in the archive, SnapshotError when none can, SlotError and SourceChangedError when the
    stream would not go on from there, and the archive's and the spool's errors.
    """
    taken: list[TakenSnapshot] = []
    progress = progress or NoProgress()
    tables = list(dict.fromkeys(tables))
    if not tables:
        return taken
    archive = open_archive()
    try:
        with (
            _alone(settings.spool_dir),
            open_consistent(settings.params, settings.publication, stop) as source,
        ):
            require_noted_policy(settings.spool_dir, id_of(settings.policy))
            _require_stream(chain, source.identify(), source.slot(settings.slot_name), settings.slot_name)
            prev = _newest_file(archive, chain)
            stamp = _stamp(archive, clock())
            point = source.begin(tables)
            plan = _plan(settings, source, point)
            digest = _archive_catalog(settings, archive, plan.look, stamp)
            logger.info("snapshot: %d table(s) as of %s", len(tables), format_lsn(point.commit_lsn))
            copying = _Copying(
                source=source,
                archive=archive,
                spool_dir=settings.spool_dir,
                header=_header(chain, point, prev, digest, clock()),
                stamp=stamp,
                point=point,
                masks=plan.masks,
                policy_id=id_of(settings.policy),
                stop=stop,
                progress=progress,
                signer=settings.signer,
            )
            progress.files_found(len(tables), sum(table.rows for table in plan.tables))
            failed = [*point.refused, *plan.refused]
            for table in plan.tables:
                try:
                    taken.append(copying.take(table))
                except SnapshotError as error:
                    if error.table is None or stop.is_set():
                        raise
                    failed.append(error)
            if failed:
                raise PartlyTakenError(failed, taken)
    except (_Stopped, SyncError):
        # After a stop, errors are expected: it cancels statements and closes connections.
        if not stop.is_set():
            raise
        logger.warning("stopped: %d of %d snapshots are in the archive", len(taken), len(tables))
    finally:
        archive.close()
    return taken


class PartlyTakenError(SnapshotError):
    """Some tables could not be copied; the snapshots of the others, ``taken``, are in the archive."""

    def __init__(self, failed: Sequence[SnapshotError], taken: Sequence[TakenSnapshot]) -> None:
        first, *others = failed
        told = [f"table {error.table}: {error.message} ({error.hint})" for error in others]
        if taken:
            told.append(f"the snapshots of the {len(taken)} other table(s) are in the archive")
        message = "; ".join([first.message, *told])
        super().__init__(message, hint=first.hint, table=first.table)
        self.taken = list(taken)


class _Stopped(Exception):
    """The caller has set *stop*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copying:
    """The copying of one snapshot's tables, one after the other."""

    source: ConsistentSource
    archive: Archive
    spool_dir: Path
    header: Header
    stamp: str
    point: Point
    masks: Mapping[TableName, RowMask]
    policy_id: str
    stop: threading.Event
    progress: Progress
    signer: Signer | None

    def take(self, table: CopiedTable) -> TakenSnapshot:
        self.progress.file_started(str(table.name), table.rows)
        file = self._write(table)
        try:
            name = snapshot_name(self.stamp, table.name)
            size_bytes = self._put(file, name)
        finally:
            remove_from_spool(file)
        self.progress.file_finished(str(table.name))
        logger.info("%s: %d rows, %d bytes", name, file.footer.records, size_bytes)
        self._tell_unmasked(table.name)
        return TakenSnapshot(
            table=table.name,
            name=name,
            records=file.footer.records,
            size_bytes=size_bytes,
            commit_lsn=self.point.commit_lsn,
        )

    def _write(self, table: CopiedTable) -> SpooledFile:
        """Write the table's rows to the spool, some at a time: memory does not grow with the table."""
        name = f"{table.name.schema}.{table.name.name}"
        header = msgspec.structs.replace(self.header, snapshot=name)
        writer = FileWriter(self.spool_dir, ".snapshot.part", header, "gzip", signer=self.signer)
        try:
            records = self._write_rows(table, writer)
            return writer.finish(
                ".snapshot",
                records=records,
                transactions=1,
                first_commit_lsn=self.point.commit_lsn,
                last_commit_lsn=self.point.commit_lsn,
                end_lsn=self.point.commit_lsn + 1,
                archived_as=snapshot_name(self.stamp, table.name),
            )
        except BaseException:
            writer.discard()
            raise

    def _write_rows(self, table: CopiedTable, writer: FileWriter) -> int:
        relation = Relation(
            schema=table.name.schema, name=table.name.name, columns=table.columns, key=frozenset()
        )
        start = line_start(relation, "INSERT") + b'"data":'
        maker = LineMaker(start, table.columns, self.masks.get(table.name))
        records = 0
        for block in self.source.blocks(table):
            lines, rows = maker.lines(block)
            writer.write(lines)
            records += rows
            self.progress.batch_applied(rows, rows)
            if self.stop.is_set():
                raise _Stopped
        if self.stop.is_set():
            raise _Stopped
        return records

    def _tell_unmasked(self, table: TableName) -> None:
        """Log of which columns values were left out or replaced, for their masks could not take them."""
        mask = self.masks.get(table)
        for column, count in sorted(mask.unmasked.items() if mask else ()):
            logger.warning(
                "%s: %d value(s) of %s are not such as its mask takes, and something else stands in their"
                " place",
                table,
                count,
                column,
            )

    def _require_same_timeline(self) -> None:
        """Raise SourceChangedError when the archiver has followed a failover meanwhile: it has looked for
        snapshots of what the new server lacks, and this one was not there yet."""
        chain = load_chain(self.spool_dir)
        if chain is not None and chain.timeline != self.header.timeline:
            raise SourceChangedError(
                "the source failed over while the snapshot was taken", hint="take the snapshot again"
            )

    def _put(self, file: SpooledFile, name: str) -> int:
        """Put the file into the archive as *name*; return its size in bytes."""
        with translated(file.path):
            content = file.path.open("rb")
        with content:
            size_bytes = content.seek(0, io.SEEK_END)
            self._require_same_timeline()
            require_noted_policy(self.spool_dir, self.policy_id)
            interruptible(
                lambda: self.archive.put(name, content), stop=self.stop, interrupt=self.archive.close
            )
        return size_bytes


def _newest_file(archive: Archive, chain: Chain) -> str | None:
    """Return the archive's newest change file, which must be the chain's last one, or a later one of it.

    The archiver may run meanwhile, so its file may be newer than *chain*. A copy, or a file of another
    program, would keep every table that begins with the snapshot from going on.
    """
    files = archive.discover(chain.last_file)
    if chain.last_file is not None and not files:
        raise SourceChangedError(
            f"the archive does not hold {chain.last_file}, the last change file that was delivered",
            hint="check the archive_* keys; if the archive was replaced on purpose: " + NEW_EPOCH_HINT,
        )
    if not files:
        return None
    newest = files[-1]
    if chain.last_file is None or newest.stem != stem(chain.last_file):
        with archive.fetch(newest) as stream:
            header = inspect(stream, newest.name).header
        if header is None or header.source_id != chain.source_id or (header.seq or 0) <= chain.seq:
            raise SourceChangedError(
                "the archive's newest change file is not of the chain, so a snapshot cannot go on from it",
                hint="move it out of the archive, and see that no other program writes there; then take the"
                " snapshot again",
                file=newest.name,
            )
    return newest.name


def _stamp(archive: Archive, now: dt.datetime) -> str:
    """Return the new snapshot's stamp, which sorts behind those of all snapshots in the archive."""
    last_stamp = max((file.stamp for file in archive.discover_snapshots()), default=None)
    try:
        return next_stamp(now, last_stamp)
    except (ValueError, OverflowError) as error:
        raise SnapshotError(
            f"no snapshot can follow snapshot_{last_stamp}", hint="remove that directory from the archive"
        ) from error


def _plan(settings: CaptureSettings, source: ConsistentSource, point: Point) -> CopyPlan:
    """Return what is copied of the point's tables. Raises PrivacyError."""
    policy = settings.policy
    look = source.look(with_constraints=policy is not None, slot_name=settings.slot_name)
    if policy is None:
        return CopyPlan(look=look, tables=point.tables)
    verdicts = judge_beside(settings.spool_dir, look, policy)
    with closing(SourceEye(settings.params, settings.publication)) as eye:
        plan = plan_copy(point.tables, look, verdicts, eye.look())
    for problem in plan.problems:
        logger.warning(CANNOT_HOLD, problem)
    return plan


def _archive_catalog(settings: CaptureSettings, archive: Archive, look: Look, stamp: str) -> str:
    """Put the catalog of the snapshot's point into the archive, and return its digest."""
    with closing(SourceEye(settings.params, settings.publication)) as eye:
        state = next_state(load_state(settings.spool_dir), look, eye.has_older_rows)
    content = encode_catalog(state.catalog)
    digest = digest_of(content)
    # Before it is there: a catalog must not be pruned that a snapshot names.
    note_snapshot(settings.spool_dir, digest, stamp)
    archive.put(catalog_name(digest), io.BytesIO(content))
    return digest


def _header(chain: Chain, point: Point, newest_file: str | None, digest: str, now: dt.datetime) -> Header:
    return Header(
        syncdata=1,
        system_id=chain.system_id,
        timeline=chain.timeline,
        first_timeline=chain.first_timeline,
        slot=chain.slot,
        epoch=chain.epoch,
        prev=newest_file,
        created=format_moment(now),
        commit_lsn=format_lsn(point.commit_lsn),
        catalog=digest,
        catalog_lsn=format_lsn(point.commit_lsn),
    )


def _require_stream(chain: Chain, identity: SystemIdentity, slot: Slot | None, slot_name: str) -> None:
    """Raise unless the chain's own slot stands ready, so that the changes after the point will be there.

    Its confirmed position is not compared with the chain: a running archiver moves both all the time.
    """
    if (problem := timeline_problem(chain, identity.timeline)) is not None:
        raise SourceChangedError(problem, hint="start it, then take the snapshot again")
    require_same_system(chain, identity)
    require_slot_name(chain, slot_name)
    if slot is None or slot.is_lost:
        state = "is missing" if slot is None else "has lost WAL that it needed"
        raise SlotError(
            f"the slot {slot_name} {state}: changes after a snapshot would be missing", hint=NEW_EPOCH_HINT
        )


@contextmanager
def _alone(spool_dir: Path) -> Iterator[None]:
    """Keep a second snapshot from writing to the same spool; the lock dies with the process."""
    make_spool(spool_dir)
    with translated(spool_dir):
        lock = open(spool_dir / ".snapshot.lock", "wb", opener=private)  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SnapshotError(
                "another snapshot is being taken", hint="wait until it is finished", file=str(spool_dir)
            ) from error
        yield
