"""Cut the records of a file into batches that end at commits. Pure.

A batch is what one local transaction applies. It ends where a transaction of the source ended, so that
the local database only shows states that the source showed; only a transaction that alone outgrows
``batch_bytes`` is cut inside. Memory is bounded by ``batch_bytes``, whatever the file holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from syncdata.engine.changefile import LocatedRecord
from syncdata.engine.changes import TableName, parse_lsn
from syncdata.engine.errors import ParseError

# What a decoded record costs beside its text: the objects around a dozen values.
RECORD_OVERHEAD_BYTES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``batch_records``: a batch ends at the first commit after so many records.
    ``batch_bytes``: no batch holds more (a single larger record apart)."""

    batch_records: int
    batch_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A run of records. ``end_record`` counts all records of the file up to the batch's end; ``records``
    holds only those of wanted tables, ``skipped`` counts the others, ``repeated`` those already applied.
    ``commit_lsn`` is that of the last whole transaction."""

    records: list[LocatedRecord]
    end_record: int
    commit_lsn: int | None
    skipped: int
    repeated: int
    size_bytes: int
    ends_file: bool


class _Draft:
    """The batch being gathered, and how much of it is whole transactions."""

    def __init__(self, end_record: int, commit_lsn: int | None) -> None:
        self.records: list[LocatedRecord] = []
        self.end_record = self.taken_record = end_record
        self.cost_bytes = self.size_bytes = self.skipped = self.repeated = 0
        self.commit_lsn = commit_lsn
        self.open_lsn: int | None = None
        self.mark_border()

    def mark_border(self) -> None:
        """All gathered so far is whole transactions."""
        if self.open_lsn is not None:
            self.commit_lsn, self.open_lsn = self.open_lsn, None
        self.border = len(self.records)
        self.border_record = self.end_record
        self.border_cost, self.border_size = self.cost_bytes, self.size_bytes
        self.border_skipped, self.border_repeated = self.skipped, self.repeated

    def take_all(self, *, ends_file: bool = False) -> Batch:
        batch = Batch(
            records=self.records,
            end_record=self.end_record,
            commit_lsn=self.commit_lsn,
            skipped=self.skipped,
            repeated=self.repeated,
            size_bytes=self.size_bytes,
            ends_file=ends_file,
        )
        self.records = []
        self.taken_record = self.end_record
        self.cost_bytes = self.size_bytes = self.skipped = self.repeated = 0
        self.border, self.border_record = 0, self.end_record
        self.border_cost = self.border_size = self.border_skipped = self.border_repeated = 0
        return batch

    def take_whole_transactions(self) -> Batch:
        batch = Batch(
            records=self.records[: self.border],
            end_record=self.border_record,
            commit_lsn=self.commit_lsn,
            skipped=self.border_skipped,
            repeated=self.border_repeated,
            size_bytes=self.border_size,
            ends_file=False,
        )
        self.records = self.records[self.border :]
        self.taken_record = self.border_record
        self.cost_bytes -= self.border_cost
        self.size_bytes -= self.border_size
        self.skipped -= self.border_skipped
        self.repeated -= self.border_repeated
        self.border = self.border_cost = self.border_size = self.border_skipped = self.border_repeated = 0
        return batch


def cut_batches(
    records: Iterable[LocatedRecord],
    *,
    wanted: Collection[TableName],
    limits: Limits,
    start_record: int = 0,
    until_record: int | None = None,
    applied_lsn: int | None = None,
) -> Iterator[Batch]:
    """Yield the batches of *records*, which begin after *start_record* records of their file.

    Stops after record *until_record* where one is given; else the last batch, perhaps an empty one,
    has ``ends_file``. Transactions whose commit LSN is at or below *applied_lsn* are repeats of the
    archive and left out. A ParseError of *records* is raised after the batch of the whole
    transactions before it.
    """
    draft = _Draft(start_record, applied_lsn)
    names = {(name.schema, name.name) for name in wanted}
    mark: str | None = None
    is_repeat = False
    source = iter(records)
    while until_record is None or draft.end_record < until_record:
        try:
            located = next(source, None)
        except ParseError:
            if draft.border_record > draft.taken_record:
                yield draft.take_whole_transactions()
            raise
        if located is None:
            draft.mark_border()
            yield draft.take_all(ends_file=True)
            return
        record = located.record
        record_mark = record.commit_lsn or record.ts
        if record_mark != mark or record_mark is None:
            mark = record_mark
            draft.mark_border()
            if len(draft.records) >= limits.batch_records:
                yield draft.take_all()
            lsn = parse_lsn(record.commit_lsn) if record.commit_lsn else None
            is_repeat = lsn is not None and applied_lsn is not None and lsn <= applied_lsn
            draft.open_lsn = None if is_repeat else lsn
        if is_repeat:
            draft.repeated += 1
        elif (record.schema, record.table) in names:
            cost = located.size_bytes + RECORD_OVERHEAD_BYTES
            while draft.records and draft.cost_bytes + cost > limits.batch_bytes:
                yield draft.take_whole_transactions() if draft.border else draft.take_all()
            draft.records.append(located)
            draft.cost_bytes += cost
        else:
            draft.skipped += 1
        draft.end_record += 1
        draft.size_bytes += located.size_bytes
    # Another table's checkpoint may lie inside a transaction, so this end is no commit.
    if draft.end_record > draft.taken_record:
        yield draft.take_all()
