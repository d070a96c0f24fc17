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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, count, islice
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
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
    net = _Net()
    try:
        for run in runs:
            net.add(row_type, run)
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
    if net.rows:
        plan.writes[Shape("upsert", row_type.columns)] = list(net.rows.values())
    # A key that is inserted twice is no new row.
    plan.only_inserts = counts.added == len(net.rows) == len(batch.records)
    return plan


class _UndecidedError(Exception):
    """The general way must decide."""


class _Net:
    """The rows that the last record of each key leaves; ``gone`` and ``missing`` as in a plan."""

    def __init__(self) -> None:
        self.rows: dict[_KeyText, Row] = {}
        self.gone: dict[_KeyText, bool] = {}
        self.missing = 0

    def add(self, row_type: _RowType, run: Run) -> None:
        """Fold the records of *run*. Raises _UndecidedError where the last one of a key does not say all."""
        records = row_type.decode_lines(run.text)
        if "DELETE" not in run.ops:
            rows = _rows(row_type, records)
            self.rows.update(zip(_keys(row_type, records, rows), rows, strict=True))
            return
        are_deletes = [op == "DELETE" for op in run.ops]
        writes = list(compress(records, map(operator.not_, are_deletes)))
        old_rows = list(map(_old_keys_of, compress(records, are_deletes)))
        if None in old_rows:
            raise _UndecidedError
        rows = _rows(row_type, writes)
        written = zip(_keys(row_type, writes, rows), rows, strict=True)
        done = 0
        for at, key in zip(compress(count(), are_deletes), row_type.old_keys(old_rows), strict=True):
            self.rows.update(islice(written, at - done))
            self._delete(key)
            done = at + 1
        self.rows.update(written)

    def _delete(self, key: _KeyText) -> None:
        if self.rows.pop(key, None) is not None:
            # The batch has written a row there; whether the target holds one is not known.
            self.gone.setdefault(key, False)
        elif key in self.gone:
            self.missing += 1
        else:
            self.gone[key] = True


def _rows(row_type: _RowType, records: Sequence[Any]) -> list[Row]:
    data = list(map(_data_of, records))
    if data.count(None):
        raise _UndecidedError
    rows = list(map(astuple, data))
    for at in row_type.may_nest:
        if not _NESTED.isdisjoint(map(type, map(itemgetter(at), rows))):
            raise _UndecidedError
    return rows


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
