"""Joins small files that follow each other, so that one batch takes all of them. Pure but for reading them.

A stretch is a run of whole files whose records are one batch together. A file joins it only where nothing
about it is out of the ordinary; any other file ends the stretch before it and goes by itself, so that what is
wrong with a file is found, told and held up where a file alone is handled. Knows files, positions and
batches; knows nothing of rows, or of where batches go.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from syncdata.apply.counts import Counts
from syncdata.apply.feed.continuity import check_chain, check_plain
from syncdata.apply.feed.files import Fetched, read_batches
from syncdata.apply.feed.groups import Group
from syncdata.apply.plan.batches import Batch, Limits, cost_of, no_check
from syncdata.apply.position import START, Position
from syncdata.changes.filenames import stem
from syncdata.changes.names import TableName
from syncdata.changes.reader import NO_TABLE, read_pieces, read_with_checks
from syncdata.changes.run import Piece, Run
from syncdata.changes.verification import Check
from syncdata.errors import DiscoveryError, ParseError, SyncError

# A file that holds more than this share of a batch goes by itself: joining it would save next to nothing.
_SMALL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A whole file of a stretch. ``batch`` holds all of its records, ``end`` is the position behind it."""

    fetched: Fetched
    batch: Batch
    end: Position

    @property
    def cost_bytes(self) -> float:
        return cost_of(self.batch.size_bytes, len(self.batch.records))

    def goes_on(self, before: Part) -> bool:
        """Tell whether both files' records may be folded together: they are written alike, and under one
        catalog."""
        mine, theirs = self.batch, before.batch
        return (
            mine.file.is_plain == theirs.file.is_plain
            and self.end.source_id == before.end.source_id
            and mine.catalog == theirs.catalog
        )

    def counts(self) -> dict[TableName, Counts]:
        """Return how many records of each table the file brings, by operation."""
        by_table: dict[TableName, Counts] = {}
        for ((schema, name), op), count in _operations(self.batch).items():
            counts = by_table.setdefault(TableName(schema, name), Counts())
            match op:
                case "INSERT":
                    counts.added += count
                case "UPDATE":
                    counts.updated += count
                case "DELETE":
                    counts.deleted += count
                case "TRUNCATE":
                    counts.truncated += count
        return by_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One file, or several that are applied together. ``batch``: the records of all of them."""

    parts: tuple[Part, ...]
    batch: Batch

    @property
    def end(self) -> Position:
        """The position behind the last file. Its commit is the last one of any of the files; commits of plain
        files mean nothing beyond their own."""
        end = self.parts[-1].end
        if not end.source_id:
            return end
        commits = [part.end.commit_lsn for part in self.parts if part.end.commit_lsn is not None]
        return replace(end, commit_lsn=max(commits, default=None))


class Pace:
    """How many files a stretch may join: one to begin with, and twice as many each time that it goes well.

    In step with the archive, a file goes by itself, at once. The farther behind, the more go together. Where
    a stretch had to be taken apart, the next files go by themselves again.
    """

    def __init__(self) -> None:
        self.files = 1

    def went_well(self) -> None:
        self.files = min(self.files * 2, 1 << 20)

    def went_badly(self) -> None:
        self.files = 1


def gather(
    files: Iterator[Fetched], read: Callable[[Fetched], Part | None], *, limits: Limits, pace: Pace
) -> Iterator[Stretch | Fetched]:
    """Yield *files* in stretches that are no larger than a batch may be.

    *read* makes a part of a file, or None of one that has to go by itself: it is yielded as it is, for the
    caller to close, and nothing comes after it. What reading *files* raises comes after the stretch before.
    """
    parts: list[Part] = []
    records, cost_bytes = 0, 0.0
    try:
        for fetched in files:
            part = _read_and_close(read, fetched)
            if part is None:
                if parts:
                    yield joined(parts)
                yield fetched
                return
            is_full = (
                len(parts) >= pace.files
                or records + len(part.batch.records) > limits.batch_records
                or cost_bytes + part.cost_bytes > limits.batch_bytes
            )
            # Its checks hold where the part ends, so that the stretch ends there, too.
            if parts and (is_full or parts[-1].batch.checks or not part.goes_on(parts[-1])):
                yield joined(parts)
                parts, records, cost_bytes = [], 0, 0
            parts.append(part)
            records += len(part.batch.records)
            cost_bytes += part.cost_bytes
            del part
    except SyncError:
        if parts:
            yield joined(parts)
        raise
    if parts:
        yield joined(parts)


def _read_and_close(read: Callable[[Fetched], Part | None], fetched: Fetched) -> Part | None:
    """Return the part that *read* makes of the file, which is closed then; else it is at its beginning."""
    try:
        part = read(fetched)
    except BaseException:
        fetched.stream.close()
        raise
    if part is None:
        fetched.stream.seek(0)
    else:
        fetched.stream.close()
    return part


def joined(parts: Collection[Part]) -> Stretch:
    """Return *parts*, which follow each other, as one stretch."""
    segments = tuple(segment for part in parts for segment in part.batch.segments)
    return Stretch(parts=tuple(parts), batch=Batch(segments=segments))


def whole_part(
    group: Group,
    fetched: Fetched,
    *,
    limits: Limits,
    until: Position | None,
    with_skips: Collection[str],
    is_wanted: Callable[[Check], bool] = no_check,
) -> Part | None:
    """Read all of a file for *group*, which stands before it; None where the file has to go by itself.

    That is so where it is large, broken, unfinished, or not the next one; where *group* or *until* stands
    inside of it, or *group* at the archive's beginning; where an operator has said to skip a record of it
    (*with_skips*, stems of files); where its catalog changes or does not say when it was read; where a check
    that *is_wanted* stands before its last record; and where it empties a table.
    """
    inspection, position, own = fetched.inspection, group.position, stem(fetched.name)
    if (
        inspection.error
        or inspection.unfinished
        or fetched.catalog_error
        or inspection.text_bytes * _SMALL > limits.batch_bytes
        or position == START
        or stem(position.file) == own
        or not position.is_finished
        or own in with_skips
        or (until is not None and stem(until.file) == own and not until.is_finished)
    ):
        return None
    catalog, footer = inspection.catalog, inspection.footer
    if footer is not None and footer.records > limits.batch_records:
        return None
    if inspection.announced or (catalog is not None and catalog.lsn is None):
        return None
    try:
        require_next(position, fetched, now=dt.datetime.now(dt.UTC))
        batches = list(islice(batches_for(group, fetched, limits=limits, is_wanted=is_wanted), 2))
    except (ParseError, DiscoveryError):
        return None  # It is told of when the file comes by itself.
    if len(batches) != 1 or any(map(_empties_a_table, batches[0].pieces)):
        return None
    return Part(fetched=fetched, batch=batches[0], end=position_after(batches[0], fetched))


def _empties_a_table(piece: Piece) -> bool:
    return not isinstance(piece, Run) and piece.record.op == "TRUNCATE"


def _operations(batch: Batch) -> Mapping[tuple[tuple[str, str], str], int]:
    """Return how many records *batch* has, by table, as (schema, name), and operation."""
    operations: Counter[tuple[tuple[str, str], str]] = Counter()
    for piece in batch.pieces:
        if isinstance(piece, Run):
            for name, ops in piece.ops_by_table().items():
                for op in set(ops):
                    operations[name, op] += ops.count(op)
        else:
            record = piece.record
            operations[(record.schema, record.table), record.op] += 1
    return operations


def require_next(position: Position, fetched: Fetched, *, now: dt.datetime) -> None:
    """Raise DiscoveryError unless the file may follow *position*, or *position* lies in it."""
    name, header = fetched.name, fetched.inspection.header
    if stem(position.file) == stem(name):
        return
    if header is not None:
        check_chain(position, header, name)
    else:
        check_plain(position, name, now)


def batches_for(
    group: Group,
    fetched: Fetched,
    *,
    limits: Limits,
    until: Position | None = None,
    ignored: Collection[int] = (),
    is_wanted: Callable[[Check], bool] = no_check,
) -> Iterator[Batch]:
    """Return the batches of the file from where *group* stands, up to *until* where that lies inside it.

    A plain file has no checks: nothing proves that its lines are whole, or where they come from. Test:
    test_a_plain_file_has_no_checks.
    """
    position, own = group.position, stem(fetched.name)
    start_record = position.record_number if stem(position.file) == own else 0
    is_last = until is not None and stem(until.file) == own and not until.is_finished
    header = fetched.inspection.header
    read = read_pieces if header is None or is_wanted is no_check else read_with_checks
    return read_batches(
        fetched,
        read(
            fetched.stream,
            fetched.name,
            skip=start_record,
            ignored=ignored,
            max_record_bytes=fetched.max_record_bytes,
        ),
        # A line that is skipped is a record of no table. The sink is to see it, so that the skip is audited.
        # Test: test_a_line_that_no_table_can_read_is_skipped_for_all_that_it_blocks.
        watermarks={**group.watermarks_in(header.source_id if header else ""), NO_TABLE: None},
        limits=limits,
        start_record=start_record,
        until_record=until.record_number if until is not None and is_last else None,
        is_wanted=is_wanted,
    )


def position_after(batch: Batch, fetched: Fetched) -> Position:
    header = fetched.inspection.header
    return Position(
        file=fetched.name,
        is_finished=batch.ends_file,
        record_number=batch.end_record,
        file_size=fetched.size_bytes if batch.ends_file else None,
        commit_lsn=batch.commit_lsn,
        source_id=header.source_id if header else "",
    )
