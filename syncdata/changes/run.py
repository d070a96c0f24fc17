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

import io
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, count, islice, repeat
from typing import Annotated, Literal, TypeVar, overload

import msgspec

from syncdata.changes.catalog import Announcement
from syncdata.changes.names import DEFAULT_SCHEMA
from syncdata.changes.position import parse_lsn
from syncdata.changes.record import ChangeRecord, OddRecord, odd_record, parse_record
from syncdata.errors import ParseError

T = TypeVar("T")
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


_decode_lines = msgspec.json.Decoder(Outline).decode_lines
_first, _last_but_one = operator.itemgetter(0), operator.itemgetter(-2)
_OPENING, _CLOSING = set(b"{"), set(b"}")
_op_of = operator.attrgetter("op")
_schema_of = operator.attrgetter("schema")
_table_of = operator.attrgetter("table")
_ts_of = operator.attrgetter("ts")
_commit_lsn_of = operator.attrgetter("commit_lsn")


class Run:
    """Lines of one file, each an INSERT, UPDATE or DELETE of a table, as ``text``; no comment among them.

    One entry for each line: its number (``lines``), its operation (``ops``), its table (``tables``), its time
    (``times``) and its transaction (``marks``), by the commit LSN (``tells_commits``) or else the time; None
    where it has neither and is its own transaction. ``starts``: where, behind the first line, another
    transaction begins. ``names``: the tables. The outlines themselves would be much memory, so equal entries
    are one object.
    """

    __slots__ = (
        *("_commits", "_starts", "file", "lines", "marks", "names"),
        *("ops", "tables", "tells_commits", "text", "times"),
    )

    def __init__(self, file: str, text: bytes, lines: Sequence[int], entries: _Entries) -> None:
        self.file = file
        self.text = text
        self.lines = lines
        self.ops, self.tables, self.times, commits = entries
        self.tells_commits = commits[0] is not None
        self.marks = commits if self.tells_commits else self.times
        name = self.tables[0]
        self.names = {name} if self.tables.count(name) == len(self.tables) else set(self.tables)
        self._starts: Sequence[int] | None = None
        self._commits: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ops)

    @property
    def starts(self) -> Sequence[int]:
        if self._starts is None:
            if self.marks[0] is None:
                self._starts = range(1, len(self))
            else:
                self._starts = _borders(self.marks)
        return self._starts

    def commits(self) -> list[int]:
        """Return the commit LSNs of its transactions, as far as they tell them."""
        if self._commits is None:
            firsts = (0, *self.starts) if self.tells_commits else ()
            self._commits = [parse_lsn(self.marks[at] or "") for at in firsts]
        return self._commits

    def commit_lsn(self, at: int) -> int | None:
        """Return the commit LSN of the line *at*, counted from 0; None where its transaction tells none."""
        return parse_lsn(self.marks[at] or "") if self.tells_commits else None

    @property
    def last_commit(self) -> str | None:
        return self.marks[-1] if self.tells_commits else None

    def within(self, mark: str) -> Run:
        """Return its lines as those of one transaction, which is called *mark*. They tell no commits."""
        run = Run(self.file, self.text, self.lines, self._entries(slice(None)))
        run.marks = [mark] * len(run)
        return run

    def split(self, at: int) -> tuple[Run, Run]:
        """Return its first *at* lines, and the others; there are some of each."""
        end = self.size_of(at)
        return (
            Run(self.file, self.text[:end], self.lines[:at], self._entries(slice(None, at))),
            Run(self.file, self.text[end:], self.lines[at:], self._entries(slice(at, None))),
        )

    def _entries(self, part: slice) -> _Entries:
        commits: list[str | None] = self.marks[part] if self.tells_commits else [None]
        return self.ops[part], self.tables[part], self.times[part], commits

    def size_of(self, lines: int) -> int:
        """Return how many bytes its first *lines* lines are."""
        end = len(self.text)
        for _ in range(len(self) - lines):
            end = self.text.rfind(b"\n", 0, end - 1) + 1
        return end

    def count_of(self, name: Name) -> int:
        """Return how many of its records are of the table of that *name*."""
        return self.tables.count(name)

    def ops_by_table(self) -> dict[Name, list[str]]:
        """Return the operations of each table's records, in order."""
        if len(self.names) == 1:
            return {self.tables[0]: self.ops}
        ops: dict[Name, list[str]] = {name: [] for name in self.names}
        for name, op in zip(self.tables, self.ops, strict=True):
            ops[name].append(op)
        return ops

    def only(self, mask: Sequence[bool]) -> Run:
        """Return the lines, some of its own, that *mask* says."""
        texts = list(compress(self.text.split(b"\n"), mask))
        entries: _Entries = (
            list(compress(self.ops, mask)),
            list(compress(self.tables, mask)),
            list(compress(self.times, mask)),
            list(compress(self.marks, mask)) if self.tells_commits else [None],
        )
        return Run(self.file, _joined(texts), list(compress(self.lines, mask)), entries)

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


# The operations, tables, times and commit LSNs of lines; of the last, where there are none, not one for each.
_Entries = tuple[list[str], list[Name], list[str | None], list[str | None]]


def _entries_of(outlines: list[Outline]) -> _Entries:
    """Return what a run keeps of *outlines*. Raises ValueError where they are not those of a run."""
    tables = _names_of(outlines)
    commits, times = _shared(list(map(_commit_lsn_of, outlines))), _shared(list(map(_ts_of, outlines)))
    # Either all lines tell their transaction in one way, or none does.
    marks = commits if commits[0] is not None else times
    if 0 < marks.count(None) < len(marks) or (marks is times and commits.count(None) < len(commits)):
        raise ValueError
    return list(map(_op_of, outlines)), tables, times, commits


def _names_of(outlines: list[Outline]) -> list[Name]:
    """Return the table of each of *outlines*. Raises ValueError where one is nameless."""
    schemas, tables = list(map(_schema_of, outlines)), list(map(_table_of, outlines))
    if not all(tables):
        raise ValueError
    schema = schemas[0]
    if schemas.count(schema) < len(schemas):
        pairs = list(zip(schemas, tables, strict=True))
        known: dict[Name, Name] = {}
        return list(map(known.setdefault, pairs, pairs))
    if tables.count(tables[0]) == len(tables):
        return [(schema, tables[0])] * len(tables)
    names = {table: (schema, table) for table in set(tables)}
    return list(map(names.__getitem__, tables))


def _borders(values: Sequence[object]) -> list[int]:
    """Return where, behind the first of *values*, one is another than the one before."""
    return list(compress(count(1), map(operator.ne, values, islice(values, 1, None))))


def _joined(lines: Sequence[bytes]) -> bytes:
    """Return *lines*, of which there are some, with the newlines that they lack."""
    return b"\n".join((*lines, b""))


def _shared(values: list[T]) -> list[T]:
    """Return *values*, neighbours that are equal as one object."""
    starts = [0, *_borders(values)]
    lengths = map(operator.sub, (*starts[1:], len(values)), starts)
    return list(chain.from_iterable(map(repeat, map(values.__getitem__, starts), lengths)))


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


def count_simple(text: bytes) -> int:
    """Return how many lines *text* is where each begins and ends as an object; else 0.

    Then no comment, blank line or mere part of a record is among them.
    """
    if not (text.startswith(b"{") and text.endswith(b"}\n")):
        return 0
    # To look at each line takes a third of the time that it takes to count newlines, and `}\n{`.
    lines = io.BytesIO(text).readlines()
    begin_as_objects = set(map(_first, lines)) == _OPENING
    return len(lines) if begin_as_objects and set(map(_last_but_one, lines)) == _CLOSING else 0


def try_run(text: bytes, first_line: int, file: str, *, lines: int | None = None) -> Run | None:
    """Return the *lines* of *text*, all of them simple, as a run; None where one of them is anything else."""
    try:
        if not text.isascii():
            text.decode()
        outlines = _decode_lines(text)
        # Whoever knows their number says it: to count costs as much as to decode, where lines are long.
        lines = text.count(b"\n") if lines is None else lines
        # Two objects in one line are no record, and two in two lines are two.
        if len(outlines) != lines:
            return None
        run = Run(file, text, range(first_line, first_line + lines), _entries_of(outlines))
        run.commits()  # each of them must be an LSN
        return run
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


# As the predecessor's script writes them. A line that says the same in another way is in no run, either.
_find_marks = re.compile(rb'\n\{"table": ?"", ?"op": ?"[BCM]"[^\n]*').finditer

# Where transactions are smaller, a run of each would cost more than it saves.
MIN_LINES_A_MARK = 8


def parted_at_marks(text: bytes, first_line: int, lines: int) -> list[tuple[int, bytes, int]]:
    """Return the lines between the predecessor's marks of transactions, and each mark apart, as (first line,
    text, lines). It is all of *text*, whose *lines* lines are simple, where marks are none or many."""
    marks = [match.span() for match in _find_marks(b"\n" + text)]
    if not marks or len(marks) * MIN_LINES_A_MARK > lines:
        return [(first_line, text, lines)]
    parts = []
    done = 0
    for at in (*chain.from_iterable(marks), len(text)):
        if part := text[done:at]:
            parts.append((first_line, part, part.count(b"\n")))
            first_line += parts[-1][2]
        done = at
    return parts


Piece = LocatedRecord | Run

# How many bytes of lines of several tables are sorted apart at once: meanwhile they are in memory twice more.
MAX_SORTED_BYTES = 1 << 22


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


def by_table(pieces: Iterable[Piece]) -> dict[Name, list[Piece]]:
    """Return what *pieces* have of each table, as (schema, name), in order.

    Lines of several tables are sorted apart many runs at a time: then a table has few runs of many lines, not
    many runs of a few, each of which has its price.
    """
    parts: dict[Name, list[Piece]] = {}
    mixed: list[Run] = []

    def sort_apart() -> None:
        for name, run in _by_table(mixed):
            parts.setdefault(name, []).append(run)
        mixed.clear()

    for piece in pieces:
        if mixed and not (
            isinstance(piece, Run) and _are_alike(mixed[-1], piece) and _bytes_of(mixed) < MAX_SORTED_BYTES
        ):
            sort_apart()
        if isinstance(piece, Run) and len(piece.names) > 1:
            mixed.append(piece)
        elif isinstance(piece, Run):
            (name,) = piece.names
            # Behind lines of several tables, it waits with them for its turn.
            if mixed:
                mixed.append(piece)
            else:
                parts.setdefault(name, []).append(piece)
        else:
            parts.setdefault((piece.record.schema, piece.record.table), []).append(piece)
    sort_apart()
    return parts


def _are_alike(run: Run, other: Run) -> bool:
    """Tell whether the lines of both can be of one run."""
    return (
        run.file == other.file
        and run.tells_commits == other.tells_commits
        and (run.marks[0] is None) == (other.marks[0] is None)
    )


def _bytes_of(runs: list[Run]) -> int:
    return sum(len(run.text) for run in runs)


def _by_table(runs: list[Run]) -> Iterator[tuple[Name, Run]]:
    """Yield the lines of *runs*, which are alike, as one run for each table."""
    places: dict[Name, list[int]] = {}
    for at, name in enumerate(chain.from_iterable(run.tables for run in runs)):
        places.setdefault(name, []).append(at)
    texts = list(chain.from_iterable(run.text[:-1].split(b"\n") for run in runs))
    numbers = list(chain.from_iterable(run.lines for run in runs))
    ops = list(chain.from_iterable(run.ops for run in runs))
    times = list(chain.from_iterable(run.times for run in runs))
    commits = list(chain.from_iterable(run.marks for run in runs)) if runs and runs[0].tells_commits else []
    for name, own in places.items():
        entries: _Entries = (
            list(map(ops.__getitem__, own)),
            [name] * len(own),
            list(map(times.__getitem__, own)),
            list(map(commits.__getitem__, own)) if commits else [None],
        )
        text = _joined(list(map(texts.__getitem__, own)))
        yield name, Run(runs[0].file, text, list(map(numbers.__getitem__, own)), entries)


def pieces_of(records: Sequence[LocatedRecord]) -> Sequence[Piece]:
    """Return the pieces that *records* are made of."""
    return records.pieces if isinstance(records, Records) else records


def records_of(pieces: list[Piece]) -> Sequence[LocatedRecord]:
    """Return the records of *pieces*, without making those of runs."""
    if any(isinstance(piece, Run) for piece in pieces):
        return Records(pieces)
    return pieces  # type: ignore[return-value]
