"""Runs: neighbouring lines of a change file, read at once. Pure.

Most lines are an INSERT, UPDATE or DELETE and nothing is wrong with them. To make a record of each costs many
times what it takes to see that: so such lines stay together as they stand in the file, as a `Run`, of which
only the outlines are decoded: whose records they are, and where transactions end. Their values are decoded
by whoever wants them, for many lines at once, or not at all.

A run promises what its records promise: each of its lines is one that `parse_record` takes, or for which an
OddRecord stands. The decoder checks the syntax of what it passes over as strictly as that of what it
decodes, but for UTF-8, which is checked here. Test: test_a_run_holds_only_lines_that_are_records.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import chain, compress, count
from typing import Annotated, Literal, overload

import msgspec

from syncdata.changes.catalog import Announcement
from syncdata.changes.names import DEFAULT_SCHEMA
from syncdata.changes.position import parse_lsn
from syncdata.changes.record import ChangeRecord, OddRecord, odd_record, parse_record
from syncdata.errors import ParseError

Name = tuple[str, str]


class LocatedRecord(msgspec.Struct, frozen=True, gc=False):
    """A record, its physical line (from 1) and that line's size in bytes. ``catalog``: the catalog that holds
    from this record on, where it is another than before. ``file``: the name of the file it stands in."""

    record: ChangeRecord
    line: int
    size_bytes: int
    catalog: Announcement | None = None
    file: str = ""


class _Values(msgspec.Struct, frozen=True, gc=False):
    """An object whose members are passed over."""


class Outline(msgspec.Struct, frozen=True, gc=False):
    """A record without its values."""

    table: str
    op: Literal["INSERT", "UPDATE", "DELETE"]
    data: _Values | None = None
    old_keys: _Values | None = None
    lsn: str | None = None
    ts: str | None = None
    schema: Annotated[str, msgspec.Meta(min_length=1)] = DEFAULT_SCHEMA
    xid: int | str | None = None
    commit_lsn: str | None = None

    @property
    def name(self) -> Name:
        return self.schema, self.table


_decode_lines = msgspec.json.Decoder(Outline).decode_lines
_table_of = operator.attrgetter("table")
_schema_of = operator.attrgetter("schema")
_name_of = operator.attrgetter("schema", "table")
_ts_of = operator.attrgetter("ts")
_commit_lsn_of = operator.attrgetter("commit_lsn")


class Run:
    """Lines of one file, each an INSERT, UPDATE or DELETE of a table, as ``text``; no comment among them.

    ``lines``: their numbers. ``outlines``: one for each. ``names``: the tables that they are of. ``marks``:
    the transaction of each, by its commit LSN (``tells_commits``) or else its time; None where it has neither
    and is its own transaction. ``starts``: where, behind the first line, another transaction begins.
    """

    __slots__ = ("file", "lines", "marks", "names", "outlines", "starts", "tells_commits", "text")

    def __init__(self, file: str, text: bytes, lines: Sequence[int], outlines: list[Outline]) -> None:
        """Raises ValueError where the outlines are not those of a run."""
        self.file = file
        self.text = text
        self.lines = lines
        self.outlines = outlines
        self.marks: list[str | None] = list(map(_commit_lsn_of, outlines))
        self.tells_commits = outlines[0].commit_lsn is not None
        if not self.tells_commits:
            if self.marks.count(None) < len(outlines):
                raise ValueError
            self.marks = list(map(_ts_of, outlines))
        if None not in self.marks:
            self.starts = list(compress(count(1), map(operator.ne, self.marks, self.marks[1:])))
        elif self.marks.count(None) == len(outlines) and not self.tells_commits:
            self.starts = list(range(1, len(outlines)))
        else:
            raise ValueError
        self.names = _names(outlines)
        if any(not table for _, table in self.names):
            raise ValueError
        self.commits()

    def __len__(self) -> int:
        return len(self.outlines)

    def commits(self) -> list[int]:
        """Return the commit LSNs of its transactions, as far as they tell them."""
        if not self.tells_commits:
            return []
        return [parse_lsn(self.marks[at] or "") for at in (0, *self.starts)]

    def commit_lsn(self, at: int) -> int | None:
        """Return the commit LSN of the line *at*, counted from 0; None where its transaction tells none."""
        return parse_lsn(self.marks[at] or "") if self.tells_commits else None

    def split(self, at: int) -> tuple[Run, Run]:
        """Return its first *at* lines, and the others; there are some of each."""
        end = self.size_of(at)
        return (
            Run(self.file, self.text[:end], self.lines[:at], self.outlines[:at]),
            Run(self.file, self.text[end:], self.lines[at:], self.outlines[at:]),
        )

    def size_of(self, lines: int) -> int:
        """Return how many bytes its first *lines* lines are."""
        end = len(self.text)
        for _ in range(len(self) - lines):
            end = self.text.rfind(b"\n", 0, end - 1) + 1
        return end

    def by_name(self) -> Iterator[tuple[Name, Run]]:
        """Yield the records of each table."""
        if len(self.names) == 1:
            yield next(iter(self.names)), self
            return
        texts, places = self._texts(), dict[Name, list[int]]()
        for at, name in enumerate(map(_name_of, self.outlines)):
            places.setdefault(name, []).append(at)
        for name, own in places.items():
            yield name, self._at(own, texts)

    def count_of(self, name: Name) -> int:
        """Return how many of its records are of the table of that *name*."""
        return sum(name_of == name for name_of in map(_name_of, self.outlines))

    def only(self, mask: Sequence[bool]) -> Run:
        """Return the lines, some of its own, that *mask* says."""
        return self._at(list(compress(range(len(self)), mask)), self._texts())

    def _at(self, places: list[int], texts: list[bytes]) -> Run:
        outlines, lines = self.outlines, self.lines
        return Run(
            self.file,
            b"".join([texts[at] for at in places]),
            [lines[at] for at in places],
            [outlines[at] for at in places],
        )

    def records(self) -> Iterator[LocatedRecord]:
        """Yield the records with their values, as `read_records` does."""
        for number, line in zip(self.lines, self._texts(), strict=True):
            yield LocatedRecord(_record(line), number, len(line), file=self.file)

    def last_record(self) -> LocatedRecord:
        """Return the last of `records`."""
        line = self.text[self.size_of(len(self) - 1) :]
        return LocatedRecord(_record(line), self.lines[-1], len(line), file=self.file)

    def _texts(self) -> list[bytes]:
        return [line + b"\n" for line in self.text.split(b"\n")[:-1]]


def _names(outlines: list[Outline]) -> set[Name]:
    tables, schemas = set(map(_table_of, outlines)), set(map(_schema_of, outlines))
    if len(tables) == len(schemas) == 1:
        return {(schemas.pop(), tables.pop())}
    return set(map(_name_of, outlines))


def _record(line: bytes) -> ChangeRecord:
    try:
        return parse_record(line)
    except ParseError as error:
        if (odd := odd_record(line, error.message)) is not None:
            return odd
        outline = msgspec.json.decode(line, type=Outline)
        return OddRecord(
            table=outline.table,
            op="UPDATE",
            ts=outline.ts,
            schema=outline.schema,
            commit_lsn=outline.commit_lsn,
            problem=error.message,
        )


def is_simple(text: bytes, lines: int) -> bool:
    """Tell whether each of the *lines* of *text*, which are whole, begins and ends as an object: then no
    comment, blank line or mere part of a record is among them."""
    return text.startswith(b"{") and text.endswith(b"}\n") and text.count(b"}\n{") == lines - 1


def try_run(text: bytes, first_line: int, file: str) -> Run | None:
    """Return the lines of *text*, which `is_simple`, as a run; None where one of them is anything else."""
    try:
        if not text.isascii():
            text.decode()
        outlines = _decode_lines(text)
        lines = text.count(b"\n")
        # Two objects in one line are no record, and two in two lines are two.
        if len(outlines) != lines:
            return None
        return Run(file, text, range(first_line, first_line + lines), outlines)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


Piece = LocatedRecord | Run


class Records(Sequence[LocatedRecord]):
    """The records of *pieces*, of which those of runs are made when somebody asks for them."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self._length = sum(map(size_of, pieces))
        self._records: list[LocatedRecord] | None = None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> LocatedRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LocatedRecord]: ...
    def __getitem__(self, index: int | slice) -> LocatedRecord | Sequence[LocatedRecord]:
        if index == -1 and self._records is None and self.pieces:
            last = self.pieces[-1]
            return last.last_record() if isinstance(last, Run) else last
        return self._all()[index]

    def __iter__(self) -> Iterator[LocatedRecord]:
        return iter(self._all())

    def _all(self) -> list[LocatedRecord]:
        if self._records is None:
            self._records = list(chain.from_iterable(map(records_in, self.pieces)))
        return self._records


def size_of(piece: Piece) -> int:
    """Return how many records *piece* is."""
    return len(piece) if isinstance(piece, Run) else 1


def records_in(piece: Piece) -> Iterator[LocatedRecord]:
    return piece.records() if isinstance(piece, Run) else iter((piece,))


def parts_of(piece: Piece) -> Iterator[tuple[Name, Piece]]:
    """Yield what *piece* has of each table, as (schema, name)."""
    if isinstance(piece, Run):
        return piece.by_name()
    return iter([((piece.record.schema, piece.record.table), piece)])


def pieces_of(records: Sequence[LocatedRecord]) -> Sequence[Piece]:
    """Return the pieces that *records* are made of."""
    return records.pieces if isinstance(records, Records) else records


def records_of(pieces: list[Piece]) -> Sequence[LocatedRecord]:
    """Return the records of *pieces*, without making those of runs."""
    if any(isinstance(piece, Run) for piece in pieces):
        return Records(pieces)
    return pieces  # type: ignore[return-value]
