"""From a batch of records to the net change of one table. Pure.

Invariants that the plan keeps, and that the target relies on:

1. Applying it equals replaying the table's records one by one, in their order (a Hypothesis test
   holds it to that). Where that cannot be promised, ``is_order_sensitive`` says so, and the target
   replays the records instead.
2. Its steps run in this order: empty the table (``truncate``), complete the moved rows that lack
   columns from the rows they were, remove the keys in ``gone``, update, upsert.
3. A key appears at most once in ``gone`` and at most once among the rows. No key in ``gone`` is one that
   a move leaves, so a target that moves rows in place may, and must, remove ``gone`` first.
4. Counts are of records, by operation: they are facts of the file, not of the fold.

The fold walks the records once. ``rows`` holds, by current key, each row that the batch leaves behind
with the columns it is known by; ``origin`` is the key of the target's row it began as, or None when
the batch made it. Updates that lack columns (unchanged TOAST values are absent from them) can only
update a row, however many of them come together; an INSERT may always be inserted, for the columns it
lacks have defaults, and so may an UPDATE with every column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from syncdata.apply.plan.columns import Key, RecordReader, Values, located_by
from syncdata.apply.plan.schema import ColumnType, TableSchema
from syncdata.apply.plan.values import to_text
from syncdata.changes.reader import LocatedRecord
from syncdata.changes.record import ChangeRecord
from syncdata.errors import ApplyError, SchemaError, SyncError

Mode = Literal["upsert", "update", "move"]


@dataclass(slots=True)
class Counts:
    """Records by operation; ``missing``: rows that updates and deletes looked for and did not find, each
    once a batch."""

    added: int = 0
    updated: int = 0
    deleted: int = 0
    truncated: int = 0
    missing: int = 0

    @property
    def records(self) -> int:
        return self.added + self.updated + self.deleted + self.truncated

    def add(self, other: Counts) -> None:
        self.added += other.added
        self.updated += other.updated
        self.deleted += other.deleted
        self.truncated += other.truncated
        self.missing += other.missing


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows that go to the server together: what is done with them, and the columns they carry."""

    mode: Mode
    columns: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class TablePlan:
    """The net change of one table.

    ``gone``: key -> whether its row is expected to be there. ``writes``: rows of values in the order of
    the shape's columns; those of a move begin with the key they leave. ``rekeyed``: the key that is in
    ``gone`` -> the key that is upserted, where they are one row, so that a target whose deletes cascade can
    update its key in place. ``removals`` and ``writes`` serve
    tables without a key, too: there ``removals`` maps (columns, values) to how many such rows to remove.
    ``replay_if_missing`` says that a record that finds no row may have meant one that the fold does not know.
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
    last_ts: str | None = None

    @property
    def removes_rows(self) -> bool:
        return self.truncate or bool(self.gone) or bool(self.removals)


def make_plan(
    records: Iterable[LocatedRecord], schema: TableSchema, *, file: str, is_plain_file: bool
) -> TablePlan:
    """Fold *records*, all of one table, to its net change.

    Raises SchemaError, with file and line, when the table lacks a column that a record carries or a
    row cannot be located by its key.
    """
    reader = RecordReader(schema, is_plain_file=is_plain_file)
    fold = _KeyedFold(reader) if schema.key else _KeylessFold(reader)
    plan = fold.plan
    records_by_op = {"INSERT": 0, "UPDATE": 0, "DELETE": 0, "TRUNCATE": 0}
    record = None
    for located in records:
        record = located.record
        try:
            fold.add(record)
        except SyncError as error:
            raise type(error)(
                error.message, hint=error.hint, table=str(schema.name), file=file, line=located.line
            ) from None
        except RecursionError:
            raise ApplyError(
                "a value is nested too deeply",
                hint="compare the record with the column's type",
                table=str(schema.name),
                file=file,
                line=located.line,
            ) from None
        records_by_op[record.op] += 1
    counts = plan.counts
    counts.added, counts.updated, counts.deleted, counts.truncated = records_by_op.values()
    if record is not None:
        plan.last_ts = record.ts
    fold.finish()
    return plan


def as_replacement(plan: TablePlan) -> TablePlan | None:
    """Return *plan* with every written row removed before any is written, or None where rows would lose.

    Values that rows exchange (two customers swap their unique e-mail addresses) then never meet.
    Rows that lack columns become moves from their own key, which completes them first. An INSERT that
    lacks columns may meet a row that has them, and only an upsert keeps those. What may have to be
    replayed is not worth replacing.
    """
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
            writes.setdefault(Shape("move", shape.columns), []).extend((*key_of(row), *row) for row in rows)
        elif len(shape.columns) == width:
            for row in rows:
                gone.setdefault(key_of(row), False)
            writes[shape] = rows
        else:
            return None
    return replace(plan, gone=gone, writes=writes)


def key_getter(columns: tuple[str, ...], key: tuple[str, ...]) -> Callable[[tuple[Any, ...]], Key]:
    positions = [columns.index(name) for name in key]
    return lambda row: tuple([to_text(row[position], ColumnType()) or "" for position in positions])


class _Row:
    """A row that the batch leaves behind. ``values`` may be a record's own and are never changed."""

    __slots__ = ("is_insertable", "origin", "values")

    def __init__(self, values: Values, *, origin: Key | None, is_insertable: bool) -> None:
        self.values = values
        self.origin = origin
        self.is_insertable = is_insertable

    def merge(self, values: Values, *, is_insertable: bool) -> None:
        self.values = {**self.values, **values}
        self.is_insertable = self.is_insertable or is_insertable


class _KeyedFold:
    """The fold of a table with a key."""

    def __init__(self, reader: RecordReader) -> None:
        self.plan = TablePlan(schema=reader.schema)
        self._reader = reader
        self._rows: dict[Key, _Row] = {}
        self._vacated: set[Key] = set()
        self._width = len(reader.writable)
        self._key_names = frozenset(reader.schema.key)
        self._saw_only_inserts = True

    def add(self, record: ChangeRecord) -> None:
        if record.op == "INSERT":
            self._insert(record.data or {})
            return
        self._saw_only_inserts = False
        match record.op:
            case "UPDATE":
                self._update(record)
            case "DELETE":
                self._delete(self._reader.key(record.old_keys, record.data))
            case "TRUNCATE":
                self._truncate()

    def _insert(self, data: Values) -> None:
        key = self._reader.key(data)
        values = self._reader.read(data)
        row = self._rows.get(key)
        if row is None:
            self._rows[key] = _Row(values, origin=None, is_insertable=True)
        else:
            self._saw_only_inserts = False
            row.merge(values, is_insertable=True)

    def _update(self, record: ChangeRecord) -> None:
        reader, data, old_keys = self._reader, record.data or {}, record.old_keys
        if not old_keys:
            self._update_in_place(reader.key(data), reader.read(data))
            return
        old_key = reader.key(old_keys, data)
        if len(old_keys) > len(self._key_names) or not self._key_names <= data.keys():
            # What the new row leaves out is unchanged, so it is what the old one says.
            data = {**old_keys, **data}
        new_key = reader.key(data)
        if old_key == new_key:
            self._update_in_place(old_key, reader.read(data))
        else:
            self._move(old_key, new_key, reader.read(data))

    def _update_in_place(self, key: Key, values: Values) -> None:
        row = self._rows.get(key)
        is_whole = len(values) == self._width
        if row is not None:
            self._note_second_touch(row, key)
            row.merge(values, is_insertable=is_whole)
        elif not self._is_absent(key):
            self._rows[key] = _Row(values, origin=key, is_insertable=is_whole)
        elif is_whole:
            self._rows[key] = _Row(values, origin=None, is_insertable=True)
        else:
            self.plan.counts.missing += 1

    def _move(self, old_key: Key, new_key: Key, values: Values) -> None:
        if new_key in self._rows:
            # Only a deferrable key lets two rows share a key for a moment; whose is whose is lost here.
            self.plan.is_order_sensitive = True
            return
        gone = self.plan.gone
        is_whole = len(values) == self._width
        row = self._rows.pop(old_key, None)
        if row is not None:
            self._note_second_touch(row, old_key)
            row.merge(values, is_insertable=is_whole)
            if row.origin != old_key:
                gone.setdefault(old_key, False)
        elif not self._is_absent(old_key):
            row = _Row(values, origin=old_key, is_insertable=is_whole)
        elif is_whole:
            row = _Row(values, origin=None, is_insertable=True)
        else:
            self.plan.counts.missing += 1
            return
        self._rows[new_key] = row
        if new_key == row.origin:
            self._vacated.discard(new_key)
            gone.pop(new_key, None)  # of a row that stood here meanwhile
        elif row.origin is not None:
            self._vacated.add(row.origin)

    def _note_second_touch(self, row: _Row, key: Key) -> None:
        """Were a row not there to be moved, what follows would mean the one that it did not replace."""
        if row.origin is not None and row.origin != key and not row.is_insertable:
            self.plan.replay_if_missing = True

    def _delete(self, key: Key) -> None:
        row = self._rows.pop(key, None)
        gone = self.plan.gone
        if row is None:
            if self._is_absent(key):
                self.plan.counts.missing += 1
            else:
                gone[key] = True
            return
        if row.origin is not None:
            gone[row.origin] = not row.is_insertable
        if row.origin != key:
            gone.setdefault(key, False)

    def _truncate(self) -> None:
        self.plan.truncate = True
        self.plan.gone.clear()
        self._rows.clear()
        self._vacated.clear()

    def _is_absent(self, key: Key) -> bool:
        """Whether the batch itself has removed the row of *key*, or all rows."""
        return self.plan.truncate or key in self.plan.gone or key in self._vacated

    def finish(self) -> None:
        plan, reader = self.plan, self._reader
        shapes: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for key, row in self._rows.items():
            columns, values = reader.row(row.values)
            is_moved = row.origin is not None and row.origin != key
            if row.is_insertable:
                if is_moved:
                    plan.gone[row.origin] = False  # type: ignore[index]
                    plan.rekeyed[row.origin] = key  # type: ignore[index]
                shapes.setdefault(columns, []).append(values)
            elif is_moved:
                plan.gone.pop(row.origin, None)  # type: ignore[arg-type]  # it leaves by itself
                plan.writes.setdefault(Shape("move", columns), []).append((*row.origin, *values))  # type: ignore[misc]
            else:
                plan.writes.setdefault(Shape("update", columns), []).append(values)
        for columns, rows in shapes.items():
            plan.writes[Shape("upsert", columns)] = rows
        plan.only_inserts = self._saw_only_inserts and len(plan.writes) == 1


class _KeylessFold:
    """The fold of a table without a key: a bag of rows, each located by all its old values."""

    def __init__(self, reader: RecordReader) -> None:
        self.plan = TablePlan(schema=reader.schema)
        self._reader = reader
        self._inserts: dict[tuple[tuple[str, ...], tuple[Any, ...]], int] = {}

    def add(self, record: ChangeRecord) -> None:
        reader = self._reader
        match record.op:
            case "INSERT":
                self._insert(reader.read(record.data or {}))
            case "UPDATE":
                old = reader.read(located_by(record))
                new = {**old, **reader.read(record.data or {})}
                if len(new) < len(reader.writable):
                    raise SchemaError(
                        "an UPDATE leaves out columns and the table has no key to find the old row by",
                        hint="give the table a primary key, or REPLICA IDENTITY FULL in production",
                    )
                self._remove(old)
                # Where no row is removed, an UPDATE still inserts: only a replay can count that.
                self.plan.replay_if_missing = True
                self._insert(new)
            case "DELETE":
                self._remove(reader.read(record.old_keys or record.data or {}))
            case "TRUNCATE":
                self.plan.truncate = True
                self.plan.removals.clear()
                self._inserts.clear()

    def _insert(self, values: Values) -> None:
        row = self._reader.row(values)
        self._inserts[row] = self._inserts.get(row, 0) + 1

    def _remove(self, values: Values) -> None:
        row = self._reader.row(values)
        inserted = self._inserts.get(row, 0)
        if inserted > 1:
            self._inserts[row] = inserted - 1
        elif inserted == 1:
            del self._inserts[row]
        else:
            self.plan.removals[row] = self.plan.removals.get(row, 0) + 1
            if self._inserts:
                self.plan.replay_if_missing = True

    def finish(self) -> None:
        writes = self.plan.writes
        for (columns, values), count in self._inserts.items():
            writes.setdefault(Shape("upsert", columns), []).extend([values] * count)
        self.plan.only_inserts = not self.plan.removals and not self.plan.truncate and len(writes) == 1
