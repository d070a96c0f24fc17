"""From the slot to the archive: the loop that loses no transaction and archives none twice.

Knows the order of things; leaves messages to pgoutput, files to the spool, and positions to the chain.
The order is what makes it safe:

1. Records go to a file in the spool, whole transactions only. Nothing is confirmed for it.
2. The file is finished: footer, flushed to the disk, renamed.
3. It is put into the archive, durably, under its final name.
4. The chain's state says so, durably.
5. The slot's position is confirmed, and the file leaves the spool.

A crash before 2 loses an unfinished file, and the source sends its transactions again. A crash between
2 and 5 finds the file in the spool or in the archive, delivers it once, and leaves out what the source
sends again by its commit LSN.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from syncdata.archive.archive import Archive
from syncdata.capture.chain import (
    Chain,
    continue_chain,
    from_archive,
    load_chain,
    new_epoch,
    require_same_archive,
    require_same_slot,
    require_same_system,
    save_chain,
)
from syncdata.capture.encoder import LineWriter
from syncdata.capture.pgoutput import Begin, Change, Commit, Decoder, Truncate
from syncdata.capture.replication import (
    NEW_EPOCH_HINT,
    Identity,
    Keepalive,
    ReplicationStream,
    SlotInUseError,
    XLogData,
    source_error,
)
from syncdata.capture.slot import Slot, read_slot
from syncdata.capture.spool import (
    FileWriter,
    SpooledFile,
    take_over,
    translated,
)
from syncdata.capture.uploader import Delivery, deliver
from syncdata.changes.filenames import Compression, next_name
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.changes.reader import inspect
from syncdata.errors import (
    ArchiveConnectionError,
    CaptureError,
    DeliveryError,
    DiscoveryError,
    FetchError,
    SlotError,
    SourceChangedError,
    SourceConnectionError,
    SpoolError,
)

logger = logging.getLogger(__name__)

FEEDBACK_EVERY_S = 10.0
# So many finished files may wait for the archive; then reading pauses, and the source keeps its WAL.
MOST_WAITING = 4
STOP_PATIENCE_S = 20.0

_BURST_MESSAGES = 2_000
_IDLE_S = 0.2
_ANSWER_AFTER_S = 0.05
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
# What a later try may find mended; the rest needs a person.
_PASSING = (
    *(SourceConnectionError, SlotInUseError, SpoolError),
    *(ArchiveConnectionError, DiscoveryError, FetchError, DeliveryError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """``params``: psycopg's, of the source. ``rotate_s`` and ``rotate_bytes`` (of text, before compression):
    a file ends at the first commit after either."""

    params: Mapping[str, Any]
    slot_name: str
    publication: str
    spool_dir: Path
    rotate_s: float = 60.0
    rotate_bytes: int = 64 * 1024 * 1024
    compression: Compression = "zstd"


@dataclass(slots=True, kw_only=True)
class Archived:
    """What was put into the archive."""

    files: int = 0
    transactions: int = 0
    records: int = 0


class Archiver:
    """The daemon's work, without its process. Only one may run on a spool directory at a time."""

    def __init__(
        self,
        settings: CaptureSettings,
        open_archive: Callable[[], Archive],
        *,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._settings = settings
        self._open_archive = open_archive
        self._clock = clock

    def run_loop(self, stop: threading.Event) -> None:
        """Archive until *stop* is set; what is finished then is still delivered.

        What is away, full or forbidden for a while is waited for. Raises SlotError, SourceChangedError,
        SourceSetupError or CaptureError when only a person can tell how to go on.
        """
        failures = 0
        while not stop.is_set():
            started = time.monotonic()
            try:
                self._run(stop, once=False)
            except _PASSING as error:
                if stop.is_set():
                    logger.warning("%s", error, extra={"code": error.code})
                    return
                failures = 0 if time.monotonic() - started > _LAST_RETRY_S else failures + 1
                logger.error("%s", error, extra={"code": error.code})
                stop.wait(min(_FIRST_RETRY_S * 2**failures, _LAST_RETRY_S) * random.uniform(0.5, 1.0))  # noqa: S311

    def run_once(self, stop: threading.Event) -> Archived:
        """Archive what was committed before now. Raises SyncError when not all of it is in the archive."""
        patience = 5
        while True:
            try:
                return self._run(stop, once=True)
            except SlotInUseError:
                patience -= 1
                if not patience or stop.wait(1.0):
                    raise

    def begin_epoch(self) -> Chain:
        """Let the chain begin anew where the slot stands now, after an interruption that cannot be mended.

        What waits in the spool is delivered first. Readers stop at the new epoch's first file and begin
        again from its snapshots.
        """
        chain = load_chain(self._settings.spool_dir)
        with ReplicationStream(self._settings.params) as stream:
            identity, slot = stream.identify(), self._slot(stream, chain)
        _require_free(slot)
        archive = self._open_archive()
        try:
            spooled = take_over(self._settings.spool_dir)
            if chain is not None:
                for file in continue_chain(chain, spooled)[1]:
                    deliver(archive, file)
                    chain = chain.followed_by(file)
                save_chain(self._settings.spool_dir, chain)
            for file in spooled:
                _remove_from_spool(file)
            # Only now: a spool with files of the epoch before would not follow the new one.
            chain = new_epoch(identity, slot, _newest_file(archive, None), self._clock())
            save_chain(self._settings.spool_dir, chain)
        finally:
            archive.close()
        return chain

    def open_chain(self) -> Chain:
        """Return the chain, begun if this is the first time. Raises SyncError unless it can be continued."""
        archive = self._open_archive()
        try:
            with ReplicationStream(self._settings.params) as stream:
                return self._open_chain(stream, archive, stream.identify())[0]
        finally:
            archive.close()

    def _run(self, stop: threading.Event, *, once: bool) -> Archived:
        archive = self._open_archive()
        try:
            with ReplicationStream(self._settings.params) as stream:
                identity = stream.identify()
                chain, spooled = self._open_chain(stream, archive, identity)
                stream.start(self._settings.slot_name, self._settings.publication)
                self._require_unmoved(chain)
                with Delivery(archive) as delivery:
                    session = _Session(self._settings, stream, chain, delivery, self._clock)
                    session.take_up(spooled)
                    session.run(stop, until_lsn=identity.wal_lsn if once else None)
                    return session.archived
        finally:
            archive.close()

    def _open_chain(
        self, stream: ReplicationStream, archive: Archive, identity: Identity
    ) -> tuple[Chain, list[SpooledFile]]:
        directory = self._settings.spool_dir
        with translated(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        chain = load_chain(directory)
        if chain is not None:
            require_same_system(chain, identity)
        slot = self._slot(stream, chain)
        if chain is not None:
            require_same_slot(chain, slot)
        _require_free(slot)
        spooled = take_over(directory)
        newest_file = _newest_file(archive, chain.last_file if chain else None)
        if chain is None:
            chain = self._begin_chain(archive, identity, slot, newest_file)
            require_same_system(chain, identity)
            require_same_slot(chain, slot)
        require_same_archive(chain, newest_file, spooled)
        save_chain(directory, chain)
        return chain, spooled

    def _begin_chain(
        self, archive: Archive, identity: Identity, slot: Slot, newest_file: str | None
    ) -> Chain:
        if newest_file is not None:
            (file,) = archive.discover(newest_file)[-1:]
            with archive.fetch(file) as stream:
                inspection = inspect(stream, file.name)
            if inspection.header is not None and inspection.footer is not None:
                return from_archive(inspection.header, inspection.footer, file.name, slot, self._clock())
            if inspection.unfinished or inspection.error:
                raise SourceChangedError(
                    "the archive's newest change file is not whole, so nothing tells how the chain goes on",
                    hint="put a good copy in its place, or wait until it is written; else " + NEW_EPOCH_HINT,
                    file=file.name,
                )
        return new_epoch(identity, slot, newest_file, self._clock())

    def _require_unmoved(self, chain: Chain) -> None:
        """Look at the slot again, now that it is ours: until then, others could move it."""
        try:
            with psycopg.connect(**self._settings.params, autocommit=True) as connection:
                slot = read_slot(connection, self._settings.slot_name)
        except psycopg.Error as error:
            raise source_error(error) from error
        if slot is not None:
            require_same_slot(chain, slot)

    def _slot(self, stream: ReplicationStream, chain: Chain | None) -> Slot:
        name = self._settings.slot_name
        slot = stream.slot(name)
        if slot is None:
            hint = NEW_EPOCH_HINT if chain else "run 'python manage.py setup_logical_replication'"
            raise SlotError(f"the source has no replication slot {name}", hint=hint)
        if slot.plugin != "pgoutput":
            raise SlotError(
                f"the slot {name} is not of the plugin pgoutput", hint="set slot_name to a name of our own"
            )
        return slot


class _Session:
    """One connection's life. ``chain`` is delivered and durable; ``head`` is it with what waits."""

    def __init__(
        self,
        settings: CaptureSettings,
        stream: ReplicationStream,
        chain: Chain,
        delivery: Delivery,
        clock: Callable[[], dt.datetime],
    ) -> None:
        self._settings = settings
        self._stream = stream
        self._chain = self._head = chain
        self._delivery = delivery
        self._clock = clock
        self._decoder = Decoder()
        self._writer: FileWriter | None = None
        self._file = _Counts()
        self._opened_s = 0.0
        self._lines: LineWriter | None = None  # of the open transaction; None for one that is archived
        self._commit_lsn: int | None = None  # of the open transaction
        self._received_lsn = 0
        self._feedback_due_s = 0.0
        self._must_rotate = False
        self._is_asked = False
        self.archived = Archived()

    def take_up(self, spooled: list[SpooledFile]) -> None:
        """Deliver what the process before this one has left in the spool."""
        self._head, waiting = continue_chain(self._chain, spooled)
        for file in spooled:
            if file in waiting:
                self._delivery.submit(file)
            else:
                _remove_from_spool(file)

    def run(self, stop: threading.Event, *, until_lsn: int | None) -> None:
        """Archive until *stop* is set, or until all that was committed before *until_lsn* is archived.

        While the archive refuses files, reading goes on up to a limit. Then the source is let go of, for a
        connection that confirms nothing would keep it from shutting down.
        """
        logger.info("archiving what commits after %s", self._chain.confirmed_lsn)
        stopping_s: float | None = None
        try:
            while True:
                self._note_delivered()
                is_busy = self._read_burst()
                self._rotate_if_due()
                self._give_feedback_if_due(wants_reply=until_lsn is not None)
                if self._delivery.error and (
                    until_lsn is not None or self._is_asked or self._delivery.waiting >= MOST_WAITING
                ):
                    raise self._delivery.error
                if stop.is_set():
                    stopping_s = stopping_s or time.monotonic()
                    if self._commit_lsn is None or time.monotonic() - stopping_s > STOP_PATIENCE_S:
                        break
                if until_lsn is not None and self._received_lsn >= until_lsn and self._commit_lsn is None:
                    break
                if not is_busy:
                    self._rest()
            self._end(is_stop=until_lsn is None)
        finally:
            if self._writer is not None:
                self._writer.discard()
                self._writer = None

    def _rest(self) -> None:
        if self._delivery.waiting >= MOST_WAITING:
            self._delivery.wait(_IDLE_S)
        else:
            self._stream.wait(_IDLE_S if not self._delivery.waiting else _IDLE_S / 10)

    def _end(self, *, is_stop: bool) -> None:
        """Finish the open file, and wait until all is delivered; a stop waits only while that goes well."""
        if self._writer is not None and self._commit_lsn is None:
            self._rotate()
        deadline_s = time.monotonic() + STOP_PATIENCE_S
        while self._delivery.waiting:
            self._delivery.wait(_IDLE_S)
            self._note_delivered()
            self._give_feedback_if_due()
            if self._delivery.error and not is_stop:
                raise self._delivery.error
            if is_stop and (self._delivery.error or time.monotonic() > deadline_s):
                logger.warning("%d file(s) stay in the spool for the next start", self._delivery.waiting)
                break
        self._confirm_idle()
        self._stream.confirm(self._chain.confirmed)
        self._stream.finish(timeout_s=2.0)

    # Messages

    def _read_burst(self) -> bool:
        """Read what has arrived, up to some limit; tell whether there may be more."""
        read, handle = self._stream.read, self._handle
        for _ in range(_BURST_MESSAGES):
            if self._delivery.waiting >= MOST_WAITING:
                return False
            message = read()
            if message is None:
                self._stream.wait(0)
                if (message := read()) is None:
                    return False
            handle(message)
        return True

    def _handle(self, received: XLogData | Keepalive) -> None:
        if isinstance(received, Keepalive):
            self._note_keepalive(received)
            return
        try:
            message = self._decoder.decode(received.message)
        except CaptureError as error:
            raise CaptureError(f"at {format_lsn(received.lsn)}: {error.message}", hint=error.hint) from error
        match message:
            case Change():
                if self._lines is not None:
                    self._write(self._lines.change(message, received.lsn))
            case Begin():
                self._begin(message)
            case Commit():
                self._commit(message)
            case Truncate():
                if self._lines is not None:
                    for line in self._lines.truncate(message, received.lsn):
                        self._write(line)

    def _begin(self, begin: Begin) -> None:
        self._commit_lsn = begin.commit_lsn
        is_archived = begin.commit_lsn <= max(self._head.watermark, self._file.last_commit_lsn or -1)
        self._lines = None if is_archived else LineWriter(begin)
        self._file.records_before = self._file.records

    def _commit(self, commit: Commit) -> None:
        file = self._file
        if file.records > file.records_before:
            file.transactions += 1
            file.last_commit_lsn = commit.commit_lsn
            file.end_lsn = commit.end_lsn
            if file.first_commit_lsn is None:
                file.first_commit_lsn = commit.commit_lsn
        self._commit_lsn = self._lines = None
        self._received_lsn = max(self._received_lsn, commit.end_lsn)
        if self._writer is not None and self._writer.text_bytes >= self._settings.rotate_bytes:
            self._rotate()

    def _write(self, line: bytes) -> None:
        if self._writer is None:
            header = self._head.header(self._clock(), start_lsn=self._commit_lsn)
            self._writer = FileWriter(
                self._settings.spool_dir, ".changes.part", header, self._settings.compression
            )
            self._opened_s = time.monotonic()
        self._writer.write(line)
        self._file.records += 1

    def _note_keepalive(self, keepalive: Keepalive) -> None:
        if self._commit_lsn is None:
            self._received_lsn = max(self._received_lsn, keepalive.wal_end)
        if keepalive.wants_reply:
            # We report often enough not to be asked, so this is a server that wants to shut down, and waits
            # until all is confirmed.
            self._must_rotate = self._is_asked = True
            # Not at once: it asks again after each answer that does not satisfy it.
            self._feedback_due_s = min(self._feedback_due_s, time.monotonic() + _ANSWER_AFTER_S)

    # Files and positions

    def _rotate_if_due(self) -> None:
        if self._writer is None or self._commit_lsn is not None:
            self._must_rotate = self._must_rotate and self._writer is not None
            return
        if self._must_rotate or time.monotonic() - self._opened_s >= self._settings.rotate_s:
            self._rotate()

    def _rotate(self) -> None:
        """Finish the open file, which ends with a commit, and send it on its way."""
        assert self._writer is not None
        file = self._file
        spooled = self._writer.finish(
            next_name(self._clock(), self._head.last_file),
            records=file.records,
            transactions=file.transactions,
            first_commit_lsn=file.first_commit_lsn,
            last_commit_lsn=file.last_commit_lsn,
            end_lsn=file.end_lsn,
        )
        self._writer, self._file, self._must_rotate = None, _Counts(), False
        self._head = self._head.followed_by(spooled)
        self._delivery.submit(spooled)

    def _note_delivered(self) -> None:
        for file in self._delivery.take_delivered():
            chain = self._chain.followed_by(file)
            self._advance(chain.confirm(parse_lsn(file.footer.end_lsn or "0/0"), self._clock()))
            _remove_from_spool(file)
            self.archived.files += 1
            self.archived.transactions += file.footer.transactions or 0
            self.archived.records += file.footer.records

    def _confirm_idle(self) -> None:
        """Where nothing waits, what was read and concerns us not is confirmed, too: it pins no WAL."""
        is_idle = self._writer is None and self._commit_lsn is None and not self._delivery.waiting
        if is_idle and self._received_lsn > self._chain.confirmed:
            self._advance(self._chain.confirm(self._received_lsn, self._clock()))

    def _advance(self, chain: Chain) -> None:
        """Make *chain* durable, and only then tell the source."""
        save_chain(self._settings.spool_dir, chain)
        self._chain = chain
        self._stream.confirm(chain.confirmed)

    def _give_feedback_if_due(self, *, wants_reply: bool = False) -> None:
        now_s = time.monotonic()
        if now_s < self._feedback_due_s:
            return
        self._feedback_due_s = now_s + (FEEDBACK_EVERY_S if not wants_reply else 0.5)
        self._confirm_idle()
        self._stream.confirm(self._chain.confirmed, wants_reply=wants_reply)


@dataclass(slots=True)
class _Counts:
    """What the open file holds. ``records_before``: how many before the open transaction."""

    records: int = 0
    records_before: int = 0
    transactions: int = 0
    first_commit_lsn: int | None = None
    last_commit_lsn: int | None = None
    end_lsn: int | None = None


def _require_free(slot: Slot) -> None:
    """Raise SlotInUseError while somebody reads *slot*: another chain may be written from it."""
    if slot.active_pid is not None:
        raise SlotInUseError(
            f"the slot {slot.name} is in use (process {slot.active_pid} of the source)",
            hint="stop the other reader; after a crash the server frees the slot by itself",
        )


def _newest_file(archive: Archive, since: str | None) -> str | None:
    files = archive.discover(since)
    return files[-1].name if files else None


def _remove_from_spool(file: SpooledFile) -> None:
    with translated(file.path):
        file.path.unlink(missing_ok=True)
