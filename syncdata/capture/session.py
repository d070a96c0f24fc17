"""One replication connection at work: messages become files, files go to the archive, confirmations go to
the source.

Knows when to read, when to wait and what may be confirmed; leaves the making of files to the assembler and
their upload to the uploader. A session ends with its connection; the archiver begins the next one.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from syncdata.capture.assembler import Assembler
from syncdata.capture.chain import Chain, continue_chain, save_chain
from syncdata.capture.lifesign import head_interval_s, make_head, write_head
from syncdata.capture.pgoutput import Mark
from syncdata.capture.proof_of_reads import TouchedTables, Verdict
from syncdata.capture.published import SeenTable
from syncdata.capture.replication import Keepalive, ReplicationConnection
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.spool import SpooledFile, remove_from_spool
from syncdata.capture.stream_catalog import StreamCatalog
from syncdata.capture.uploader import Uploader
from syncdata.capture.verify_exchange import Exchange
from syncdata.changes.position import format_lsn, parse_lsn
from syncdata.changes.verification import check_comment
from syncdata.errors import UnreadableChangeError

logger = logging.getLogger(__name__)

FEEDBACK_EVERY_S = 10.0
# When so many finished files wait for the archive, reading pauses, and the source keeps its WAL.
MOST_WAITING = 4
STOP_PATIENCE_S = 20.0

_IDLE_S = 0.2
# After something has arrived: the source sends each message by itself, and to wake for each would cost both
# sides more than the message does.
_GATHER_S = 0.000_5
_ANSWER_AFTER_S = 0.05
_FINISH_PATIENCE_S = 2.0
_HEAD_PATIENCE_S = 5.0


@dataclass(slots=True, kw_only=True)
class Archived:
    """The number of files, and of their transactions and records, that were put into the archive."""

    files: int = 0
    transactions: int = 0
    records: int = 0


class ReplicationSession:
    """The life of one replication connection.

    ``_chain`` ends with the last file that is in the archive, and is on the disk; the assembler's ``head``
    ends with the last finished file, which may still wait in the spool.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        replication: ReplicationConnection,
        chain: Chain,
        uploader: Uploader,
        clock: Callable[[], dt.datetime],
        catalogs: StreamCatalog,
        *,
        held_lsn: int | None = None,
        verification: Exchange | None = None,
    ) -> None:
        """*held_lsn*: the transaction that could not be read the last time; see `Assembler`. *verification*:
        with the verifier, where there is one."""
        self.archived = Archived()
        self._settings = settings
        self._replication = replication
        self._chain = chain
        self._uploader = uploader
        self._clock = clock
        self._catalogs = catalogs
        self._verification = verification
        self._touched = TouchedTables()
        self._files = Assembler(
            settings,
            chain,
            self._submit,
            clock,
            catalogs,
            held_lsn=held_lsn,
            touched=None if verification is None else self._touched,
            take_mark=self._take_mark,
        )
        self._feedback_due_s = self._head_due_s = 0.0
        self._arrived: Sequence[bytes] = ()  # messages that were read, and wait to be taken in
        self._stopping_since_s: float | None = None
        self._is_asked = False  # by a server that wants to shut down

    def take_up(self, spooled: list[SpooledFile]) -> None:
        """Upload the files that the process before this one has left in the spool."""
        self._files.head, waiting = continue_chain(self._chain, spooled)
        for file in spooled:
            if file in waiting:
                self._uploader.submit(file)
            else:
                remove_from_spool(file)

    def run(self, stop: threading.Event, *, until_lsn: int | None) -> None:
        """Archive until *stop* is set, or until all that was committed before *until_lsn* is in the archive.

        While the archive refuses files, reading goes on until `MOST_WAITING` of them wait. Then this raises
        the archive's error, and the connection ends: the source could not shut down while it waits for a
        connection that confirms nothing.

        Where the source cannot hand over a change, the finished files are put into the archive, and
        UnreadableChangeError says which transaction it is.
        """
        logger.info("archiving what commits after %s", self._chain.confirmed_lsn)
        is_daemon = until_lsn is None
        try:
            while True:
                self._note_uploaded()
                is_busy = self._read_burst()
                self._follow_catalog()
                self._follow_verifier()
                self._files.finish_if_due()
                self._write_head_if_due()
                self._give_feedback_if_due(wants_reply=not is_daemon)
                self._require_progress(may_wait=is_daemon)
                if self._is_over(stop, until_lsn):
                    break
                if not is_busy:
                    self._rest()
            self._end(is_stop=is_daemon)
        except UnreadableChangeError as error:
            self._deliver_finished()
            raise self._files.locate(error) from error
        finally:
            self._files.discard()

    def _is_over(self, stop: threading.Event, until_lsn: int | None) -> bool:
        """Tell whether reading is over. After a stop it goes on a while, to reach a transaction's end."""
        if stop.is_set():
            now_s = time.monotonic()
            self._stopping_since_s = self._stopping_since_s or now_s
            if not self._files.is_in_transaction or now_s - self._stopping_since_s > STOP_PATIENCE_S:
                return True
        return (
            until_lsn is not None
            and self._files.received_lsn >= until_lsn
            and not self._files.is_in_transaction
        )

    def _require_progress(self, *, may_wait: bool) -> None:
        """Raise the archive's error unless waiting for it is harmless."""
        if self._uploader.error and (
            not may_wait or self._is_asked or self._uploader.waiting >= MOST_WAITING
        ):
            raise self._uploader.error

    def _rest(self) -> None:
        if self._uploader.waiting >= MOST_WAITING:
            self._uploader.wait(_IDLE_S)
        else:
            time.sleep(_GATHER_S)
            self._replication.wait(_IDLE_S if not self._uploader.waiting else _IDLE_S / 10)

    def _end(self, *, is_stop: bool) -> None:
        """Finish the open file and wait for the uploads; a stop waits only while they go well."""
        if not self._files.is_in_transaction:
            if self._files.has_open_file:
                self._files.finish_file()
            if not self._catalogs.is_announced or self._files.has_kept_checks:
                self._files.write_announcement()
        deadline_s = time.monotonic() + STOP_PATIENCE_S
        while self._uploader.waiting:
            self._uploader.wait(_IDLE_S)
            self._note_uploaded()
            self._give_feedback_if_due()
            if self._uploader.error and not is_stop:
                raise self._uploader.error
            if is_stop and (self._uploader.error or time.monotonic() > deadline_s):
                logger.warning("%d file(s) stay in the spool for the next start", self._uploader.waiting)
                break
        self._confirm_idle()
        self._replication.confirm(self._chain.confirmed)
        self._replication.finish(timeout_s=_FINISH_PATIENCE_S)
        # `--once` is not a stop: a timer runs it again.
        self._write_head("stopped" if is_stop else "running")
        if not self._uploader.error:
            self._uploader.wait_for_errand(_HEAD_PATIENCE_S)

    def _deliver_finished(self) -> None:
        """Wait until the finished files are in the archive, while uploads go well; the stream is over."""
        deadline_s = time.monotonic() + STOP_PATIENCE_S
        while True:
            self._note_uploaded(is_over=True)
            if not self._uploader.waiting or self._uploader.error or time.monotonic() > deadline_s:
                return
            self._uploader.wait(_IDLE_S)

    def _follow_catalog(self) -> None:
        """Look at what is published when it is time, and announce what has changed: in the open file, or in a
        file of its own when the stream is as far as the look."""
        files, catalogs = self._files, self._catalogs
        if files.is_in_transaction:
            return
        if catalogs.look_if_due(received_lsn=files.received_lsn):
            files.announce_catalog()
        if files.has_open_file:
            return
        is_at_look = files.received_lsn >= catalogs.position
        if (is_at_look and not catalogs.is_announced) or files.has_old_checks:
            files.write_announcement()

    def _write_head_if_due(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._head_due_s:
            self._head_due_s = now_s + head_interval_s(self._settings.rotate_s)
            self._write_head("running")

    def _write_head(self, state: str) -> None:
        """Let the uploader replace the archive's head; while the archive refuses files, the head says so."""
        error = self._uploader.error
        head = make_head(
            self._chain,
            now=self._clock(),
            rotate_s=self._settings.rotate_s,
            catalog=self._catalogs.current.digest,
            state="waiting" if error and state == "running" else state,
            error_code=error.code if error else None,
        )
        settings = self._settings
        self._uploader.run_errand(lambda archive: write_head(archive, settings, head))

    # Messages

    def _read_burst(self) -> bool:
        """Read what has arrived, up to some limit; return whether there may be more."""
        if self._uploader.waiting >= MOST_WAITING:
            return False
        if not self._arrived:
            # After a stop, this may be the last burst: what has arrived behind a keepalive is of it.
            while isinstance(message := self._replication.read(), Keepalive):
                self._note_keepalive(message)
            if message is None:
                return False
            self._files.take(message)
            self._arrived = self._replication.read_more()
        while self._arrived:
            # Test: test_while_the_archive_refuses_only_some_files_wait.
            if self._uploader.waiting >= MOST_WAITING and self._replication.is_sound:
                return True
            self._arrived = self._files.take_all(self._arrived)
        # At once: what is done between two bursts would meet the same error in other words.
        self._replication.require_sound()
        return True

    def _note_keepalive(self, keepalive: Keepalive) -> None:
        self._files.note_sent(keepalive.wal_end)
        if keepalive.wants_reply:
            # We report often enough not to be asked, so this is a server that wants to shut down, and waits
            # until all is confirmed.
            self._is_asked = True
            self._files.want_file()
            # Not at once: it asks again after each answer that does not satisfy it.
            self._feedback_due_s = min(self._feedback_due_s, time.monotonic() + _ANSWER_AFTER_S)

    def _take_mark(self, mark: Mark) -> None:
        """Say whether what the verifier has read for *mark* is proved, and then write its check, here."""
        verification = self._verification
        if verification is None:
            return
        name = mark.content.decode(errors="replace")
        question = verification.question_at(name)
        if question is None:
            return
        seen = question.seen
        verdict = self._touched.judge(
            question.snapshot,
            None if seen is None else seen.oid,
            generation=question.generation,
            since=question.since,
        )
        if verdict is Verdict.PROVED and seen is not None:
            verdict = self._write_check(verification, seen, name, mark.lsn)
        verification.answer(name, verdict, self._touched.generation)

    def _follow_verifier(self) -> None:
        if self._verification is not None and (shown := self._verification.take_offered()) is not None:
            self._touched.forget_shown(shown)

    def _write_check(self, verification: Exchange, seen: SeenTable, mark: str, lsn: int) -> Verdict:
        if not self._catalogs.shows(seen):
            return Verdict.ALTERED
        # Nothing is read meanwhile, so that the stream stands at the mark.
        check = verification.wait_for_rows(mark)
        if check is None:
            return Verdict.LATE
        verification.note_written()
        self._files.add_check(check_comment(msgspec.structs.replace(check, lsn=format_lsn(lsn))))
        return Verdict.PROVED

    def _submit(self, file: SpooledFile) -> None:
        self._uploader.submit(file)
        if self._verification is not None:
            self._verification.note_finished()

    # Positions

    def _note_uploaded(self, *, is_over: bool = False) -> None:
        for file in self._uploader.take_uploaded():
            chain = self._chain.followed_by(file)
            chain = chain.confirm(parse_lsn(file.footer.end_lsn or "0/0"), self._clock())
            self._advance(chain, is_over=is_over)
            remove_from_spool(file)
            self._tell_if_unsigned(file)
            self.archived.files += 1
            self.archived.transactions += file.footer.transactions or 0
            self.archived.records += file.footer.records

    def _tell_if_unsigned(self, file: SpooledFile) -> None:
        """Warn of a file that lay in the spool before the archiver signed with its key.

        It goes to the archive as it is: an earlier try may have put it there, and no name is given twice.
        """
        signer = self._settings.signer
        if signer is not None and file.footer.key != signer.fingerprint:
            logger.warning(
                "%s was written before the archiver signed with %s: readers that ask for that refuse it; take"
                " snapshots (archive_changes --snapshot), and resync the tables there",
                file.name,
                signer.fingerprint,
                extra={"file": file.name},
            )

    def _confirm_idle(self) -> None:
        """Confirm all that was received, when no record of it waits to be archived.

        Received commits may have changed only tables that are not published. If they were never confirmed,
        a source that changes only such tables would keep all its WAL for us.
        """
        files = self._files
        is_idle = not files.has_open_file and not files.is_in_transaction and not self._uploader.waiting
        if is_idle and files.received_lsn > self._chain.confirmed:
            self._advance(self._chain.confirm(files.received_lsn, self._clock()))

    def _advance(self, chain: Chain, *, is_over: bool = False) -> None:
        """Write *chain* to the disk, and only then tell the source: it may forget what we confirm. Where the
        stream is over, the next session tells it."""
        save_chain(self._settings.spool_dir, chain)
        self._chain = chain
        if not is_over:
            self._replication.confirm(chain.confirmed)

    def _give_feedback_if_due(self, *, wants_reply: bool = False) -> None:
        now_s = time.monotonic()
        if now_s < self._feedback_due_s:
            return
        self._feedback_due_s = now_s + (FEEDBACK_EVERY_S if not wants_reply else 0.5)
        self._confirm_idle()
        self._replication.confirm(self._chain.confirmed, wants_reply=wants_reply)
