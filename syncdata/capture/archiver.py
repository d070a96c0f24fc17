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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial

from syncdata.archive.archive import Archive
from syncdata.capture import opening
from syncdata.capture.catalog_state import leave_out, load_state, save_state
from syncdata.capture.chain import Chain, format_moment, load_chain, save_chain
from syncdata.capture.lifesign import make_head, write_head
from syncdata.capture.policy_note import id_of, note_policy
from syncdata.capture.published import SourceEye
from syncdata.capture.refusals import SlotInUseError
from syncdata.capture.replication import ReplicationConnection
from syncdata.capture.session import Archived, ReplicationSession
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.slot import advance_slot
from syncdata.capture.source import connect
from syncdata.capture.stream_catalog import StreamCatalog
from syncdata.capture.trial import try_all
from syncdata.capture.trouble import forget_trouble, note_trouble
from syncdata.capture.unreadable import (
    LeftOut,
    forget_unreadable,
    load_unreadable,
    log_left_out,
    note_unreadable,
)
from syncdata.capture.uploader import Uploader
from syncdata.capture.verifier import Verifier
from syncdata.changes.position import format_lsn
from syncdata.errors import (
    ArchiveConnectionError,
    CaptureError,
    DeliveryError,
    DiscoveryError,
    FetchError,
    SourceConnectionError,
    SpoolError,
    SyncError,
    UnreadableChangeError,
)
from syncdata.runtime.retry import Backoff
from syncdata.runtime.told import Told
from syncdata.runtime.unexpected import unexpected_error

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
# A later try may find these mended; every other error needs a person.
_PASSING = (
    *(SourceConnectionError, SlotInUseError, SpoolError, UnreadableChangeError),
    *(ArchiveConnectionError, DiscoveryError, FetchError, DeliveryError),
)
_SLOT_TRIES, _SLOT_PAUSE_S = 5, 1.0
# A session that has gone on for so long has passed what made the one before it fail.
_SETTLED_S = 10.0


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
        self._is_start = True

    def run_loop(self, stop: threading.Event) -> None:
        """Archive until *stop* is set; files that are finished by then are still uploaded.

        Waits for a source, a spool or an archive that is away, full or forbidden for a while, and at a change
        that the source cannot hand over; tries again after an error that nobody foresaw. Raises SlotError,
        SourceChangedError, SourceSetupError or another CaptureError when only a person can tell how to go on.
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
                trouble: SyncError = error
            except SyncError as error:
                self._tell(error)
                raise
            except Exception as error:
                trouble = unexpected_error(error)
                self._note(trouble)
            else:
                continue
            if time.monotonic() - started_s > _LAST_RETRY_S:
                backoff.reset()
                told = Told()
            told.trouble(logger, trouble, "session", extra=trouble.fields)
            self._tell(trouble)
            stop.wait(backoff.next_s())

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
            chain = opening.begin_epoch(self._settings, archive, identity, slot, self._clock())
        # All that comes is under the policy of now, the snapshots that are taken next among it.
        self._note_policy(chain.last_file)
        # The new epoch may be of another system, whose LSNs do not compare with the one noted.
        forget_unreadable(self._settings.spool_dir)
        return chain

    def leave_out(self, commit_lsn: int, *, requested_by: str) -> None:
        """Go on behind the transaction that committed at *commit_lsn*, which the source cannot hand over.

        It must be the one that holds the stream, and fail once more: what was committed before is archived by
        then. Its tables are not known, for its changes cannot be read: so the catalog says of every published
        table that this transaction is missing, durably, before the slot moves. Raises CaptureError where
        another transaction holds the stream, or none.
        """
        settings = self._settings
        try:
            self._run(threading.Event(), once=True)
        except UnreadableChangeError as error:
            if error.commit_lsn != commit_lsn:
                raise
            reason = str(error)
        else:
            raise CaptureError(
                f"no change holds the stream: what was committed up to {_confirmed(settings)} is archived",
                hint="nothing was left out; 'python manage.py archive_changes --status' shows how it stands",
            )
        chain = load_chain(settings.spool_dir)
        state = load_state(settings.spool_dir)
        assert chain is not None and state is not None
        if chain.confirmed > commit_lsn:
            raise CaptureError(f"the archive is past {format_lsn(commit_lsn)}", hint="nothing was left out")
        now = self._clock()
        save_state(settings.spool_dir, leave_out(state, commit_lsn))
        log_left_out(
            settings.spool_dir,
            LeftOut(commit_lsn=format_lsn(commit_lsn), at=format_moment(now), by=requested_by, error=reason),
        )
        chain = chain.confirm(commit_lsn + 1, now)
        save_chain(settings.spool_dir, chain)
        with connect(settings.params) as connection:
            advance_slot(connection, settings.slot_name, chain.confirmed)
        logger.warning(
            "the transaction that committed at %s is left out, as %s asked",
            format_lsn(commit_lsn),
            requested_by,
        )
        self._run(threading.Event(), once=True)

    def open_chain(self) -> Chain:
        """Return the chain, begun if this is the first time. Raises SyncError unless it can be continued."""
        with (
            closing(self._open_archive()) as archive,
            ReplicationConnection(self._settings.params) as replication,
        ):
            identity = replication.identify()
            return opening.open_chain(self._settings, replication, archive, identity, self._clock())[0]

    def _note_policy(self, last_file: str | None) -> None:
        directory, policy_id = self._settings.spool_dir, id_of(self._settings.policy)
        note_policy(directory, policy_id, last_file=last_file, now=self._clock())

    def _note(self, error: SyncError) -> None:
        """Leave *error*, which nobody foresaw, for `--status`; the log has it already."""
        try:
            note_trouble(self._settings.spool_dir, error, at=format_moment(self._clock()))
        except SyncError as failure:
            logger.warning("%s", failure, extra={"code": failure.code})

    @contextmanager
    def _forgetting_trouble(self) -> Iterator[None]:
        """Take the note of an unexpected error away when the block has gone on for a while, or ended well."""
        timer = threading.Timer(_SETTLED_S, self._forget)
        timer.daemon = True
        timer.start()
        try:
            yield
            self._forget()
        finally:
            timer.cancel()
            timer.join()

    def _forget(self) -> None:
        try:
            forget_trouble(self._settings.spool_dir)
        except SyncError as failure:
            logger.warning("%s", failure, extra={"code": failure.code})

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
        except Exception as failure:  # what it was to tell is in the log, and is what matters
            logger.warning("the archive's head is not written: %s", unexpected_error(failure).message)

    def _run(self, stop: threading.Event, *, once: bool) -> Archived:
        """Work for one session; for a second one where a change turns out unreadable that was not known to
        be: then the file before it is finished, and delivered.

        Test: test_what_was_committed_before_a_change_that_cannot_be_read_is_delivered.
        """
        directory = self._settings.spool_dir
        held = load_unreadable(directory, load_chain(directory))
        try:
            return self._run_session(stop, once=once, held_lsn=None if held is None else held.lsn)
        except UnreadableChangeError as error:
            if error.commit_lsn is None or stop.is_set():
                raise
            chain = load_chain(directory)
            if chain is not None and chain.confirmed > error.commit_lsn:
                # It was left out, but the slot has gone back: a kill, or a crash of the source, came before
                # its step was durable. All that the chain has confirmed is archived or left out. Test:
                # test_a_transaction_that_was_left_out_stays_so_when_the_slot_goes_back.
                with connect(self._settings.params) as connection:
                    advance_slot(connection, self._settings.slot_name, chain.confirmed)
                return self._run_session(stop, once=once, held_lsn=None)
            note_unreadable(directory, error.commit_lsn, error)
            if held is not None and held.lsn == error.commit_lsn:
                raise
            held_lsn = error.commit_lsn
        return self._run_session(stop, once=once, held_lsn=held_lsn)

    def _run_session(self, stop: threading.Event, *, once: bool, held_lsn: int | None) -> Archived:
        settings = self._settings
        with (
            closing(self._open_archive()) as archive,
            closing(_eye(settings)) as eye,
            ReplicationConnection(settings.params) as replication,
        ):
            identity = replication.identify()
            chain, spooled = opening.open_chain(settings, replication, archive, identity, self._clock())
            # Before the stream begins: it would not be answered while a look takes its time.
            catalogs = StreamCatalog(
                settings.spool_dir,
                eye,
                rotate_s=settings.rotate_s,
                policy=settings.policy,
                is_start=self._is_start,
                try_masks=partial(try_all, settings.params),
            )
            # Later on, what a migration makes of the policy is withheld: the stream goes on.
            self._is_start = False
            self._note_policy(spooled[-1].name if spooled else chain.last_file)
            # A run that ends by itself is over before there is anything to verify.
            verifier = Verifier(settings, self._clock) if settings.verify_rows_per_s and not once else None
            replication.start(settings.slot_name, settings.publication, with_messages=verifier is not None)
            opening.require_unmoved(settings, chain)
            with Uploader(archive) as uploader, verifier or nullcontext():
                session = ReplicationSession(
                    settings,
                    replication,
                    chain,
                    uploader,
                    self._clock,
                    catalogs,
                    held_lsn=held_lsn,
                    verification=None if verifier is None else verifier.exchange,
                )
                session.take_up(spooled)
                with self._forgetting_trouble():
                    session.run(stop, until_lsn=identity.wal_lsn if once else None)
                return session.archived


def _eye(settings: CaptureSettings) -> SourceEye:
    return SourceEye(
        settings.params,
        settings.publication,
        with_constraints=settings.policy is not None,
        slot_name=settings.slot_name,
    )


def _confirmed(settings: CaptureSettings) -> str:
    chain = load_chain(settings.spool_dir)
    return chain.confirmed_lsn if chain else "-"
