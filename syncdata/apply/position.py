"""Positions: how far the archive has been applied. Pure; knows nothing of what is stored where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from syncdata.apply.counts import Counts
from syncdata.changes.filenames import stem
from syncdata.changes.names import TableName


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far the archive has been applied: through *record_number* records of *file*, and all earlier files.

    An empty *file* is the beginning of the archive. ``commit_lsn`` is that of the last whole transaction; or
    that of the snapshot the rows came from, and then *file* is the one the snapshot goes on from, or empty.
    ``source_id`` is that of *file*'s header, empty for plain files.
    """

    file: str = ""
    is_finished: bool = False
    record_number: int = 0
    file_size: int | None = None
    commit_lsn: int | None = None
    source_id: str = ""

    @property
    def order(self) -> tuple[str, bool, int]:
        """The sort key that orders positions as the archive does; equal between the same two records.

        A file with a header is whole, so its end is one place, however many records it holds.
        """
        is_whole = self.is_finished and self.source_id != ""
        return (stem(self.file), self.is_finished, _END if is_whole else self.record_number)

    def has_reached(self, other: Position) -> bool:
        """Tell whether this position is at *other* (no record lies between them) or beyond it."""
        is_same_end = self.is_finished and other.is_finished and stem(self.file) == stem(other.file)
        return self.order >= other.order or (is_same_end and self.source_id != other.source_id)


START = Position()

_END = 1 << 63

# By table, the commit LSN at or below which transactions of its position's source are in its rows already.
Watermarks = dict[TableName, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCounts:
    """How many records of each table a file brings, by operation."""

    name: str
    counts: Mapping[TableName, Counts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """A step of tables that go on together: all stand at *start*, each with its own watermark, and a batch
    brings them to *end*. ``files``: where the batch holds several whole files, what each of them brings, in
    their order."""

    watermarks: Mapping[TableName, int | None]
    start: Position
    end: Position
    files: tuple[FileCounts, ...] = ()

    def without(self, tables: Iterable[TableName]) -> Advance:
        """Return the advance of the others, while *tables* stay where they stand."""
        staying = set(tables)
        return replace(self, watermarks={t: w for t, w in self.watermarks.items() if t not in staying})


def watermark_after(watermark: int | None, start: Position, end: Position) -> int | None:
    """Return the watermark of a table that has gone from *start* to *end*: within a source it never falls."""
    if not end.source_id or end.source_id != start.source_id or watermark is None:
        return end.commit_lsn
    return watermark if end.commit_lsn is None else max(watermark, end.commit_lsn)
