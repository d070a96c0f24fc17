"""From the slot to the archive: the loop over sessions, which loses no transaction and archives none twice.

Knows the order of the steps and which errors may pass by themselves; leaves the proof of the chain to
opening.py, and the work on one connection to session.py. The order of the steps makes it safe:

1. Records go to a file in the spool, whole transactions only. Nothing is confirmed for it.
2. The file is finished: footer, flushed to the disk, renamed.
3. It is put into the archive, durably, under its final name.
4. The chain's state says so, durably.
5. The slot's position is confirmed, and the file leaves the spool.

A crash before 2 loses an unfinished file, and the source sends its transactions again. A crash between 2
and 5 finds the file in the spool or in the archive, uploads it once, and leaves out what the source sends
again: say the crash comes after 3, when changes_20260205_103000.json.zst ends with the transaction that was
committed at 0/16B3D50; the next session takes that file up, and drops every transaction up to 0/16B3D50.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing

from syncdata.archive.archive import Archive
from syncdata.capture import opening
from syncdata.capture.catalog_state import load_state
from syncdata.capture.chain import Chain, load_chain
from syncdata.capture.lifesign import make_head, write_head
from syncdata.capture.published import SourceEye
from syncdata.capture.refusals import SlotInUseError
from syncdata.capture.replication import ReplicationConnection
from syncdata.capture.session import Archived, ReplicationSession
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.stream_catalog import StreamCatalog
from syncdata.capture.uploader import Uploader
from syncdata.errors import (
    ArchiveConnectionError,
    DeliveryError,
    DiscoveryError,
    FetchError,
    SourceConnectionError,
    SpoolError,
    SyncError,
)
from syncdata.runtime.retry import Backoff
from syncdata.runtime.told import Told

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
# A later try may find these mended; every other error needs a person.
_PASSING = (
    *(SourceConnectionError, SlotInUseError, SpoolError),
    *(ArchiveConnectionError, DiscoveryError, FetchError, DeliveryError),
)
_SLOT_TRIES, _SLOT_PAUSE_S = 5, 1.0


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
        """Archive until *stop* is set; files that are finished by then are still uploaded.

        Waits for a source, a spool or an archive that is away, full or forbidden for a while. Raises
        SlotError, SourceChangedError, SourceSetupError or CaptureError when only a person can tell how to
        go on.
        """
        backoff, told = Backoff(_FIRST_RETRY_S, _LAST_RETRY_S), Told()
        while not stop.is_set():
            started_s = time.monotonic()
            try:
                self._run(stop, once=False)
            except _PASSING as error:
                if stop.is_set():
                    logger.warning("%s", error, extra={"code": error.code})
                    return
                self._tell(error)
                if time.monotonic() - started_s > _LAST_RETRY_S:
                    backoff.reset()
                    told = Told()
                told.trouble(logger, error, "session", extra={"code": error.code})
                stop.wait(backoff.next_s())
            except SyncError as error:
                self._tell(error)
                raise

    def run_once(self, stop: threading.Event) -> Archived:
        """Archive what was committed before now. Raises SyncError when not all of it is in the archive."""
        tries = _SLOT_TRIES
        while True:
            try:
                return self._run(stop, once=True)
            except SlotInUseError:
                tries -= 1
                if not tries or stop.wait(_SLOT_PAUSE_S):
                    raise

    def begin_epoch(self) -> Chain:
        """Let the chain begin anew where the slot stands now, after an interruption that cannot be mended.

        Files that wait in the spool are uploaded first. Readers stop at the new epoch's first file and begin
        again from its snapshots.
        """
        chain = load_chain(self._settings.spool_dir)
        with ReplicationConnection(self._settings.params) as replication:
            identity = replication.identify()
            opening.require_primary(identity)
            slot = opening.find_slot(replication, self._settings.slot_name, chain)
        opening.require_free(slot)
        with closing(self._open_archive()) as archive:
            return opening.begin_epoch(self._settings, archive, identity, slot, self._clock())

    def open_chain(self) -> Chain:
        """Return the chain, begun if this is the first time. Raises SyncError unless it can be continued."""
        with (
            closing(self._open_archive()) as archive,
            ReplicationConnection(self._settings.params) as replication,
        ):
            identity = replication.identify()
            return opening.open_chain(self._settings, replication, archive, identity, self._clock())[0]

    def _tell(self, error: SyncError) -> None:
        """Let the archive's head say that *error* holds us, for now or until a person mends it; not when it
        is the archive that is away."""
        if isinstance(error, ArchiveConnectionError):
            return
        try:
            chain = load_chain(self._settings.spool_dir)
            if chain is None:
                return
            catalog = load_state(self._settings.spool_dir)
            head = make_head(
                chain,
                now=self._clock(),
                rotate_s=self._settings.rotate_s,
                catalog=catalog.announced if catalog else None,
                state="waiting",
                error_code=error.code,
            )
            with closing(self._open_archive()) as archive:
                write_head(archive, self._settings, head)
        except SyncError as failure:
            logger.warning("%s", failure, extra={"code": failure.code})

    def _run(self, stop: threading.Event, *, once: bool) -> Archived:
        settings = self._settings
        with (
            closing(self._open_archive()) as archive,
            closing(SourceEye(settings.params, settings.publication)) as eye,
            ReplicationConnection(settings.params) as replication,
        ):
            identity = replication.identify()
            chain, spooled = opening.open_chain(settings, replication, archive, identity, self._clock())
            # Before the stream begins: it would not be answered while a look takes its time.
            catalogs = StreamCatalog(settings.spool_dir, eye, rotate_s=settings.rotate_s)
            replication.start(settings.slot_name, settings.publication)
            opening.require_unmoved(settings, chain)
            with Uploader(archive) as uploader:
                session = ReplicationSession(settings, replication, chain, uploader, self._clock, catalogs)
                session.take_up(spooled)
                session.run(stop, until_lsn=identity.wal_lsn if once else None)
                return session.archived
