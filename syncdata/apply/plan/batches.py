"""Cut the records of a file into batches that end at commits. Pure.

A batch is what one local transaction applies. It ends where a transaction of the source ended, so that
the local database only shows states that the source showed; only a transaction that alone outgrows
``batch_bytes`` is cut inside. Memory is bounded by ``batch_bytes``, whatever the file holds.

It ends at a check, too, where that is wanted: what a check says of a table's rows holds at its place alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, groupby

import msgspec

from syncdata.changes.catalog import Announcement, Catalog
from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn
from syncdata.changes.reader import DEFAULT_MAX_RECORD_BYTES, LocatedCheck, LocatedRecord
from syncdata.changes.record import MARKS
from syncdata.changes.run import Piece, Run, pieces_of, records_of, size_of
from syncdata.changes.verification import Check
from syncdata.errors import ParseError

# A line is kept beside its values, each of which takes some 55 bytes more than its text. Measured on rows of
# 2, 8, 20 and 60 columns, whose lines of 170, 400, 700 and 1,400 to 1,800 bytes cost 330, 1,000, 2,200 and
# 4,700 to 6,200; a long text costs twice its line. Many records must cost what they cost one by one, to the
# bit, so the factor is of quarters. Test: test_records_take_about_the_memory_that_a_batch_counts_for_them.
_COST_OF_TEXT = 2.75
_COST_OF_RECORD = 10

# The mark of all records between a ``B`` and its ``C``.
_OPEN = "B"

# The checks of one place are in memory together, and more text of them than this is not kept.
MAX_CHECK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a batch. ``batch_records``: it ends at the first commit after so many records.
    ``batch_bytes``: it takes no more memory, by `cost_of`, unless a single record does. ``max_record_bytes``:
    no record may be larger."""

    batch_records: int
    batch_bytes: int
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFile:
    """The file of a batch. ``is_plain``: it has no header, so wal2json wrote its values. ``catalogs``: those
    that it names, by digest."""

    name: str
    is_plain: bool
    catalogs: Mapping[str, Catalog] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of records of one file. ``end_record`` counts all records of the file up to the batch's end;
    ``records`` holds only those to apply, ``skipped`` counts those of unwanted tables, ``repeated`` those
    applied before.
    ``commit_lsn`` is that of the last whole transaction read, None before any. ``catalog``: the one that
    holds for all of them, None where the file names none. ``checks``: those wanted, which hold at its end."""

    file: BatchFile
    records: Sequence[LocatedRecord]
    end_record: int
    commit_lsn: int | None
    skipped: int
    repeated: int
    size_bytes: int
    ends_file: bool
    catalog: Announcement | None = None
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one transaction applies: one or more segments, each of which goes on where the one before ends.

    All are of files of one kind (``is_plain``), under one catalog. Where the batch ends is where its last
    segment does. Which file a record stands in, it says itself.
    """

    segments: tuple[Segment, ...]

    @property
    def last(self) -> Segment:
        return self.segments[-1]

    @property
    def file(self) -> BatchFile:
        """The file in which it ends."""
        return self.last.file

    @property
    def records(self) -> Sequence[LocatedRecord]:
        if len(self.segments) == 1:
            return self.last.records
        return records_of(list(self.pieces))

    @property
    def pieces(self) -> Iterator[Piece]:
        """The records, many of them in runs."""
        return chain.from_iterable(pieces_of(segment.records) for segment in self.segments)

    @property
    def end_record(self) -> int:
        return self.last.end_record

    @property
    def commit_lsn(self) -> int | None:
        return self.last.commit_lsn

    @property
    def ends_file(self) -> bool:
        return self.last.ends_file

    @property
    def checks(self) -> Sequence[Check]:
        """Those that hold at its end."""
        return self.last.checks

    @property
    def catalog(self) -> Announcement | None:
        return self.last.catalog

    @property
    def published(self) -> Catalog | None:
        """What production publishes, by ``catalog``."""
        return None if self.catalog is None else self.file.catalogs.get(self.catalog.digest)

    @property
    def skipped(self) -> int:
        return sum(segment.skipped for segment in self.segments)

    @property
    def repeated(self) -> int:
        return sum(segment.repeated for segment in self.segments)

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.segments)

    def count_of(self, table: TableName) -> int:
        """Return how many records of *table* are to be applied."""
        name = (table.schema, table.name)
        return sum(
            piece.count_of(name) if isinstance(piece, Run) else 1
            for piece in self.pieces
            if name in names_in(piece)
        )


def cost_of(text_bytes: int, records: int = 1) -> float:
    """Return about how much memory *records* take once they are planned; their lines have *text_bytes*."""
    return _COST_OF_TEXT * text_bytes + _COST_OF_RECORD * records


_Segments = Generator[Segment, None, Run | None]


class _Tally(msgspec.Struct):
    """Sums over the records of the file that have been read so far."""

    end_record: int
    kept: int = 0
    skipped: int = 0
    repeated: int = 0
    size_bytes: int = 0
    cost_bytes: float = 0


class _Draft:
    """The batch being gathered. Its records up to ``border`` are whole transactions; those up to ``taken``
    have gone into batches already. ``mark``: that of the transaction of the last record. ``checks``: those
    that stand behind the last record."""

    def __init__(self, file: BatchFile, end_record: int, catalog: Announcement | None) -> None:
        self.file = file
        self.catalog = catalog
        self.pieces: list[Piece] = []
        self.checks: list[LocatedCheck] = []
        self.mark: str | None = None
        self.read = _Tally(end_record)
        self.commit_lsn: int | None = None
        self.open_lsn: int | None = None
        self.border = self.taken = copy(self.read)

    @property
    def cost_bytes(self) -> float:
        return self.read.cost_bytes - self.taken.cost_bytes

    @property
    def holds_whole_transactions(self) -> bool:
        return self.border.end_record > self.taken.end_record

    def mark_border(self) -> None:
        """Note that all records gathered so far are whole transactions."""
        if self.open_lsn is not None:
            self.commit_lsn, self.open_lsn = self.open_lsn, None
        self.border = copy(self.read)

    @property
    def kept(self) -> int:
        """How many records it holds."""
        return self.read.kept - self.taken.kept

    def keep(self, located: LocatedRecord, cost_bytes: float) -> None:
        self.pieces.append(located)
        self.read.kept += 1
        self.read.cost_bytes += cost_bytes

    def add_run(self, run: Run, wanted: Collection[tuple[str, str]], limits: Limits) -> _Segments:
        """Add *run*, which repeats no transaction, as `cut_batches` adds its records one by one; yield the
        batches that are full meanwhile. Return what is left from where a single transaction is too large."""
        while True:
            if run.marks[0] != self.mark or run.marks[0] is None:
                self.mark = run.marks[0]
                self.mark_border()
                if self.kept >= limits.batch_records:
                    yield self.take_all()
                self.open_lsn = run.commit_lsn(0)
            kept = _counts(run, wanted)
            # Up to the first commit after so many records.
            lacks = limits.batch_records - self.kept
            full = bisect_left(run.starts, lacks, key=kept.__getitem__)
            end = run.starts[full] if full < len(run.starts) else len(run)
            while (part := _kept(run, kept, end)) and self.cost_bytes + _cost(part) > limits.batch_bytes:
                earlier = bisect_left(run.starts, end)
                if earlier == 0:
                    break
                end = run.starts[(earlier - 1) // 2]
            if part and self.cost_bytes + _cost(part) > limits.batch_bytes:
                if self.border.kept <= self.taken.kept:
                    return run
                yield self.take_whole_transactions()
                continue
            self._keep_run(run, kept, end, part)
            if end == len(run):
                return None
            run = run.split(end)[1]

    def _keep_run(self, run: Run, kept: Sequence[int], end: int, part: Run | None) -> None:
        """Keep *part*, the wanted ones of the first *end* records of *run*, of which *kept* are so many."""
        read, before = self.read, copy(self.read)

        def count(records: int) -> None:
            read.end_record = before.end_record + records
            read.kept = before.kept + kept[records]
            read.skipped = before.skipped + records - kept[records]
            read.size_bytes = before.size_bytes + run.size_of(records)
            kept_bytes = part.size_of(kept[records]) if part else 0
            read.cost_bytes = before.cost_bytes + cost_of(kept_bytes, kept[records])

        if inner := bisect_left(run.starts, end):
            last = run.starts[inner - 1]
            count(last)
            self.open_lsn = run.commit_lsn(last - 1)
            self.mark_border()
            self.open_lsn = run.commit_lsn(last)
        count(end)
        self.mark = run.marks[end - 1]
        if part:
            self.pieces.append(part)

    def add_check(self, located: LocatedCheck) -> None:
        if sum(check.size_bytes for check in self.checks) + located.size_bytes <= MAX_CHECK_BYTES:
            self.checks.append(located)

    def take_to_checks(self, *, ends_file: bool = False) -> Iterator[Segment]:
        """Take all, which are whole transactions, with the checks behind them; each under its catalog."""
        checks, self.checks = self.checks, []
        self.mark_border()
        parts = [
            (catalog, tuple(located.check for located in part))
            for catalog, part in groupby(checks, key=lambda located: located.catalog or self.catalog)
        ]
        # Test: test_a_check_behind_a_new_catalog_is_under_that_one.
        if not parts or (parts[0][0] != self.catalog and self.holds_whole_transactions):
            parts.insert(0, (self.catalog, ()))
        for number, (catalog, part) in enumerate(parts, 1):
            self.catalog = catalog
            yield self.take_all(ends_file=ends_file and number == len(parts), checks=part)

    def take_all(self, *, ends_file: bool = False, checks: tuple[Check, ...] = ()) -> Segment:
        return replace(self._take(copy(self.read), ends_file=ends_file), checks=checks)

    def take_whole_transactions(self) -> Segment:
        return self._take(self.border, ends_file=False)

    def _take(self, end: _Tally, *, ends_file: bool) -> Segment:
        start, self.taken = self.taken, end
        pieces, self.pieces = _split(self.pieces, end.kept - start.kept)
        return Segment(
            file=self.file,
            records=records_of(pieces),
            end_record=end.end_record,
            commit_lsn=self.commit_lsn,
            skipped=end.skipped - start.skipped,
            repeated=end.repeated - start.repeated,
            size_bytes=end.size_bytes - start.size_bytes,
            ends_file=ends_file,
            catalog=self.catalog,
        )


def _counts(run: Run, wanted: Collection[tuple[str, str]]) -> Sequence[int]:
    """Return how many of the first 0, 1, 2 … records of *run* are of *wanted* tables."""
    if run.names.issubset(wanted):
        return range(len(run) + 1)
    return list(accumulate(map(wanted.__contains__, run.tables), initial=0))


def _kept(run: Run, kept: Sequence[int], end: int) -> Run | None:
    """Return those of the first *end* records of *run* that are wanted; *kept* says how many those are."""
    if not kept[end]:
        return None
    part = run if end == len(run) else run.split(end)[0]
    return part if kept[end] == end else part.only([kept[at] < kept[at + 1] for at in range(end)])


def _cost(run: Run) -> float:
    return cost_of(len(run.text), len(run))


def _split(pieces: list[Piece], records: int) -> tuple[list[Piece], list[Piece]]:
    """Return the pieces of the first *records* records of *pieces*, and those of the others."""
    for number, piece in enumerate(pieces):
        if records <= 0:
            return pieces[:number], pieces[number:]
        if records < size_of(piece) and isinstance(piece, Run):
            first, second = piece.split(records)
            return [*pieces[:number], first], [second, *pieces[number + 1 :]]
        records -= size_of(piece)
    return pieces, []


def names_in(piece: Piece) -> Collection[tuple[str, str]]:
    """Return the tables, as (schema, name), that *piece* has records of."""
    return piece.names if isinstance(piece, Run) else ((piece.record.schema, piece.record.table),)


def _continues(piece: Piece, mark: str | None) -> bool:
    """Tell whether *piece* goes on with the transaction of that *mark*, as far as can be seen."""
    own = piece.marks[0] if isinstance(piece, Run) else piece.record.commit_lsn or piece.record.ts
    return own is not None and own == mark


def no_check(check: Check) -> bool:
    """Want no check."""
    return False


def cut_batches(
    records: Iterable[Piece | LocatedCheck],
    *,
    file: BatchFile,
    watermarks: Mapping[TableName, int | None],
    limits: Limits,
    start_record: int = 0,
    until_record: int | None = None,
    catalog: Announcement | None = None,
    is_wanted: Callable[[Check], bool] = no_check,
) -> Iterator[Segment]:
    """Yield *records* cut into batches, each a segment; they begin after *start_record* records of *file*.

    *watermarks* are the wanted tables, each with its own: transactions whose commit LSN is at or below it
    are in that table's rows already and left out, for that table. *catalog* holds until a record names
    another; the transaction of that record is under the new one as a whole. Stops after record *until_record*
    where one is given; else the last batch, perhaps an empty one, has ``ends_file``. A ParseError of
    *records* is raised after the batch of the whole transactions before it. A batch ends at checks of which
    *is_wanted* is true, and has them; inside of a transaction they hold nowhere, and are passed over.
    """
    draft = _Draft(file, start_record, catalog)
    read = draft.read
    wanted = {(table.schema, table.name): watermark for table, watermark in watermarks.items()}
    highest = max((watermark for watermark in wanted.values() if watermark is not None), default=-1)
    due: Collection[tuple[str, str]] = wanted
    is_open = False
    source: Iterator[Piece | LocatedCheck] = iter(records)
    while until_record is None or read.end_record < until_record:
        try:
            located = next(source, None)
        except ParseError:
            # What committed before the broken line is applied; the line alone holds the tables up.
            # Test: test_whole_transactions_before_an_unreadable_line_are_a_batch.
            if draft.holds_whole_transactions:
                yield draft.take_whole_transactions()
            raise
        if located is None:
            yield from draft.take_to_checks(ends_file=True)
            return
        if isinstance(located, LocatedCheck):
            if not is_open and is_wanted(located.check):
                draft.add_check(located)
            continue
        if draft.checks and _continues(located, draft.mark):
            # Half of a transaction would be a batch, and its other half a repeat once the daemon begins anew.
            # Test: test_a_check_inside_a_transaction_ends_no_batch.
            draft.checks = []
        elif draft.checks:
            yield from draft.take_to_checks()
        if isinstance(located, Run):
            room = len(located) if until_record is None else until_record - read.end_record
            if (
                (is_open and (located.tells_commits or draft.mark != _OPEN))
                or len(located) > room
                or min(located.commits(), default=highest + 1) <= highest
            ):
                source = chain(located.records(), source)
                continue
            if is_open:
                # Whatever times they tell. Test: test_lines_between_marks_are_cut_where_their_records_are.
                located = located.within(_OPEN)
            due = wanted
            if (left := (yield from draft.add_run(located, wanted, limits))) is not None:
                # Only of a transaction that alone is too large is each record looked at.
                at = left.starts[0] if left.starts else len(left)
                first, *others = left.split(at) if at < len(left) else (left,)
                source = chain(first.records(), others, source)
            continue
        record = located.record
        if not record.table and record.op in MARKS:
            # The predecessor's script marks where a transaction begins and ends, which is exact: two may
            # share a time. Test: test_a_batch_ends_where_marks_say_that_a_transaction_ends.
            if record.op == "B":
                draft.mark_border()
                if draft.kept >= limits.batch_records:
                    yield draft.take_all()
                draft.mark, is_open, due = _OPEN, True, wanted
            read.end_record += 1
            read.size_bytes += located.size_bytes
            if record.op == "C":
                draft.mark, is_open = None, False
                draft.mark_border()
            continue
        record_mark = record.commit_lsn or (draft.mark if is_open else record.ts)
        # A transaction's records share a commit LSN or, in a plain file, a time. A record with neither is
        # its own transaction. Test: test_a_batch_ends_at_the_first_commit_after_so_many_records.
        if record_mark != draft.mark or record_mark is None:
            draft.mark = record_mark
            draft.mark_border()
            if draft.kept >= limits.batch_records:
                yield draft.take_all()
            # The commit's LSN, not the record's own: records of several transactions interleave in the WAL,
            # their commits do not. Test: test_records_whose_lsn_goes_backwards_are_all_applied.
            lsn = parse_lsn(record.commit_lsn) if record.commit_lsn else None
            draft.open_lsn = lsn
            due = wanted if lsn is None or lsn > highest else _due(wanted, lsn)
        if located.catalog is not None:
            # Test: test_a_batch_ends_where_the_catalog_changes_but_never_inside_a_transaction.
            if draft.holds_whole_transactions:
                yield draft.take_whole_transactions()
            draft.catalog = located.catalog
        name = (record.schema, record.table)
        if name in due:
            cost_bytes = cost_of(located.size_bytes)
            # Only a transaction that alone is too large is cut inside. Test:
            # test_a_batch_holds_no_more_bytes_than_it_may_and_cuts_only_what_alone_is_too_large.
            while draft.kept and draft.cost_bytes + cost_bytes > limits.batch_bytes:
                is_whole = draft.border.kept > draft.taken.kept
                yield draft.take_whole_transactions() if is_whole else draft.take_all()
            draft.keep(located, cost_bytes)
        elif name in wanted:
            read.repeated += 1
        else:
            read.skipped += 1
        read.end_record += 1
        read.size_bytes += located.size_bytes
    if read.end_record > draft.taken.end_record:
        # Another table's checkpoint may lie inside a transaction (one that was too large): what comes tells.
        # Tests: test_a_transaction_in_which_another_table_stands_has_not_committed_there,
        # test_a_transaction_behind_which_reading_ends_has_committed_there.
        if not is_open and not _is_followed(source, draft.mark):
            draft.mark_border()
        yield draft.take_all()


def _is_followed(source: Iterator[Piece | LocatedCheck], mark: str | None) -> bool:
    """Tell whether the transaction of that *mark* goes on in *source*, or may do."""
    try:
        following = next((piece for piece in source if not isinstance(piece, LocatedCheck)), None)
    except ParseError:
        return True
    return following is not None and _continues(following, mark)


def _due(wanted: Mapping[tuple[str, str], int | None], lsn: int) -> Collection[tuple[str, str]]:
    """Return the tables whose rows do not hold the transaction with the commit LSN *lsn* yet."""
    return {name for name, watermark in wanted.items() if watermark is None or lsn > watermark}
