"""The net change of runs of lines, whose rows are decoded as the table has them. Pure.

net_change.py has the theory; here is the same plan by a shorter way, for records that leave nothing to
decide: INSERTs and UPDATEs of a row at the key that it has, and DELETEs by the key. Where one record is of
another kind, `plan_runs` returns None, and the general way is taken, which knows what to make of it, or to
say. Test: test_both_ways_make_the_same_plan.

The decoder does the telling. A table's row is a struct whose fields are its columns, and no other allowed, of
types whose values stand in a plan as they stand in the line. So a row that has an unknown column or carries a
nested value is refused. At first all columns are required: while each record carries the whole row, it leaves
a row, or none, at its key, whatever came before, and the last one of each key says all.

From the first run on in which a row lacks columns, only those of the key are required, the others are
`UNSET`, and each row is completed by the one that the batch left at its key. An example: table orders (id,
status, note), and nothing before in the batch.

    UPDATE {id: 7, status: 'paid'}               7: (7, 'paid', UNSET), which may only be updated
    UPDATE {id: 7, note: 'none'}                 7: (7, 'paid', 'none'), still: neither would be inserted
    INSERT {id: 8, status: 'new'}                8: (8, 'new', UNSET), to upsert: its note has a default
    DELETE {id: 9}, UPDATE {id: 9, note: ''}     9 is gone, and one record is missing its row
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import compress, count, islice, repeat
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import astuple

from syncdata.apply.counts import Counts
from syncdata.apply.plan.columns import Key
from syncdata.apply.plan.schema import Column
from syncdata.apply.plan.table_plan import Shape, TableBatch, TablePlan
from syncdata.changes.run import Run, pieces_of

# Types whose values a plain file may have as numbers with a fraction, which are kept digit for digit.
_is_fractional = re.compile(r"numeric|real|double precision|money").match
_find_negative_zero = re.compile(rb"-0[,}\s]").search
_NESTED = frozenset((dict, list))

_data_of = attrgetter("data")
_old_keys_of = attrgetter("old_keys")


Row = tuple[Any, ...]
# The text of a key of one column, or the texts of several.
_KeyText = str | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowType:
    """A table's rows as structs. ``decode_lines`` makes of each line a struct with ``data``, the row, and
    ``old_keys``. ``key``: the places of the key's columns among ``columns``. ``has_numbers``: values may be
    numbers. ``may_nest``: the places where nested values pass the decoder. ``may_lack``: rows may lack
    columns outside the key."""

    columns: tuple[str, ...]
    key: tuple[int, ...]
    decode_lines: Callable[[bytes], list[Any]]
    has_numbers: bool
    may_nest: tuple[int, ...]
    may_lack: bool

    def keys(self, rows: Sequence[Row]) -> list[_KeyText]:
        return self._texts([map(itemgetter(at), rows) for at in self.key])

    def old_keys(self, old_rows: Sequence[Any]) -> list[_KeyText]:
        """Return the keys of *old_rows*, each an ``old_keys``."""
        return self._texts([map(attrgetter(f"c{at}"), old_rows) for at in self.key])

    def _texts(self, columns: list[Iterable[Any]]) -> list[_KeyText]:
        if self.has_numbers:
            columns = [map(str, column) for column in columns]
        return list(columns[0] if len(columns) == 1 else zip(*columns, strict=True))


def plan_runs(batch: TableBatch) -> TablePlan | None:
    """Return the plan of *batch* where its records are all in runs and leave nothing to decide; else None."""
    runs = [piece for piece in pieces_of(batch.records) if isinstance(piece, Run)]
    schema = batch.schema
    if not runs or sum(map(len, runs)) < len(batch.records):
        return None
    row_type_of = partial(_row_type, schema.columns, schema.key, batch.file.is_plain)
    row_type = row_type_of(may_lack=False)
    if row_type is None or (row_type.has_numbers and any(may_hold_negative_zero(run.text) for run in runs)):
        return None
    net = _Net(row_type, row_type_of)
    try:
        for run in runs:
            net.add(run)
    except (msgspec.MsgspecError, ValueError, RecursionError, _UndecidedError):
        return None
    added, updated, deleted = (
        sum(run.ops.count(op) for run in runs) for op in ("INSERT", "UPDATE", "DELETE")
    )
    counts = Counts(added=added, updated=updated, deleted=deleted, missing=net.missing)
    gone: dict[Key, bool] = {
        (key,) if isinstance(key, str) else key: is_expected for key, is_expected in net.gone.items()
    }
    plan = TablePlan(schema=schema, counts=counts, gone=gone, last_ts=runs[-1].times[-1])
    plan.writes = net.writes()
    plan.hides_missing = net.hides_missing
    # A key that is inserted twice is no new row.
    plan.only_inserts = counts.added == len(net.rows) == len(batch.records) and len(plan.writes) == 1
    return plan


class _UndecidedError(Exception):
    """The general way must decide."""


class _Net:
    """The rows that the records leave, with `UNSET` for a column that none of them has told; ``gone``,
    ``missing`` and ``hides_missing`` as in a plan. ``updates``: the keys of rows that no record so far would
    insert."""

    def __init__(self, row_type: _RowType, row_type_of: Callable[..., _RowType | None]) -> None:
        self.rows: dict[_KeyText, Row] = {}
        self.gone: dict[_KeyText, bool] = {}
        self.updates: set[_KeyText] = set()
        self.missing = 0
        self.hides_missing = False
        self._row_type = row_type
        self._row_type_of = row_type_of

    def add(self, run: Run) -> None:
        """Fold the records of *run*. Raises _UndecidedError, and what the decoder raises."""
        records = self._decode(run)
        row_type = self._row_type
        if "DELETE" not in run.ops:
            rows = _rows(row_type, records, run.ops)
            self._write(zip(_keys(row_type, records, rows), rows, strict=True), run.ops)
            return
        are_deletes = [op == "DELETE" for op in run.ops]
        are_writes = list(map(operator.not_, are_deletes))
        writes, ops = list(compress(records, are_writes)), list(compress(run.ops, are_writes))
        old_rows = list(map(_old_keys_of, compress(records, are_deletes)))
        if None in old_rows:
            raise _UndecidedError
        rows = _rows(row_type, writes, ops)
        written = zip(_keys(row_type, writes, rows), rows, strict=True)
        ops_left = iter(ops)
        done = 0
        for at, key in zip(compress(count(), are_deletes), row_type.old_keys(old_rows), strict=True):
            self._write(islice(written, at - done), ops_left)
            self._delete(key)
            done = at + 1
        self._write(written, ops_left)

    def _decode(self, run: Run) -> list[Any]:
        try:
            return self._row_type.decode_lines(run.text)
        except msgspec.ValidationError:
            if self._row_type.may_lack:
                raise
        if (row_type := self._row_type_of(may_lack=True)) is None:
            raise _UndecidedError
        self._row_type = row_type
        return row_type.decode_lines(run.text)

    def _write(self, written: Iterable[tuple[_KeyText, Row]], ops: Iterable[str]) -> None:
        """Put the rows *written* at their keys; *ops* go on with their operations."""
        if not self._row_type.may_lack:
            self.rows.update(written)
            return
        # In this order, for zip takes one more of its first when the other has ended.
        for (key, row), op in zip(written, ops, strict=False):
            known = self.rows.get(key)
            is_insertable = op == "INSERT" or UNSET not in row
            if known is None:
                if not is_insertable:
                    if key in self.gone:
                        self.missing += 1
                        continue
                    self.updates.add(key)
                self.rows[key] = row
            else:
                self.rows[key] = _completed(row, known)
                if is_insertable and key in self.updates:
                    self.updates.remove(key)
                    self.hides_missing = True

    def _delete(self, key: _KeyText) -> None:
        if self.rows.pop(key, None) is not None:
            if key in self.updates:
                self.updates.remove(key)
                self.gone[key] = True
            else:
                # The batch has written a row there; whether the target holds one is not known.
                self.gone.setdefault(key, False)
        elif key in self.gone:
            self.missing += 1
        else:
            self.gone[key] = True

    def writes(self) -> dict[Shape, list[Row]]:
        """Return the rows as a plan has them: without what they lack, by the columns that they have."""
        columns = self._row_type.columns
        if not self._row_type.may_lack:
            return {Shape("upsert", columns): list(self.rows.values())} if self.rows else {}
        parts: dict[tuple[bool, tuple[bool, ...]], list[Row]] = {}
        for key, row in self.rows.items():
            are_there = tuple(map(operator.is_not, row, repeat(UNSET)))
            values = row if all(are_there) else tuple(compress(row, are_there))
            parts.setdefault((key in self.updates, are_there), []).append(values)
        return {
            Shape(mode, tuple(compress(columns, are_there))): rows
            for mode in ("update", "upsert")
            for (is_update, are_there), rows in parts.items()
            if is_update == (mode == "update")
        }


def _rows(row_type: _RowType, records: Sequence[Any], ops: Sequence[str]) -> list[Row]:
    """Return the rows of *records*, which are no DELETEs, as their lines have them."""
    data = list(map(_data_of, records))
    if data.count(None):
        raise _UndecidedError
    rows = list(map(astuple, data))
    if row_type.may_lack and "UPDATE" in ops:
        # Under identity FULL the old row completes the new one. Of an INSERT nobody looks at it.
        old_rows = [
            None if op == "INSERT" else old for op, old in zip(ops, map(_old_keys_of, records), strict=True)
        ]
        if old_rows.count(None) < len(old_rows):
            rows = [
                row if old is None else _completed(row, astuple(old))
                for row, old in zip(rows, old_rows, strict=True)
            ]
    for at in row_type.may_nest:
        if not _NESTED.isdisjoint(map(type, map(itemgetter(at), rows))):
            raise _UndecidedError
    return rows


def _completed(row: Row, other: Row) -> Row:
    """Return *row* with the values of *other* for the columns that it lacks."""
    if UNSET not in row:
        return row
    return tuple([old if value is UNSET else value for value, old in zip(row, other, strict=True)])


def _keys(row_type: _RowType, records: Sequence[Any], rows: Sequence[Row]) -> list[_KeyText]:
    """Return the keys of *rows*, those of *records*. Raises _UndecidedError where one was another before."""
    keys = row_type.keys(rows)
    old_rows = list(map(_old_keys_of, records))
    if old_rows.count(None) < len(old_rows):
        at_same = [(old, key) for old, key in zip(old_rows, keys, strict=True) if old is not None]
        if row_type.old_keys([old for old, _ in at_same]) != [key for _, key in at_same]:
            raise _UndecidedError
    return keys


def may_hold_negative_zero(text: bytes) -> bool:
    """Tell whether -0 may be a value in *text*: as an integer it would lose its sign."""
    return _find_negative_zero(text) is not None


@lru_cache(maxsize=1024)
def _row_type(
    columns: tuple[Column, ...], key: tuple[str, ...], is_plain: bool, *, may_lack: bool
) -> _RowType | None:
    """Return the structs of a table with *columns*; None where its values are read in the general way."""
    names = tuple(column.name for column in columns if not column.is_generated)
    kinds = {column.type.kind for column in columns}
    if not key or not set(key) <= set(names) or "byte" in kinds or (is_plain and "bytea" in kinds):
        return None
    types = [_type_of(column, is_plain=is_plain) for column in columns if not column.is_generated]
    fields = [f"c{at}" for at in range(len(names))]
    for at, name in enumerate(names):
        if name in key:
            types[at] = str | int if is_plain and types[at] != str | None else str
    required: list[Any] = list(zip(fields, types, strict=True))
    # Old values of other columns than the key's matter only where they may complete a row.
    optional: list[Any] = [
        field if name in key else (*field, UNSET) if may_lack else (field[0], Any, UNSET)
        for field, name in zip(required, names, strict=True)
    ]

    def struct(name: str, members: list[Any]) -> type[msgspec.Struct]:
        return msgspec.defstruct(
            name,
            members,
            rename=dict(zip(fields, names, strict=True)),
            forbid_unknown_fields=True,
            frozen=True,
            kw_only=True,
            gc=False,
        )

    try:
        data = struct("Row", optional if may_lack else required)
        old = struct("OldKeys", optional)
        record = msgspec.defstruct(
            "Record", [("data", data | None, None), ("old_keys", old | None, None)], frozen=True, gc=False
        )
        decoder = msgspec.json.Decoder(record, float_hook=str)
    except ValueError:  # a name that no field can have
        return None
    return _RowType(
        columns=names,
        key=tuple(names.index(name) for name in key),
        decode_lines=decoder.decode_lines,
        has_numbers=is_plain,
        may_nest=tuple(at for at, type_ in enumerate(types) if type_ is Any),
        may_lack=may_lack,
    )


def _type_of(column: Column, *, is_plain: bool) -> Any:
    """Return the type of the values of *column* that a plan takes as they stand."""
    if not is_plain or column.type.kind != "plain":
        return str | None
    # The decoder knows no number with a fraction that is not a float, but for Any, where it is a text.
    return Any if _is_fractional(column.sql_type) else str | int | bool | None
