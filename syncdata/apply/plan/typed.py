"""The net change of runs of lines, whose rows are decoded as the table has them. Pure.

net_change.py has the theory; here is the same plan by a shorter way, for records that leave nothing to
decide: INSERTs and UPDATEs that carry the whole row at the key that it has, and DELETEs by the key. Each
leaves a row, or none, at its key, whatever came before: so the last one of each key says all. Where one
record is of another kind, `plan_runs` returns None, and the general way is taken, which knows what to make of
it, or to say. Test: test_both_ways_make_the_same_plan.

The decoder does the telling. A table's row is a struct whose fields are its columns, all of them required and
no other allowed, of types whose values stand in a plan as they stand in the line. So a row that lacks a
column, has an unknown one, or carries a nested value is refused.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, compress
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
from msgspec.structs import astuple

from syncdata.apply.counts import Counts
from syncdata.apply.plan.columns import Key
from syncdata.apply.plan.schema import Column
from syncdata.apply.plan.table_plan import Shape, TableBatch, TablePlan
from syncdata.changes.run import Outline, Run, pieces_of

# Types whose values a plain file may have as numbers with a fraction, which are kept digit for digit.
_is_fractional = re.compile(r"numeric|real|double precision|money").match
_find_negative_zero = re.compile(rb"-0[,}\s]").search
_NESTED = frozenset((dict, list))

_op_of = attrgetter("op")
_data_of = attrgetter("data")
_old_keys_of = attrgetter("old_keys")


Row = tuple[Any, ...]
# The text of a key of one column, or the texts of several.
_KeyText = str | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowType:
    """A table's rows as structs. ``decode_lines`` makes of each line a struct with ``data``, the row, and
    ``old_keys``. ``key``: the places of the key's columns among ``columns``. ``has_numbers``: values may be
    numbers. ``may_nest``: the places where nested values pass the decoder."""

    columns: tuple[str, ...]
    key: tuple[int, ...]
    decode_lines: Callable[[bytes], list[Any]]
    has_numbers: bool
    may_nest: tuple[int, ...]

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
    row_type = _row_type(schema.columns, schema.key, batch.file.is_plain)
    if row_type is None or (row_type.has_numbers and any(may_hold_negative_zero(run.text) for run in runs)):
        return None
    outlines: list[Outline] = list(chain.from_iterable(run.outlines for run in runs))
    ops = list(map(_op_of, outlines))
    try:
        records = list(chain.from_iterable(row_type.decode_lines(run.text) for run in runs))
        net = _net_rows(row_type, ops, records)
    except (msgspec.MsgspecError, ValueError, RecursionError, _UndecidedError):
        return None
    by_op = Counter(ops)
    counts = Counts(
        added=by_op["INSERT"], updated=by_op["UPDATE"], deleted=by_op["DELETE"], missing=net.missing
    )
    plan = TablePlan(schema=schema, counts=counts, gone=net.gone, last_ts=outlines[-1].ts)
    if net.rows:
        plan.writes[Shape("upsert", row_type.columns)] = net.rows
    # A key that is inserted twice is no new row.
    plan.only_inserts = counts.added == len(net.rows) == len(records)
    return plan


class _UndecidedError(Exception):
    """The general way must decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Net:
    """``rows``: what the last record of each key leaves. ``gone`` and ``missing``: as in a plan."""

    rows: list[Row]
    gone: dict[Key, bool]
    missing: int = 0


def _net_rows(row_type: _RowType, ops: Sequence[str], records: Sequence[Any]) -> _Net:
    """Fold *records*. Raises _UndecidedError where that takes more than the last record of each key."""
    are_deletes = [op == "DELETE" for op in ops]
    deletes = list(compress(records, are_deletes))
    writes = list(compress(records, map(operator.not_, are_deletes))) if deletes else records
    rows = _rows(row_type, writes)
    keys = row_type.keys(rows)
    _require_same_keys(row_type, writes, keys)
    if not deletes:
        return _Net(rows=list(dict(zip(keys, rows, strict=True)).values()), gone={})
    old_rows = list(map(_old_keys_of, deletes))
    if None in old_rows:
        raise _UndecidedError
    return _fold(are_deletes, zip(keys, rows, strict=True), iter(row_type.old_keys(old_rows)))


def _rows(row_type: _RowType, records: Sequence[Any]) -> list[Row]:
    data = list(map(_data_of, records))
    if data.count(None):
        raise _UndecidedError
    rows = list(map(astuple, data))
    for at in row_type.may_nest:
        if not _NESTED.isdisjoint(map(type, map(itemgetter(at), rows))):
            raise _UndecidedError
    return rows


def _require_same_keys(row_type: _RowType, records: Sequence[Any], keys: Sequence[_KeyText]) -> None:
    """Raise _UndecidedError where one of *records* gives its row another key than it had."""
    old_rows = list(map(_old_keys_of, records))
    if old_rows.count(None) < len(old_rows):
        at_same = [(old, key) for old, key in zip(old_rows, keys, strict=True) if old is not None]
        if row_type.old_keys([old for old, _ in at_same]) != [key for _, key in at_same]:
            raise _UndecidedError


def _fold(
    are_deletes: Sequence[bool], writes: Iterator[tuple[_KeyText, Row]], deleted: Iterator[_KeyText]
) -> _Net:
    """Fold writes and deletes, which follow each other as *are_deletes* says."""
    rows: dict[_KeyText, Row] = {}
    gone: dict[_KeyText, bool] = {}
    missing = 0
    for is_delete in are_deletes:
        if not is_delete:
            key, row = next(writes)
            rows[key] = row
            continue
        key = next(deleted)
        if rows.pop(key, None) is not None:
            # The target may hold a row at that key or not: the batch has written one there.
            gone.setdefault(key, False)
        elif key in gone:
            missing += 1
        else:
            gone[key] = True
    as_keys = {(key,) if isinstance(key, str) else key: expected for key, expected in gone.items()}
    return _Net(rows=list(rows.values()), gone=as_keys, missing=missing)


def may_hold_negative_zero(text: bytes) -> bool:
    """Tell whether -0 may be a value in *text*: as an integer it would lose its sign."""
    return _find_negative_zero(text) is not None


@lru_cache(maxsize=1024)
def _row_type(columns: tuple[Column, ...], key: tuple[str, ...], is_plain: bool) -> _RowType | None:
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
    try:
        data = msgspec.defstruct(
            "Row",
            list(zip(fields, types, strict=True)),
            rename=dict(zip(fields, names, strict=True)),
            forbid_unknown_fields=True,
            frozen=True,
            gc=False,
        )
        old = msgspec.defstruct(
            "OldKeys",
            [
                (field, type_) if name in key else (field, Any, msgspec.UNSET)
                for field, name, type_ in zip(fields, names, types, strict=True)
            ],
            rename=dict(zip(fields, names, strict=True)),
            forbid_unknown_fields=True,
            frozen=True,
            kw_only=True,
            gc=False,
        )
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
    )


def _type_of(column: Column, *, is_plain: bool) -> Any:
    """Return the type of the values of *column* that a plan takes as they stand."""
    if not is_plain or column.type.kind != "plain":
        return str | None
    # The decoder knows no number with a fraction that is not a float, but for Any, where it is a text.
    return Any if _is_fractional(column.sql_type) else str | int | bool | None
