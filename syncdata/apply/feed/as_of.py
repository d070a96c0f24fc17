"""Finds where in the archive a point lies: a moment, or a commit's LSN. Knows no database.

The tables are to stand behind the last transaction that was committed at or before the point, and not have
the next one. LSNs grow, but the clock that commit times are taken from may have gone backwards: the first
transaction beyond the point is where it ends, whatever comes later.

Example: the point is 10:30. File F7 holds a commit of 10:29 (3 records), one of 10:31 and one of 10:30. The
end is the position behind 3 records of F7. A snapshot that shows the commit of 10:31 is newer than the point.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from syncdata.apply.feed.files import Fetched, ask, fetch, fetch_all
from syncdata.apply.position import Position
from syncdata.archive.archive import Archive, ChangeFile
from syncdata.changes.catalog import lsn_or_none
from syncdata.changes.filenames import file_time, stem
from syncdata.changes.reader import read_pieces
from syncdata.changes.record import MARKS
from syncdata.changes.run import Piece, Run
from syncdata.changes.times import parse_time
from syncdata.errors import ParseError, PointError, shortened
from syncdata.runtime.bounded_stream import ReadingStopped

# Files whose names are older than the point by more than this are not read: no clock goes so wrong.
_CLOCK_ERROR = dt.timedelta(days=1)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)

_BEGINNING = Position(is_finished=True)

# The mark of all records between a ``B`` and its ``C``.
_OPEN = "B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A moment or an LSN, one of the two, as the ``text`` says it."""

    text: str
    moment: dt.datetime | None = None
    lsn: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read *text*. Raises PointError when it is neither a time nor an LSN."""
        if _TIME.fullmatch(text) and (moment := parse_time(text)) is not None:
            return cls(text=text, moment=moment)
        if (lsn := lsn_or_none(text)) is not None:
            return cls(text=text, lsn=lsn)
        raise PointError(
            f"{shortened(text)!r} is neither a time nor an LSN",
            hint="write a time as 2026-02-05T10:30:00Z, an LSN as 1A/2B3C4D5E",
        )

    def is_before(self, times: Collection[str | None], commit_lsn: int | None) -> bool:
        """Tell whether a transaction that tells these is beyond the point."""
        if self.lsn is not None:
            return commit_lsn is not None and commit_lsn > self.lsn
        assert self.moment is not None
        moments = (parse_time(time) for time in times)
        return any(moment > self.moment for moment in moments if moment is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Where tables are to stop for ``point``. It ``is_reached`` where the archive holds all up to there; else
    ``position`` is where the archive ended, and ``last`` says with which transaction.

    Rows that show the commit ``bound`` of the source ``source_id``, or a later one, are beyond the point, or
    it is not known that they are not."""

    point: Point
    position: Position
    is_reached: bool
    source_id: str = ""
    bound: int | None = None
    last: str = ""

    def is_passed_by(self, position: Position) -> bool:
        """Tell whether the rows of a table at *position* are beyond the end, or may be."""
        if _is_farther(position, self.position):
            return True
        commit_lsn = position.commit_lsn
        if commit_lsn is None:
            return False
        if position.source_id == self.source_id and self.bound is not None:
            return commit_lsn >= self.bound
        if position.order < self.position.order or position.source_id == self.position.source_id:
            return False
        # A snapshot of a source of which the archive holds no file yet.
        return self.point.lsn is None or commit_lsn > self.point.lsn


def _is_farther(position: Position, end: Position) -> bool:
    own, others = stem(position.file), stem(end.file)
    if own != others:
        return own > others
    if not position.source_id and not end.source_id:
        # A plain file grows: its end is wherever it was read to.
        return position.record_number > end.record_number
    if position.is_finished or end.is_finished:
        return position.is_finished and not end.is_finished
    return position.record_number > end.record_number


def find_end(
    archive: Archive,
    point: Point,
    *,
    since: str,
    ignored: Mapping[str, Collection[int]],
    stop: threading.Event,
    max_record_bytes: int,
) -> End:
    """Look for *point* from the file *since* on, in which the table stands that is farthest behind; from the
    archive's beginning where that is empty.

    *ignored*: by the stem of a file, the lines that an operator has said to skip. Raises PointError where
    plain files do not tell LSNs, ParseError at a broken file, what the archive raises, and ReadingStopped.
    """
    files = ask(archive, lambda: archive.discover(None), stop=stop)
    first = max(_first_within(point, files), _first_of(since, files) if since else 0)
    if since:
        first = _with_a_transaction(archive, files, first, stop=stop, max_record_bytes=max_record_bytes)
    scan = _Scan(point, Position(file=files[first - 1].name, is_finished=True) if first else _BEGINNING)
    todo = files[first:]
    with closing(fetch_all(archive, todo, stop=stop, max_record_bytes=max_record_bytes)) as fetched_files:
        for fetched in fetched_files:
            with closing(fetched.stream):
                if _is_unfinished(fetched, is_newest=fetched.name == files[-1].name):
                    break
                end = scan.look_into(fetched, ignored.get(stem(fetched.name), ()))
            if end is not None:
                return end
    if stop.is_set():
        raise ReadingStopped
    return scan.end_of_archive()


def _first_within(point: Point, files: Sequence[ChangeFile]) -> int:
    """Return the first of *files* that may hold a transaction beyond *point*, by their names."""
    if point.moment is None:
        return 0
    for number, file in enumerate(files):
        moment = file_time(file.name)
        if moment is not None and moment > point.moment - _CLOCK_ERROR:
            return max(number - 1, 0)
    return max(len(files) - 1, 0)


def _first_of(name: str, files: Sequence[ChangeFile]) -> int:
    """Return the number of the file *name*; where it has gone, of the one before, if there is one."""
    own = stem(name)
    return max((number for number, file in enumerate(files) if file.stem <= own), default=0)


def _with_a_transaction(
    archive: Archive, files: Sequence[ChangeFile], first: int, *, stop: threading.Event, max_record_bytes: int
) -> int:
    """Return the number of the last file up to *first* that holds a record, so that it is seen whether what a
    table at *first* has is beyond the point already."""
    while first > 0 and not _holds_a_record(
        fetch(archive, files[first], stop=stop, max_record_bytes=max_record_bytes)
    ):
        first -= 1
    return first


def _holds_a_record(fetched: Fetched) -> bool:
    with closing(fetched.stream):
        if fetched.inspection.error or fetched.inspection.unfinished:
            return not fetched.inspection.unfinished
        pieces = read_pieces(fetched.stream, fetched.name, max_record_bytes=fetched.max_record_bytes)
        try:
            return next(pieces, None) is not None
        except ParseError:
            return True  # It is told of when the file is read.


def _is_unfinished(fetched: Fetched, *, is_newest: bool) -> bool:
    """Tell whether the file is still being written. Raises ParseError where it is broken."""
    inspection = fetched.inspection
    if inspection.error:
        raise inspection.error
    if inspection.unfinished and not is_newest:
        raise ParseError(
            f"the file is cut short: {inspection.unfinished}, yet newer files are there",
            hint="replace it in the archive by a good copy",
            file=fetched.name,
        )
    return bool(inspection.unfinished)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Neighbouring records that tell the same transaction, by ``mark``; None where they tell none."""

    mark: str | None
    times: Collection[str | None]
    commit_lsn: str | None
    records: int
    op: str = ""
    is_record: bool = True


class _Scan:
    """Reads file after file until a transaction is beyond *point*. *before*: the position where it begins."""

    def __init__(self, point: Point, before: Position) -> None:
        self._point = point
        self._before = before
        self._source_id = ""
        self._known_lsn: int | None = None  # all commits before it have been seen
        self._last_time: str | None = None
        self._last_lsn: str | None = None

    def look_into(self, fetched: Fetched, ignored: Collection[int]) -> End | None:
        """Return the end if it is in the file, or directly before or behind it."""
        header, footer = fetched.inspection.header, fetched.inspection.footer
        source_id = header.source_id if header else ""
        if source_id != self._source_id:
            self._source_id, self._known_lsn = source_id, None
        lsn, last = self._point.lsn, lsn_or_none(footer.last_commit_lsn if footer else None)
        if footer is not None and lsn is not None and last is not None and last <= lsn:
            records, border = footer.records, None  # The footer says it: the records need not be read.
            self._last_lsn, self._last_time = footer.last_commit_lsn, None
        else:
            records, border = self._read(fetched, ignored)
        if border is not None:
            inside = Position(file=fetched.name, record_number=border, source_id=source_id)
            return self._end(inside if border else self._before, self._known_lsn)
        self._before = Position(
            file=fetched.name, is_finished=True, record_number=records, source_id=source_id
        )
        if footer is not None:
            seen = [lsn_or_none(footer.end_lsn), _next(last), _next(lsn_or_none(self._last_lsn))]
            self._known_lsn = max((it for it in seen if it is not None), default=self._known_lsn)
            end_lsn = lsn_or_none(footer.end_lsn)
            if lsn is not None and end_lsn is not None and end_lsn > lsn:
                return self._end(self._before, lsn + 1)
        return None

    def _end(self, position: Position, bound: int | None) -> End:
        return End(
            point=self._point,
            position=position,
            is_reached=True,
            source_id=self._source_id,
            bound=bound,
            last=self._told,
        )

    def end_of_archive(self) -> End:
        """Return the end where nothing is beyond the point yet. A plain file may grow behind it."""
        before = self._before
        if before.file and not before.source_id:
            before = Position(file=before.file, record_number=before.record_number)
        return End(
            point=self._point,
            position=before,
            is_reached=False,
            source_id=self._source_id,
            bound=(_next(self._point.lsn) or self._known_lsn) if self._source_id else None,
            last=self._told,
        )

    @property
    def _told(self) -> str:
        parts = [self._last_time and f"of {self._last_time}", self._last_lsn and f"at {self._last_lsn}"]
        return " ".join(shortened(part) for part in parts if part)

    def _read(self, fetched: Fetched, ignored: Collection[int]) -> tuple[int, int | None]:
        """Return how many records the file holds, as far as it was read, and how many of them come before the
        first transaction beyond the point; None where there is no such transaction."""
        is_plain, point = fetched.inspection.header is None, self._point
        pieces = read_pieces(
            fetched.stream, fetched.name, ignored=ignored, max_record_bytes=fetched.max_record_bytes
        )
        records = border = 0
        mark: str | None = None
        for step in _steps(pieces):
            if step.op == "B" or (mark != _OPEN and (step.mark is None or step.mark != mark)):
                border = records
            if point.lsn is not None and is_plain and step.commit_lsn is None and step.is_record:
                raise PointError(
                    "the file does not tell commit LSNs, so it cannot be said where one is reached",
                    hint="name a time: --until 2026-02-05T10:30:00Z",
                    file=fetched.name,
                )
            commit_lsn = lsn_or_none(step.commit_lsn)
            if point.is_before(step.times, commit_lsn):
                self._known_lsn = None if is_plain else commit_lsn
                return records, border
            records += step.records
            self._last_lsn = step.commit_lsn or self._last_lsn
            self._last_time = next(iter(step.times), None) or self._last_time
            if step.op == "B":
                mark = _OPEN
            elif step.op == "C":
                mark = None
            elif mark != _OPEN:
                mark = step.mark
        return records, None


def _steps(pieces: Iterator[Piece]) -> Iterator[_Step]:
    for piece in pieces:
        if isinstance(piece, Run):
            starts = (0, *piece.starts, len(piece))
            for start, end in pairwise(starts):
                mark = piece.marks[start]
                yield _Step(
                    mark=mark,
                    times=dict.fromkeys(piece.times[start:end]),
                    commit_lsn=mark if piece.tells_commits else None,
                    records=end - start,
                )
            continue
        record = piece.record
        is_mark = not record.table and record.op in MARKS
        yield _Step(
            mark=None if is_mark else record.commit_lsn or record.ts,
            times=(record.ts,),
            commit_lsn=record.commit_lsn,
            records=1,
            op=record.op if is_mark else "",
            is_record=bool(record.table),
        )


def _next(lsn: int | None) -> int | None:
    return None if lsn is None else lsn + 1
