"""Makes change files in the spool out of the messages of one replication connection.

Knows transactions, and when a file must end; knows nothing of the archive or of what is confirmed to the
source. A file holds whole transactions only, each once: a transaction whose commit LSN is not above the
chain's watermark is in the archive or the spool already, and is left out when the source sends it again.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from syncdata.capture.chain import Chain
from syncdata.capture.encoder import LineWriter
from syncdata.capture.masking import MaskingDecoder
from syncdata.capture.pgoutput import (
    Begin,
    Commit,
    Decoder,
    Mark,
    Relation,
    RowChange,
    Truncate,
    Withheld,
)
from syncdata.capture.proof_of_reads import TouchedTables
from syncdata.capture.replication import XLogData, opened
from syncdata.capture.runs import Form, RunForms, encode_masked_run, encode_run
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.spool import FileWriter, SpooledFile
from syncdata.capture.stream_catalog import StreamCatalog
from syncdata.changes.catalog import catalog_comment
from syncdata.changes.filenames import next_name
from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn
from syncdata.errors import CaptureError, UnreadableChangeError

_MOST_NAMES = 5
# Of fewer changes, the preparations for a run cost more than they save.
_LEAST_RUN = 2
# So many checks wait at most for a file.
_MOST_KEPT = 200


class Assembler:
    """Writes the open change file; *submit* gets each file as soon as it is finished.

    ``head`` is the chain with all finished files at its end. All that was committed before ``received_lsn``
    has been received.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        head: Chain,
        submit: Callable[[SpooledFile], None],
        clock: Callable[[], dt.datetime],
        catalogs: StreamCatalog,
        *,
        held_lsn: int | None = None,
        touched: TouchedTables | None = None,
        take_mark: Callable[[Mark], None] = lambda mark: None,
    ) -> None:
        """*held_lsn*: the commit LSN of a transaction that could not be read the last time. A file ends
        before it, so that what was committed before is delivered.

        *take_mark* gets each mark in its place, between two transactions; *touched* each transaction with the
        tables that it has changed.
        """
        self.head = head
        self.received_lsn = 0
        self._settings = settings
        self._submit = submit
        self._clock = clock
        self._catalogs = catalogs
        self._held_lsn = held_lsn
        self._catalog = ""  # the one that the open file has named last
        self._named: set[str] = set()
        self._touched = touched
        self._take_mark = take_mark
        self._kept: list[bytes] = []
        self._kept_under = ""  # the catalog that held when they were read
        self._kept_since_s = 0.0
        self._masking = MaskingDecoder() if settings.policy is not None else None
        self._decoder = self._masking or Decoder()
        self._encode_run = encode_run if self._masking is None else encode_masked_run
        self._forms = RunForms()
        self._writer: FileWriter | None = None
        self._counts = _Counts()
        self._opened_s = 0.0
        self._is_wanted = False
        # For the transaction that is being received. It gets no lines when it is in the chain already.
        self._commit_lsn: int | None = None
        self._lines: LineWriter | None = None
        # The oids of the tables that it has changed, noted where somebody asks for them.
        self._changed: set[int] = set()
        self._is_recording = False
        self._xid = 0
        # The tables that the stream has described, in this order.
        self._described: dict[str, None] = {}

    @property
    def is_in_transaction(self) -> bool:
        """True while a transaction has begun and its commit has not arrived."""
        return self._commit_lsn is not None

    @property
    def has_open_file(self) -> bool:
        return self._writer is not None

    def take(self, received: XLogData) -> None:
        """Take in the next message. Raises CaptureError when it cannot be understood, UnreadableChangeError
        when a value of it cannot be kept, and SpoolError."""
        try:
            message = self._decoder.decode(received.message)
        except UnreadableChangeError:
            raise
        except CaptureError as error:
            raise CaptureError(f"at {format_lsn(received.lsn)}: {error.message}", hint=error.hint) from error
        match message:
            case RowChange():
                if self._is_recording:
                    self._changed.add(message.relation.oid)
                if self._lines is not None:
                    self._write(self._lines.change(message, received.lsn))
            case Begin():
                self._begin(message)
            case Commit():
                self._commit(message)
            case Truncate():
                if self._is_recording:
                    self._changed.update(relation.oid for relation in message.relations)
                if self._lines is not None:
                    for line in self._lines.truncate(message, received.lsn):
                        self._write(line)
            case Relation():
                self._described[str(TableName(message.schema, message.name))] = None
                is_new = self._catalogs.describe(message, self._commit_lsn or 0)
                self._describe(message)
                if is_new:
                    self.announce_catalog()
            case Mark():
                if self._commit_lsn is None:
                    self._take_mark(message)
            case Withheld():
                if self._is_recording:
                    self._changed.add(message.relation.oid)

    def take_all(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Take in *messages*, those of `ReplicationConnection.read_more`, as `take` would one by one, up to
        the end of a file; return those that are left.

        Row changes that follow one another in a transaction go together where they are as expected.
        """
        taken, head = 0, self.head
        while taken < len(messages) and self.head is head:
            # Changes of a transaction that is in the chain already get no lines.
            forms = self._forms.of(messages, taken) if self._lines is not None else []
            if self._lines is not None and len(forms) >= _LEAST_RUN:
                run = messages[taken : taken + len(forms)]
                block = self._encode_run(run, forms, self._lines.end)
                if block is not None:
                    if self._is_recording:
                        self._note_changed(forms)
                    self._write(block, records=len(run))
                    taken += len(run)
                    continue
            # Not only the first of them: what is not as expected would be tried again with each.
            for message in messages[taken : taken + max(len(forms), 1)]:
                self.take(opened(message))
                taken += 1
        return messages[taken:]

    def locate(self, error: UnreadableChangeError) -> UnreadableChangeError:
        """Return *error* with the transaction that is being received, and with its table where that is sure.

        The source describes a table before its first change of a session. So where it has described one table
        only, the change is of that one.
        """
        found = UnreadableChangeError(
            error.message, table=error.table, hint="the archiver tries again by itself, see the source's log"
        )
        found.commit_lsn = self._commit_lsn
        if self._commit_lsn is None:
            return found
        lsn = format_lsn(self._commit_lsn)
        found.message += f", in the transaction that committed at {lsn}"
        if found.table is None and len(self._described) == 1:
            (found.table,) = self._described
        elif found.table is None and self._described:
            found.message += f", in one of the tables {_some(self._described)}"
        found.hint = (
            "what was committed before is delivered, and what comes later waits; the archiver tries again by"
            " itself, and goes on once the source can hand the change over. To leave that transaction out,"
            f" run 'python manage.py archive_changes --skip-transaction {lsn}': every table is then suspect"
            " at the readers until there is a new snapshot of it"
        )
        return found

    def note_sent(self, wal_end: int) -> None:
        """Take in that the server has sent all that was committed before *wal_end*."""
        if self._commit_lsn is None:
            self.received_lsn = max(self.received_lsn, wal_end)

    def want_file(self) -> None:
        """Let the open file, if there is one, end at the next commit whatever its age and size."""
        self._is_wanted = True

    def announce_catalog(self) -> None:
        """Let the open file, if there is one, name the catalog that holds from its next record on.

        Rows are masked as that catalog says from here on: one never changes without the other.
        """
        if self._masking is not None:
            for relation in self._masking.relations:
                self._describe(relation)
        catalog = self._catalogs.current
        if self._writer is not None and catalog.digest != self._catalog:
            self._writer.write(catalog_comment(catalog.digest, catalog.lsn))
            self._note_named(catalog.digest)

    def add_check(self, line: bytes) -> None:
        """Write *line*, which holds between the transaction before and the next one; a record it is not.
        Where no file is open it is kept for the next one: nothing that is published lies between. But no
        check goes under a catalog that it was not read under: its texts may be of other types. Test:
        test_checks_are_under_the_catalog_that_they_were_read_under."""
        assert self._commit_lsn is None
        if self._writer is not None:
            self._writer.write(line)
            return
        if self._kept_under != self._catalogs.current.digest:
            self._kept.clear()
        if not self._kept:
            self._kept_under = self._catalogs.current.digest
            self._kept_since_s = time.monotonic()
        self._kept.append(line)
        if len(self._kept) >= _MOST_KEPT:
            self.write_announcement()

    @property
    def has_kept_checks(self) -> bool:
        return bool(self._kept)

    @property
    def has_old_checks(self) -> bool:
        """True when checks have been kept for as long as a file may be open."""
        return bool(self._kept) and time.monotonic() - self._kept_since_s >= self._settings.rotate_s

    def write_announcement(self) -> None:
        """Make a file without records, for the catalog in its header and the checks that are kept: production
        may say nothing for long."""
        assert self._writer is None and self._commit_lsn is None
        self._open_file(start_lsn=None)
        self._counts.end_lsn = max(self.received_lsn, self.head.confirmed)
        self.finish_file()

    def finish_if_due(self) -> None:
        """Finish the open file when it is large, old or wanted enough, unless a transaction is half in it."""
        if self._writer is None:
            self._is_wanted = False
        elif self._commit_lsn is None and (
            self._is_wanted
            or self._writer.text_bytes >= self._settings.rotate_bytes
            or time.monotonic() - self._opened_s >= self._settings.rotate_s
        ):
            self.finish_file()

    def finish_file(self) -> None:
        """Finish the open file, which must end with a commit, and submit it."""
        assert self._writer is not None
        counts = self._counts
        name = next_name(self._clock(), self.head.last_file)
        # Before the file is there: a catalog must not be pruned that a file names.
        self._catalogs.note_naming(name, self._named)
        file = self._writer.finish(
            name,
            records=counts.records,
            transactions=counts.transactions,
            first_commit_lsn=counts.first_commit_lsn,
            last_commit_lsn=counts.last_commit_lsn,
            end_lsn=counts.end_lsn,
        )
        self._writer, self._counts, self._is_wanted = None, _Counts(), False
        self.head = self.head.followed_by(file)
        self._submit(file)
        self._catalogs.note_announced(self._catalog)

    def discard(self) -> None:
        """Give the open file up: nothing of it was confirmed, so the source sends it again."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _begin(self, begin: Begin) -> None:
        if begin.commit_lsn == self._held_lsn and self._writer is not None:
            # Test: test_what_was_committed_before_a_change_that_cannot_be_read_is_delivered.
            self.finish_file()
        self._commit_lsn, self._xid = begin.commit_lsn, begin.xid
        self._is_recording = self._touched is not None and self._touched.is_recording
        is_in_chain = begin.commit_lsn <= max(self.head.watermark, self._counts.last_commit_lsn or -1)
        self._lines = None if is_in_chain else LineWriter(begin)
        self._counts.records_before = self._counts.records

    def _commit(self, commit: Commit) -> None:
        counts = self._counts
        if counts.records > counts.records_before:
            counts.transactions += 1
            counts.last_commit_lsn = commit.commit_lsn
            counts.end_lsn = commit.end_lsn
            if counts.first_commit_lsn is None:
                counts.first_commit_lsn = commit.commit_lsn
        if self._changed and self._touched is not None:
            self._touched.note(self._xid, self._changed)
            self._changed.clear()
        self._commit_lsn = self._lines = None
        self.received_lsn = max(self.received_lsn, commit.end_lsn)
        # At each commit: a busy stream may be in the midst of a transaction whenever the session looks.
        self.finish_if_due()

    def _describe(self, relation: Relation) -> None:
        """Take in how changes to *relation* are written from now on."""
        if self._masking is None:
            self._forms.describe(relation)
        elif self._catalogs.withholds(relation):
            self._forms.forget(relation)
            self._masking.withhold(relation)
        else:
            mask = self._catalogs.mask(relation)
            self._forms.describe(relation, mask)
            self._masking.describe(relation, mask)

    def _note_changed(self, forms: Sequence[Form]) -> None:
        # Most runs are of one kind, and to count one object is quicker than to put many into a set.
        if forms[0] is forms[-1] and forms.count(forms[0]) == len(forms):
            self._changed.add(forms[0].table)
        else:
            self._changed.update([form.table for form in set(forms)])

    def _write(self, lines: bytes, *, records: int = 1) -> None:
        if self._writer is None:
            self._writer = self._open_file(start_lsn=self._commit_lsn)
        self._writer.write(lines)
        self._counts.records += records

    def _open_file(self, *, start_lsn: int | None) -> FileWriter:
        catalog = self._catalogs.current
        header = msgspec.structs.replace(
            self.head.header(self._clock(), start_lsn=start_lsn),
            catalog=catalog.digest,
            catalog_lsn=catalog.lsn,
        )
        self._writer = FileWriter(
            self._settings.spool_dir,
            ".changes.part",
            header,
            self._settings.compression,
            signer=self._settings.signer,
        )
        self._opened_s = time.monotonic()
        self._named.clear()
        self._note_named(catalog.digest)
        if self._kept_under == catalog.digest:
            for line in self._kept:
                self._writer.write(line)
        self._kept.clear()
        return self._writer

    def _note_named(self, digest: str) -> None:
        self._catalog = digest
        self._named.add(digest)


def _some(names: Collection[str]) -> str:
    """Return the last of *names*, which may be many, as text."""
    last = list(names)[-_MOST_NAMES:]
    more = len(names) - len(last)
    return ", ".join(last) + (f" and {more} more" if more else "")


@dataclass(slots=True)
class _Counts:
    """The counts of the open file. ``records_before``: its records before the transaction being received."""

    records: int = 0
    records_before: int = 0
    transactions: int = 0
    first_commit_lsn: int | None = None
    last_commit_lsn: int | None = None
    end_lsn: int | None = None
