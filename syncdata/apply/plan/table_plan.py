"""The values on both sides of the fold: one table's records, and the plan that they become. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from syncdata.apply.counts import Counts
from syncdata.apply.plan.batches import BatchFile
from syncdata.apply.plan.columns import Key
from syncdata.apply.plan.schema import ColumnType, TableSchema
from syncdata.apply.plan.values import to_text
from syncdata.changes.reader import LocatedRecord

Mode = Literal["upsert", "update", "move"]

# Where a column's share of the lines is less than this on an average, long values are few, or none.
_MEAN_BYTES = 100

# Through COPY and a staging table, the server looks at each character some times, compresses long values, and
# stores them twice: 12 ns a byte, measured, where a parameter costs it 1. A statement of a row's own costs
# some 35 us.
LONG_VALUE = 8_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TableBatch:
    """Records of one table, in their order, with its schema. ``file``: one of their files, which are all of
    one kind; which one a record stands in, it says itself."""

    schema: TableSchema
    records: Sequence[LocatedRecord]
    file: BatchFile

    def halves(self) -> tuple[TableBatch, TableBatch]:
        middle = len(self.records) // 2
        return replace(self, records=self.records[:middle]), replace(self, records=self.records[middle:])


@dataclass(frozen=True, slots=True)
class Shape:
    """The key of rows that go to the server together: how they are written, and the columns they carry."""

    mode: Mode
    columns: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class TablePlan:
    """The net change of one table; net_change.py has the theory and an example.

    ``gone``: key -> whether its row is expected to be there. ``writes``: rows of values in the order of
    the shape's columns; those of a move begin with the key they leave. ``rekeyed``: a key in ``gone`` -> the
    key that is upserted, where both are one row, so that a target whose deletes cascade can change the key
    in place. A table without a key has no ``gone``: ``removals`` maps (columns, values) to how many such
    rows to remove. ``replay_if_missing``: when an update or delete of this plan finds no row, the outcome is
    not known, and the records must be replayed. ``is_order_sensitive``: they must be, in any case.
    ``only_inserts``: the plan is one shape of new rows, which may be copied straight into the table.
    ``hides_missing``: whether a row that a record looked for was there does not show, for a later record has
    written it anew. ``may_hold_long_values``: it is worth while to look for some.
    """

    schema: TableSchema
    counts: Counts = field(default_factory=Counts)
    truncate: bool = False
    gone: dict[Key, bool] = field(default_factory=dict)
    rekeyed: dict[Key, Key] = field(default_factory=dict)
    removals: dict[tuple[tuple[str, ...], tuple[Any, ...]], int] = field(default_factory=dict)
    writes: dict[Shape, list[tuple[Any, ...]]] = field(default_factory=dict)
    is_order_sensitive: bool = False
    only_inserts: bool = False
    replay_if_missing: bool = False
    hides_missing: bool = False
    may_hold_long_values: bool = False
    last_ts: str | None = None

    @property
    def removes_rows(self) -> bool:
        return self.truncate or bool(self.gone) or bool(self.removals)


def as_replacement(plan: TablePlan) -> TablePlan | None:
    """Return *plan* with every written row removed before any is written; None where values would be lost.

    Customers 1 and 2 swap their unique e-mail addresses: written one after the other, the first meets the
    address that the second still holds; with both removed first, the two values never meet.
    """
    # Such a plan may turn out to need a replay of the records, which a replacement does not have.
    # Test: test_a_moved_row_that_is_touched_again_must_be_there_or_the_records_are_replayed.
    if plan.replay_if_missing:
        return None
    width = len(plan.schema.writable)
    gone = dict(plan.gone)
    writes: dict[Shape, list[tuple[Any, ...]]] = {}
    for shape, rows in plan.writes.items():
        if shape.mode == "move":
            writes.setdefault(shape, []).extend(rows)
            continue
        key_of = key_getter(shape.columns, plan.schema.key)
        if shape.mode == "update":
            # A move from a key to itself: it completes the row with the columns it lacks, then removes it.
            writes.setdefault(Shape("move", shape.columns), []).extend((*key_of(row), *row) for row in rows)
        elif len(shape.columns) == width:
            for row in rows:
                gone.setdefault(key_of(row), False)
            writes[shape] = rows
        else:
            # The target may hold the row with values in the columns that this INSERT lacks: only an upsert
            # keeps them. Test: test_an_insert_that_lacks_columns_is_not_replaced.
            return None
    return replace(plan, gone=gone, writes=writes)


def removals_apart(plan: TablePlan) -> tuple[TablePlan, TablePlan] | None:
    """Return *plan* as two: one that writes all its rows, and one that removes those that are to go.

    None where they must be removed first: a row is written with the key of one that goes, or the table is
    emptied. Test: test_rows_may_be_written_before_others_are_removed.
    """
    gone = {key: is_expected for key, is_expected in plan.gone.items() if key not in plan.rekeyed}
    if plan.truncate or plan.removals or plan.is_order_sensitive:
        return None
    width = len(plan.schema.key)
    for shape, rows in plan.writes.items():
        key_of = key_getter(shape.columns, plan.schema.key)
        start = width if shape.mode == "move" else 0
        if any(key_of(row[start:]) in gone for row in rows):
            return None
    writes = replace(plan, gone={key: plan.gone[key] for key in plan.rekeyed})
    removals = TablePlan(
        schema=plan.schema, gone=gone, replay_if_missing=plan.replay_if_missing, last_ts=plan.last_ts
    )
    return writes, removals


def note_size(plan: TablePlan, text_bytes: int) -> None:
    """Note in *plan* whether it may hold long values. Its records' lines have *text_bytes*."""
    values = plan.counts.records * max(len(plan.schema.columns), 1)
    plan.may_hold_long_values = text_bytes > values * _MEAN_BYTES


def long_rows_apart(plan: TablePlan) -> tuple[TablePlan, TablePlan] | None:
    """Return *plan* as two, to be written in this order: the second has the rows that it writes with a long
    value, the first has all else, perhaps nothing. None where there are no such rows."""
    if not plan.may_hold_long_values:
        return None
    short: dict[Shape, list[tuple[Any, ...]]] = {}
    long: dict[Shape, list[tuple[Any, ...]]] = {}
    for shape, rows in plan.writes.items():
        # A row that is its key alone may stay as it is: its statement may well do nothing.
        may_be_long = len(shape.columns) > len(plan.schema.key)
        for row in rows:
            (long if may_be_long and _has_long_value(row) else short).setdefault(shape, []).append(row)
    if not long:
        return None
    return replace(plan, writes=short), replace(plan, writes=long, gone={}, rekeyed={}, only_inserts=False)


def _has_long_value(row: tuple[Any, ...]) -> bool:
    return any(type(value) is str and len(value) > LONG_VALUE for value in row)


def key_getter(columns: tuple[str, ...], key: tuple[str, ...]) -> Callable[[tuple[Any, ...]], Key]:
    """Return a function that reads the key, as text, out of a row of *columns*."""
    positions = [columns.index(name) for name in key]
    return lambda row: tuple([to_text(row[position], ColumnType()) or "" for position in positions])
