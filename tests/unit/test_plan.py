from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import count, groupby
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from syncdata.apply.counts import Counts
from syncdata.apply.plan.batches import BatchFile
from syncdata.apply.plan.net_change import make_plan
from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.apply.plan.table_plan import (
    LONG_VALUE,
    Shape,
    TableBatch,
    TablePlan,
    as_replacement,
    long_rows_apart,
    note_size,
    removals_apart,
)
from syncdata.changes.names import TableName
from syncdata.changes.reader import LocatedRecord
from syncdata.changes.record import ChangeRecord, Json, parse_record
from syncdata.changes.run import Piece, Records, try_run
from syncdata.errors import SchemaError

DEFAULT = "default"


def schema_of(
    *columns: str,
    key: tuple[str, ...] = ("id",),
    generated: tuple[str, ...] = (),
    bytea: tuple[str, ...] = (),
) -> TableSchema:
    return TableSchema(
        name=TableName("public", "t"),
        oid=1,
        key=key,
        columns=tuple(
            Column(
                name=name,
                sql_type="bytea" if name in bytea else "text",
                type=ColumnType(kind="bytea" if name in bytea else "plain"),
                is_generated=name in generated,
            )
            for name in columns
        ),
    )


def insert(**data: Any) -> dict[str, Any]:
    return {"op": "INSERT", "data": data}


def update(old: dict[str, Any] | None = None, /, **data: Any) -> dict[str, Any]:
    return {"op": "UPDATE", "data": data, "old_keys": old}


def delete(**old: Any) -> dict[str, Any]:
    return {"op": "DELETE", "old_keys": old}


TRUNCATE: dict[str, Any] = {"op": "TRUNCATE"}


def located(records: Iterable[dict[str, Any]]) -> list[LocatedRecord]:
    lines = [json.dumps({"table": "t", **record}).encode() for record in records]
    return [
        LocatedRecord(parse_record(line), n, len(line), file="f.json")
        for n, line in enumerate(lines, start=1)
    ]


def plan_of(schema: TableSchema, *records: dict[str, Any]) -> TablePlan:
    return planned(schema, located(records))


# The model: a table is a dict of rows by key, and every value is its text.

Row = dict[str, str | None]
Table = dict[tuple[str, ...], Row]


def texts(values: dict[str, Any] | None) -> Row:
    return {name: None if value is None else str(value) for name, value in (values or {}).items()}


def key_of(row: Row, schema: TableSchema) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in schema.key)


def write(table: Table, schema: TableSchema, values: Row) -> None:
    """INSERT of an existing key is an upsert; columns that are left out have their defaults."""
    key = key_of(values, schema)
    table[key] = {**table.get(key, {column.name: DEFAULT for column in schema.columns}), **values}


def replay(table: Table, schema: TableSchema, records: Iterable[ChangeRecord]) -> int:
    """Apply the records one by one as DESIGN's rule 5 says; return how many found no row."""
    missing = 0
    for record in records:
        data, old_keys = texts(record.data), texts(record.old_keys)
        match record.op:
            case "INSERT":
                write(table, schema, data)
            case "UPDATE":
                new = {**old_keys, **data}
                row = table.pop(key_of({**data, **old_keys}, schema), None)
                if row is not None:
                    table[key_of(new, schema)] = {**row, **new}
                elif len(new) == len(schema.columns):
                    write(table, schema, new)
                else:
                    missing += 1
            case "DELETE":
                missing += table.pop(key_of({**data, **old_keys}, schema), None) is None
            case "TRUNCATE":
                table.clear()
    return missing


def apply(table: Table, plan: TablePlan) -> int:
    """Do what the plan's docstring says, in its order; return how many rows were not there."""
    schema, missing = plan.schema, plan.counts.missing
    if plan.truncate:
        table.clear()
    rows: dict[str, list[Row]] = {"upsert": [], "update": [], "move": []}
    leaving: list[tuple[str, ...]] = []
    for shape, written in plan.writes.items():
        for values in written:
            if shape.mode == "move":
                leaving.append(values[: len(schema.key)])
                values = values[len(schema.key) :]
            rows[shape.mode].append(texts(dict(zip(shape.columns, values, strict=True))))
    moved = [{**table[key], **row} for key, row in zip(leaving, rows["move"], strict=True) if key in table]
    missing += len(leaving) - len(moved)
    for key in leaving:
        table.pop(key, None)
    for key, is_expected in plan.gone.items():
        was_there = table.pop(key, None) is not None
        missing += is_expected and not was_there
    for row in rows["update"]:
        if key_of(row, schema) in table:
            write(table, schema, row)
        else:
            missing += 1
    upserts = rows["upsert"]
    keys = [key_of(row, schema) for row in (*upserts, *moved)]
    assert len(keys) == len(set(keys))
    for row in (*upserts, *moved):
        write(table, schema, row)
    return missing


def would_be_replayed(plan: TablePlan, missing: int) -> bool:
    return plan.is_order_sensitive or bool(missing and plan.replay_if_missing)


def apply_in_place(table: Table, plan: TablePlan) -> None:
    """Do it as a target must that cannot take a row away to move it: remove what is gone, then move."""
    assert not plan.truncate
    rest = TablePlan(schema=plan.schema)
    for key in plan.gone:
        table.pop(key, None)
    for shape, rows in plan.writes.items():
        if shape.mode == "move":
            apply(table, TablePlan(schema=plan.schema, writes={shape: rows}))
        else:
            rest.writes[shape] = rows
    apply(table, rest)


# Streams that a source with a unique immediate key can produce.

SCHEMAS = {
    "as at the source": schema_of("id", "a", "big"),
    "with a local column": schema_of("id", "a", "big", "local"),
    "with a key of two columns": schema_of("a", "big", "area", "id", key=("area", "id")),
}
IDENTITIES = ("key when it changes", "key", "key, and not again in data", "full")

steps = st.lists(
    st.tuples(
        st.sampled_from(["insert", "insert", "update", "update", "move", "move", "delete", "truncate"]),
        st.integers(0, 3),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=14,
)


class Source:
    """The source's table, which turns steps into the records of what it did."""

    def __init__(self, schema: TableSchema, identity: str, rows: Table) -> None:
        self.schema = schema
        self.identity = identity
        self.rows = rows
        self.records: list[dict[str, Any]] = []
        self._fresh = (f"v{number}" for number in count())

    def key(self, number: int) -> tuple[str, ...]:
        return ("7", str(number)) if len(self.schema.key) == 2 else (str(number),)

    def do(self, kind: str, which: int, other: int, keeps_big: bool) -> None:
        old_key, new_key = self.key(which), self.key(other)
        fresh = next(self._fresh)
        match kind:
            case "truncate":
                # Rarely, for it makes everything before it moot.
                if which == other:
                    self.rows.clear()
                    self.records.append(TRUNCATE)
            case "insert" if old_key not in self.rows:
                row: Row = {**dict(zip(self.schema.key, old_key, strict=True)), "a": fresh, "big": fresh}
                self.rows[old_key] = row
                self.records.append(insert(**row))
            case "delete" if old_key in self.rows:
                old = self.rows.pop(old_key)
                self.records.append(delete(**(old if self.identity == "full" else self._key_part(old))))
            case "update" if old_key in self.rows:
                self._update(old_key, old_key, fresh, keeps_big)
            case "move" if old_key in self.rows and new_key not in self.rows:
                self._update(old_key, new_key, fresh, keeps_big)

    def _key_part(self, row: Row) -> Row:
        return {name: row[name] for name in self.schema.key}

    def _update(
        self, old_key: tuple[str, ...], new_key: tuple[str, ...], fresh: str, keeps_big: bool
    ) -> None:
        old = self.rows.pop(old_key)
        new = {**old, **dict(zip(self.schema.key, new_key, strict=True)), "a": fresh}
        if not keeps_big:
            new["big"] = fresh
        self.rows[new_key] = new
        data = {name: value for name, value in new.items() if not (name == "big" and keeps_big)}
        old_keys: Row | None = self._key_part(old)
        if self.identity == "full":
            old_keys = old
        elif self.identity == "key when it changes" and old_key == new_key:
            old_keys = None
        elif self.identity == "key, and not again in data":
            data = {name: value for name, value in data.items() if new[name] != old.get(name)}
        self.records.append(update(old_keys, **data))


@st.composite
def streams(draw: st.DrawFn) -> tuple[TableSchema, Table, list[LocatedRecord]]:
    """A schema, the source's rows, and the records of what then happened to them."""
    schema = draw(st.sampled_from(list(SCHEMAS.values())))
    source = Source(schema, draw(st.sampled_from(IDENTITIES)), {})
    for number in draw(st.sets(st.integers(0, 3))):
        source.do("insert", number, 0, False)
    before = copy.deepcopy(source.rows)
    source.records.clear()
    for step in draw(steps):
        source.do(*step)
    return schema, before, located(source.records)


def locally(rows: Table, schema: TableSchema) -> Table:
    """The source's rows as the target has them, where a local column has local values."""
    return {
        key: {"local": f"of {key}", **row} if "local" in names(schema) else row for key, row in rows.items()
    }


def names(schema: TableSchema) -> list[str]:
    return [column.name for column in schema.columns]


def stale_tables(schema: TableSchema) -> st.SearchStrategy[Table]:
    source = Source(schema, "key", {})
    # An INSERT over a stale row keeps its local columns, but not where it then moves in the same batch.
    local = {"local": DEFAULT} if "local" in names(schema) else {}
    row = st.sampled_from("pqr").map(lambda value: {name: f"stale {value}" for name in names(schema)})
    tables = st.dictionaries(st.integers(0, 3).map(source.key), row)
    return tables.map(
        lambda table: {
            key: {**row, **dict(zip(schema.key, key, strict=True)), **local} for key, row in table.items()
        }
    )


def planned(schema: TableSchema, records: list[LocatedRecord]) -> TablePlan:
    """Return the plan of *records*, which is the same whether they come one by one or as runs of lines."""
    file = BatchFile(name="f.json", is_plain=True)
    plan = make_plan(TableBatch(schema=schema, records=records, file=file))
    assert make_plan(TableBatch(schema=schema, records=in_runs(records), file=file)) == plan
    return plan


def in_runs(records: list[LocatedRecord]) -> Records:
    """Return *records* as a file has them: lines of INSERTs, UPDATEs and DELETEs, and TRUNCATEs between."""
    pieces: list[Piece] = []
    for is_truncate, group in groupby(records, key=lambda located: located.record.op == "TRUNCATE"):
        neighbours = list(group)
        text = b"".join(line_of(located.record) for located in neighbours)
        run = None if is_truncate else try_run(text, neighbours[0].line, neighbours[0].file)
        pieces.extend([run] if run else neighbours)
    return Records(pieces)


def line_of(record: ChangeRecord) -> bytes:
    fields = {
        name: {c: msgspec.Raw(v.encode()) if type(v) is Json else v for c, v in values.items()}
        for name in ("data", "old_keys")
        if (values := getattr(record, name)) is not None
    }
    return msgspec.json.encode({"table": record.table, "op": record.op, "ts": record.ts, **fields}) + b"\n"


def replayed(schema: TableSchema, table: Table, records: list[LocatedRecord]) -> tuple[Table, int]:
    table = copy.deepcopy(table)
    missing = replay(table, schema, [item.record for item in records])
    return table, missing


@settings(max_examples=400, deadline=None)
@given(stream=streams())
def test_applying_a_plan_equals_replaying_its_records(
    stream: tuple[TableSchema, Table, list[LocatedRecord]],
) -> None:
    schema, before, records = stream
    table = locally(before, schema)
    expected, expected_missing = replayed(schema, table, records)
    plan = planned(schema, records)
    assert not plan.is_order_sensitive
    assert apply(table, plan) == expected_missing == 0
    assert table == expected


@settings(max_examples=600, deadline=None)
@given(stream=streams(), data=st.data())
def test_applying_a_plan_equals_replaying_its_records_whatever_the_target_holds(
    stream: tuple[TableSchema, Table, list[LocatedRecord]], data: st.DataObject
) -> None:
    schema, _, records = stream
    table = data.draw(stale_tables(schema))
    expected, expected_missing = replayed(schema, table, records)
    plan = planned(schema, records)
    missing = apply(table, plan)
    assume(not would_be_replayed(plan, missing))
    assert table == expected
    assert missing <= expected_missing


@settings(max_examples=400, deadline=None)
@given(stream=streams())
def test_a_replacement_equals_its_plan_and_writes_only_where_nothing_is_left(
    stream: tuple[TableSchema, Table, list[LocatedRecord]],
) -> None:
    schema, before, records = stream
    table = locally(before, schema)
    expected, _ = replayed(schema, table, records)
    replacement = as_replacement(planned(schema, records))
    assume(replacement is not None)
    assert replacement is not None
    assert all(shape.mode != "update" for shape in replacement.writes)
    emptied = copy.deepcopy(table)
    apply(emptied, TablePlan(schema=schema, truncate=replacement.truncate, gone=replacement.gone))
    for shape, rows in replacement.writes.items():
        for row in rows:
            if shape.mode == "upsert":
                assert key_of(texts(dict(zip(shape.columns, row, strict=True))), schema) not in emptied
    apply(table, replacement)
    assert table == expected


@settings(max_examples=250, deadline=None)
@given(stream=streams())
def test_rows_may_be_moved_in_place_when_what_is_gone_is_removed_first(
    stream: tuple[TableSchema, Table, list[LocatedRecord]],
) -> None:
    schema, before, records = stream
    table = locally(before, schema)
    expected, _ = replayed(schema, table, records)
    plan = planned(schema, records)
    assume(not plan.truncate)
    apply_in_place(table, plan)
    assert table == expected


@settings(max_examples=400, deadline=None)
@given(stream=streams(), data=st.data())
def test_rows_may_be_written_before_others_are_removed(
    stream: tuple[TableSchema, Table, list[LocatedRecord]], data: st.DataObject
) -> None:
    schema, before, records = stream
    table = data.draw(st.one_of(st.just(locally(before, schema)), stale_tables(schema)))
    plan = planned(schema, records)
    apart = removals_apart(plan)
    assume(apart is not None)
    assert apart is not None
    writes, removals = apart
    expected = copy.deepcopy(table)
    missing = apply(expected, plan)
    found = apply(table, writes) + apply(table, removals)
    assert (table, found) == (expected, missing)


@settings(max_examples=250, deadline=None)
@given(stream=streams(), data=st.data())
def test_cutting_a_stream_into_batches_changes_nothing(
    stream: tuple[TableSchema, Table, list[LocatedRecord]], data: st.DataObject
) -> None:
    schema, before, records = stream
    table = locally(before, schema)
    expected, _ = replayed(schema, table, records)
    cut = data.draw(st.integers(0, len(records)))
    for part in (records[:cut], records[cut:]):
        assert apply(table, planned(schema, part)) == 0
    assert table == expected


# Tables without a key are bags of rows.

KEYLESS = schema_of("a", "b", key=())
Bag = Counter[tuple[str | None, ...]]
pairs = st.tuples(st.sampled_from(["x", "y", None, True]), st.sampled_from([1, 2.5]))
bag_steps = st.lists(
    st.tuples(
        st.sampled_from(["insert", "insert", "update", "delete", "truncate"]), pairs, pairs, st.booleans()
    ),
    max_size=10,
)


def bag_row(values: tuple[Any, ...]) -> tuple[str | None, ...]:
    return tuple(None if v is None else "true" if v is True else str(v) for v in values)


@settings(max_examples=250, deadline=None)
@given(actions=bag_steps, held=st.lists(pairs, max_size=6))
def test_applying_a_plan_without_a_key_equals_replaying_its_records(
    actions: list[tuple[str, tuple[Any, ...], tuple[Any, ...], bool]], held: list[tuple[Any, ...]]
) -> None:
    expected: Bag = Counter(map(bag_row, held))
    table = expected.copy()
    records = []
    for kind, (a, b), (new_a, new_b), keeps_b in actions:
        old, new = bag_row((a, b)), bag_row((new_a, b if keeps_b else new_b))
        match kind:
            case "insert":
                records.append(insert(a=a, b=b))
                expected[old] += 1
            case "delete":
                records.append(delete(a=a, b=b))
                expected[old] -= expected[old] > 0
            case "update":
                data = {"a": new_a} if keeps_b else {"a": new_a, "b": new_b}
                records.append(update({"a": a, "b": b}, **data))
                expected[old] -= expected[old] > 0
                expected[new] += 1
            case "truncate":
                records.append(TRUNCATE)
                expected.clear()
    plan = plan_of(KEYLESS, *records)
    if plan.truncate:
        table.clear()
    for (columns, values), number in plan.removals.items():
        assert columns == ("a", "b")
        table[bag_row(values)] -= min(number, table[bag_row(values)])
    for shape, rows in plan.writes.items():
        assert shape == Shape("upsert", ("a", "b"))
        table.update(map(bag_row, rows))
    assert +table == +expected


def test_a_removal_that_may_mean_a_row_of_the_batch_in_another_spelling_is_replayed_if_it_finds_none() -> (
    None
):
    plan = plan_of(KEYLESS, insert(a="x", b=1), delete(a="x", b="1"))
    assert plan.replay_if_missing
    assert plan.removals == {(("a", "b"), ("x", "1")): 1}
    assert not plan_of(KEYLESS, delete(a="x", b="1"), insert(a="x", b=1)).replay_if_missing


# The example of the module's docstring.


def test_order_7_is_paid_and_becomes_17_and_another_order_takes_its_number() -> None:
    orders = schema_of("id", "status", "note")
    records = [
        update(id=7, status="paid"),
        update({"id": 7}, id=17, status="sent"),
        insert(id=7, status="new", note="none"),
    ]
    plan = plan_of(orders, *records)
    assert plan.writes == {
        Shape("move", ("id", "status")): [("7", 17, "sent")],
        Shape("upsert", ("id", "status", "note")): [(7, "new", "none")],
    }
    assert (plan.gone, plan.counts) == ({}, Counts(added=1, updated=2))
    table: Table = {("7",): {"id": "7", "status": "new", "note": "ring twice"}}
    apply(table, plan)
    assert table == {
        ("7",): {"id": "7", "status": "new", "note": "none"},
        ("17",): {"id": "17", "status": "sent", "note": "ring twice"},
    }


# Single facts.

PLAIN = schema_of("id", "a", "big")


def test_records_are_counted_by_operation_whatever_remains_of_them() -> None:
    plan = plan_of(
        PLAIN, insert(id=1, a=1, big=1), update(id=1, a=2), delete(id=1), TRUNCATE, update(id=9, a=1)
    )
    assert plan.counts == Counts(added=1, updated=2, deleted=1, truncated=1, missing=1)
    assert plan.counts.records == 5


def test_counts_add_up() -> None:
    counts = Counts(added=1, updated=2, deleted=3, truncated=4, missing=5)
    counts.add(Counts(added=10, updated=20, deleted=30, truncated=40, missing=50))
    assert counts == Counts(added=11, updated=22, deleted=33, truncated=44, missing=55)


def test_a_key_is_the_same_as_a_number_and_as_text() -> None:
    plan = plan_of(PLAIN, insert(id=1, a="x", big="x"), update(id="1", a="y"))
    assert plan.writes == {Shape("upsert", ("id", "a", "big")): [("1", "y", "x")]}


def test_a_row_made_and_removed_in_one_batch_leaves_only_a_key_to_remove() -> None:
    plan = plan_of(PLAIN, insert(id=1, a=1, big=1), delete(id=1))
    assert (plan.gone, plan.writes) == ({("1",): False}, {})


def test_rows_of_one_shape_go_together_in_the_tables_order() -> None:
    plan = plan_of(
        PLAIN, update(big=1, id=1, a=1), update(id=2, a=2), update(a=3, id=3), insert(id=4, a=4, big=4)
    )
    assert plan.writes == {
        Shape("update", ("id", "a")): [(2, 2), (3, 3)],
        Shape("upsert", ("id", "a", "big")): [(1, 1, 1), (4, 4, 4)],
    }


def test_updates_that_lack_columns_never_insert_even_when_together_they_have_all() -> None:
    plan = plan_of(PLAIN, update(id=1, a=1), update(id=1, big=2))
    assert plan.writes == {Shape("update", ("id", "a", "big")): [(1, 1, 2)]}


def test_a_key_that_only_old_keys_carry_locates_the_row() -> None:
    plan = plan_of(PLAIN, update({"id": 1}, a="x"))
    assert plan.writes == {Shape("update", ("id", "a")): [(1, "x")]}


def test_under_identity_full_the_old_row_completes_the_new_one() -> None:
    plan = plan_of(PLAIN, update({"id": 1, "a": "old", "big": "toast"}, id=1, a="new"))
    assert plan.writes == {Shape("upsert", ("id", "a", "big")): [(1, "new", "toast")]}


def test_a_changed_key_moves_the_row() -> None:
    plan = plan_of(PLAIN, update({"id": 1}, id=2, a="x"))
    assert (plan.writes, plan.gone) == ({Shape("move", ("id", "a")): [("1", 2, "x")]}, {})


def test_a_row_that_comes_back_to_its_key_survives_one_that_stood_there_meanwhile() -> None:
    plan = plan_of(
        PLAIN,
        update({"id": 1}, id=2, a="x"),
        insert(id=1, a=1, big=1),
        delete(id=1),
        update({"id": 2}, id=1, a="y"),
    )
    assert ("1",) not in plan.gone
    assert plan.writes == {Shape("update", ("id", "a")): [(1, "y")]}


def test_a_key_that_a_moving_row_leaves_is_not_removed_for_one_that_stood_there_meanwhile() -> None:
    plan = plan_of(PLAIN, update({"id": 1}, id=2, a="x"), insert(id=1, a=1, big=1), delete(id=1))
    assert plan.gone == {}
    assert plan.writes == {Shape("move", ("id", "a")): [("1", 2, "x")]}


def test_a_stale_row_on_the_way_of_a_moving_one_is_removed() -> None:
    plan = plan_of(PLAIN, update({"id": 1}, id=9, a="x"), update({"id": 9}, id=2, a="y"))
    assert plan.gone == {("9",): False}


def test_a_moved_row_that_is_touched_again_must_be_there_or_the_records_are_replayed() -> None:
    move = update({"id": 1}, id=2, a="x")
    assert not plan_of(PLAIN, move).replay_if_missing
    touched = plan_of(PLAIN, move, update(id=2, a="y"))
    assert touched.replay_if_missing
    assert as_replacement(touched) is None


def test_two_rows_at_one_key_make_the_order_matter() -> None:
    plan = plan_of(
        PLAIN, insert(id=1, a=1, big=1), insert(id=2, a=2, big=2), update({"id": 1}, id=2, a=3, big=3)
    )
    assert plan.is_order_sensitive


def test_a_truncate_empties_the_table_and_forgets_what_was_before() -> None:
    plan = plan_of(PLAIN, insert(id=1, a=1, big=1), delete(id=2), TRUNCATE, insert(id=3, a=3, big=3))
    assert (plan.truncate, plan.gone) == (True, {})
    assert plan.writes == {Shape("upsert", ("id", "a", "big")): [(3, 3, 3)]}


@pytest.mark.parametrize(
    ("records", "is_so"),
    [
        ([insert(id=1, a=1, big=1), insert(id=2, a=1, big=1)], True),
        ([insert(id=1, a=1, big=1), insert(id=1, a=2, big=1)], False),
        ([insert(id=1, a=1, big=1), insert(id=2, a=1)], False),
        ([insert(id=1, a=1, big=1), update(id=1, a=2)], False),
        ([TRUNCATE, insert(id=1, a=1, big=1)], False),
        ([], False),
    ],
)
def test_only_inserts_of_one_shape_and_no_key_twice_may_be_copied_straight(
    records: list[dict[str, Any]], is_so: bool
) -> None:
    assert plan_of(PLAIN, *records).only_inserts is is_so


def test_the_time_of_the_last_record_is_kept() -> None:
    records = [{**delete(id=1), "ts": "2026-02-05T10:30:00Z"}, {**delete(id=2), "ts": "2026-02-05T10:31:00Z"}]
    assert plan_of(PLAIN, *records).last_ts == "2026-02-05T10:31:00Z"


def test_generated_columns_are_left_out() -> None:
    schema = schema_of("id", "a", "twice", generated=("twice",))
    plan = plan_of(schema, insert(id=1, a=1, twice=2))
    assert plan.writes == {Shape("upsert", ("id", "a")): [(1, 1)]}


def test_a_key_of_bytes_is_the_same_with_and_without_its_prefix() -> None:
    schema = schema_of("id", "a", bytea=("id",))
    plan = plan_of(schema, insert(id="c0ffee", a=1), update(id="\\xc0ffee", a=2))
    assert plan.writes == {Shape("upsert", ("id", "a")): [("\\xc0ffee", 2)]}


def test_a_records_own_values_are_never_changed() -> None:
    records = located([insert(id=1, a=1, big=1), update(id=1, a=2), update({"id": 1}, id=2, a=3)])
    before = copy.deepcopy([item.record for item in records])
    planned(PLAIN, records)
    assert [item.record for item in records] == before


@pytest.mark.parametrize(
    ("schema", "records", "message"),
    [
        (PLAIN, [insert(id=1, new=1)], "column 'new' that the table lacks"),
        (PLAIN, [insert(a=1)], "lacks the key column(s) id"),
        (PLAIN, [insert()], "an INSERT without data"),
        (KEYLESS, [insert()], "an INSERT without data"),
        (PLAIN, [update({"id": 1})], "an UPDATE without data"),
        (PLAIN, [delete()], "a DELETE without old_keys"),
        (KEYLESS, [delete()], "a DELETE without old_keys"),
        (PLAIN, [delete(a=1)], "lacks the key column(s) id"),
        (PLAIN, [insert(id=None, a=1)], "key column 'id' is null"),
        (KEYLESS, [update(None, a=1, b=1)], "no old_keys"),
        (KEYLESS, [update({"a": 1}, a=2)], "leaves out columns"),
    ],
)
def test_what_cannot_be_located_or_placed_is_refused_with_its_line(
    schema: TableSchema, records: list[dict[str, Any]], message: str
) -> None:
    before = [insert(**{name: 0 for name in names(schema)})]
    with pytest.raises(SchemaError, match="^SHD_SYN_050: f.json:2: table t: ") as caught:
        plan_of(schema, *before, *records)
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_replacement_removes_whole_rows_and_completes_the_others() -> None:
    plan = plan_of(PLAIN, insert(id=1, a=1, big=1), update(id=2, a=2), delete(id=3))
    replacement = as_replacement(plan)
    assert replacement is not None
    assert replacement.gone == {("1",): False, ("3",): True}
    assert replacement.writes == {
        Shape("move", ("id", "a")): [("2", 2, 2)],
        Shape("upsert", ("id", "a", "big")): [(1, 1, 1)],
    }


def test_an_insert_that_lacks_columns_is_not_replaced() -> None:
    assert as_replacement(plan_of(PLAIN, insert(id=1, a=1))) is None


# Keys


def test_records_that_locate_rows_by_another_unique_index_are_planned_by_it() -> None:
    schema = replace(schema_of("id", "code", "v"), other_keys=(("code",),))
    records = [update(id=7, code="c", v="w"), delete(code="d"), update({"code": "e"}, id=8, code="f", v="x")]
    plan = plan_of(schema, *records)
    assert plan.schema.key == ("code",)
    assert plan.schema.other_keys == (("id",),)
    assert not plan.schema.has_arbiter
    assert plan.gone == {("d",): True, ("e",): False}
    assert plan.rekeyed == {("e",): ("f",)}
    # A DELETE of the whole old row is located by the primary key.
    assert plan_of(schema, delete(id=1, code="c", v="w")).schema.key == ("id",)


def test_records_that_locate_rows_in_two_ways_are_replayed() -> None:
    schema = replace(schema_of("id", "code", "v"), other_keys=(("code",),))
    plan = plan_of(schema, delete(code="d"), delete(id=1))
    assert plan.is_order_sensitive
    assert plan.last_ts == plan_of(schema, delete(id=1)).last_ts


def test_old_values_of_no_key_are_refused() -> None:
    schema = replace(schema_of("id", "code", "v"), other_keys=(("code",),))
    with pytest.raises(SchemaError, match="key column"):
        plan_of(schema, delete(v="x"))


def test_a_record_without_values_is_for_a_table_without_columns() -> None:
    for op in ("INSERT", "DELETE"):
        records = [LocatedRecord(ChangeRecord(table="t", op=op, data={}), 1, 1)]
        with pytest.raises(SchemaError, match="without (data|old_keys)"):
            planned(KEYLESS, records)
        assert planned(schema_of("g", key=(), generated=("g",)), records).counts.records == 1


def test_rows_with_long_values_are_set_apart_where_lines_are_long_on_an_average() -> None:
    text = "x" * (LONG_VALUE + 1)
    records = [insert(id=1, a=text), insert(id=2, a="short"), update(id=3, big=text), delete(id=4)]
    plan = plan_of(PLAIN, *records)
    note_size(plan, len(records) * len(PLAIN.columns) * 100)
    assert long_rows_apart(plan) is None
    note_size(plan, 2 * len(text))
    apart = long_rows_apart(plan)
    assert apart is not None
    rest, long = apart
    assert rest == replace(plan, writes={Shape("upsert", ("id", "a")): [(2, "short")]})
    assert long.writes == {
        Shape("upsert", ("id", "a")): [(1, text)],
        Shape("update", ("id", "big")): [(3, text)],
    }
    assert (long.gone, long.counts) == ({}, plan.counts)


def test_a_plan_without_long_values_is_not_parted() -> None:
    plan = plan_of(PLAIN, insert(id=1, a="x" * LONG_VALUE), delete(id=4))
    note_size(plan, 1 << 20)
    assert long_rows_apart(plan) is None
