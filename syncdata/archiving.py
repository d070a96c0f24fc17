"""The archiver as a service: what ``archive_changes`` calls. Composes configuration, capture and archive."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import psycopg

from syncdata.archive.archive import Archive, open_archive
from syncdata.archive.retention import Removals, find_removals, prune
from syncdata.capture.archiver import Archived, Archiver, CaptureSettings
from syncdata.capture.chain import Chain, load_chain, require_same_slot
from syncdata.capture.replication import source_error
from syncdata.capture.slot import Slot, published_tables, read_slot
from syncdata.capture.snapshot import NO_PROGRESS, SnapshotProgress, TakenSnapshot, take_snapshots
from syncdata.capture.spool import list_finished, translated
from syncdata.capture.status import ArchiverStatus, archiver_status, retention_warning, unpublished_warning
from syncdata.changes.filenames import Compression
from syncdata.changes.names import TableName
from syncdata.conf import SourceConfig
from syncdata.daemon import PidFile, running_pid
from syncdata.errors import ArchiverRunError, PidFileError, SnapshotError, SyncError

logger = logging.getLogger(__name__)

ARCHIVER_PID_FILE_NAME = ".syncdata_archiver.pid"

_FIRST_WATCH_S, _WATCH_EVERY_S = 1.0, 60.0
_BEGIN_PATIENCE_S, _BEGIN_POLL_S = 20.0, 0.2


class ArchivingService:
    """One production side at work. Holds nothing open between calls."""

    def __init__(self, config: SourceConfig) -> None:
        self._config = config

    @property
    def pid_file(self) -> Path:
        return self._config.spool_dir / ARCHIVER_PID_FILE_NAME

    @property
    def has_chain(self) -> bool:
        """Whether an archiver has begun a chain of change files here."""
        return load_chain(self._config.spool_dir) is not None

    def run_loop(self, stop: threading.Event) -> None:
        """Archive until *stop* is set. Raises SyncError when only a person can tell how to go on."""
        with self._as_the_only_one(), _Housekeeper(self, self._config, stop):
            self._archiver().run_loop(stop)

    def run_once(self, stop: threading.Event) -> Archived:
        """Archive what was committed before now. Raises SyncError when not all of it is in the archive."""
        with self._as_the_only_one():
            return self._archiver().run_once(stop)

    def begin_epoch(self) -> Chain:
        """Begin the chain anew where the slot stands, after an interruption that cannot be mended."""
        with self._as_the_only_one():
            return self._archiver().begin_epoch()

    def take_snapshots(
        self,
        tables: Sequence[str] = (),
        *,
        stop: threading.Event,
        progress: SnapshotProgress = NO_PROGRESS,
    ) -> list[TakenSnapshot]:
        """Put a snapshot of each of *tables*, without any of all configured ones, into the archive.

        All are of one moment. An archiver may run meanwhile. Raises SnapshotError.
        """
        return take_snapshots(
            self._settings,
            self._open_archive,
            self._chain(),
            self._chosen(tables),
            stop=stop,
            progress=progress,
        )

    def prune(self, *, stop: threading.Event, is_dry_run: bool = False) -> Removals:
        """Remove from the archive what no resync can need any more; return what was removed.

        *is_dry_run*: only say what could be. Raises RetentionError, and what the archive raises.
        """
        chain = self._chain()
        with closing(self._open_archive()) as archive:
            removals = find_removals(
                archive,
                self._config.tables,
                source_id=chain.source_id,
                now=_utcnow(),
                keep_days=self._config.keep_days,
            )
            return removals if is_dry_run else prune(archive, removals, stop=stop)

    def get_status(self) -> ArchiverStatus:
        """Return how the archiver does, from slot and spool; a source that is away is one of its problems."""
        slot, problems = None, []
        try:
            slot, unpublished = self._read_source()
            if unpublished:
                problems.append(unpublished_warning(unpublished))
            if slot is None:
                problems.append(f"the source has no replication slot {self._config.slot_name}")
            elif slot.is_lost:
                problems.append(f"the slot {slot.name} is lost: the source has removed WAL that it needed")
        except SyncError as error:
            problems.append(str(error))
        is_active = running_pid(self.pid_file) is not None
        chain = load_chain(self._config.spool_dir)
        if slot is not None and chain is not None and not is_active and not slot.is_lost:
            # Beside a running archiver the slot moves on while we look.
            try:
                require_same_slot(chain, slot)
            except SyncError as error:
                problems.append(str(error))
        return archiver_status(
            is_active=is_active,
            slot_name=self._config.slot_name,
            slot=slot,
            chain=chain,
            waiting=list_finished(self._config.spool_dir),
            rotate_s=self._config.rotate_seconds,
            now=_utcnow(),
            problems=tuple(problems),
        )

    def watch_source(self) -> list[str]:
        """Return what somebody should know before it is too late. Raises SourceConnectionError."""
        slot, unpublished = self._read_source()
        warnings = [retention_warning(slot)] if slot else []
        if unpublished:
            warnings.append(unpublished_warning(unpublished))
        return [warning for warning in warnings if warning]

    # Inside

    def _read_source(self) -> tuple[Slot | None, list[str]]:
        """Return the slot, and the configured tables whose changes are not published."""
        try:
            with psycopg.connect(**self._config.connection_params, autocommit=True) as connection:
                published = published_tables(connection, self._config.publication)
                unpublished = [str(table) for table in self._config.tables if table not in published]
                return read_slot(connection, self._config.slot_name), unpublished
        except psycopg.Error as error:
            raise source_error(error) from error

    @property
    def _settings(self) -> CaptureSettings:
        config = self._config
        return CaptureSettings(
            params=config.connection_params,
            slot_name=config.slot_name,
            publication=config.publication,
            spool_dir=config.spool_dir,
            rotate_s=config.rotate_seconds,
            rotate_bytes=config.rotate_bytes,
            compression=cast(Compression, config.compression),
        )

    def _archiver(self) -> Archiver:
        return Archiver(self._settings, self._open_archive)

    def _open_archive(self) -> Archive:
        return open_archive(self._config.archive, spool_dir=self._config.spool_dir)

    def _chain(self) -> Chain:
        """Return the chain; a running archiver has begun it, and without one it can be begun here."""
        deadline_s = time.monotonic() + _BEGIN_PATIENCE_S
        while (chain := load_chain(self._config.spool_dir)) is None:
            try:
                with self._as_the_only_one():
                    return self._archiver().open_chain()
            except ArchiverRunError:
                # One that has just been started is about to begin it.
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_BEGIN_POLL_S)
        return chain

    def _chosen(self, names: Sequence[str]) -> list[TableName]:
        tables = list(dict.fromkeys(TableName.parse(name) for name in names)) or list(self._config.tables)
        if unknown := [str(table) for table in tables if table not in self._config.tables]:
            raise SnapshotError(
                f"not in source.tables: {', '.join(unknown)}",
                hint="add them there and run 'python manage.py setup_logical_replication'",
            )
        return tables

    @contextmanager
    def _as_the_only_one(self) -> Iterator[None]:
        """Be the one archiver of this spool directory. Raises ArchiverRunError when there is another."""
        directory = self._config.spool_dir
        with translated(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        claim = PidFile(self.pid_file)
        try:
            claim.__enter__()
        except PidFileError as error:
            raise ArchiverRunError(
                error.message, hint="stop it first: python manage.py archive_changes --stop"
            ) from error
        try:
            yield
        finally:
            claim.__exit__(None, None, None)


class _Housekeeper:
    """Beside a running archiver: warns before the slot is lost, and prunes every ``prune_hours``."""

    def __init__(self, service: ArchivingService, config: SourceConfig, stop: threading.Event) -> None:
        self._service = service
        self._prune_every_s = config.prune_hours * 3600
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name="syncdata-housekeeper", daemon=True)
        self._ended = threading.Event()
        self._warnings: list[str] = []
        self._reason = ""

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        prune_due_s = time.monotonic() + self._prune_every_s
        wait_s = _FIRST_WATCH_S
        while not self._ended.wait(wait_s):
            wait_s = _WATCH_EVERY_S
            try:
                self._watch_source()
                if self._prune_every_s and time.monotonic() >= prune_due_s and not self._stop.is_set():
                    prune_due_s = time.monotonic() + self._prune_every_s
                    self._prune()
            except SyncError as error:
                # The archiver itself meets a source or an archive that is away; this tries again.
                logger.warning("%s", error, extra={"code": error.code})

    def _prune(self) -> None:
        removals = self._service.prune(stop=self._stop)
        if removals.reason and removals.reason != self._reason:
            logger.warning("%s", removals.reason)
        self._reason = removals.reason

    def _watch_source(self) -> None:
        """Log each warning when it comes up, not every minute."""
        before, self._warnings = self._warnings, self._service.watch_source()
        for warning in self._warnings:
            # Beginnings: the numbers in it change.
            if not any(old[:30] == warning[:30] for old in before):
                logger.warning("%s", warning)


def _utcnow() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
