"""The rules of applying, each on real PostgreSQL servers of every version at hand."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from syncdata.apply.postgres import direct
from tests.world import World, delete, insert, truncate, update

FILE = "changes_20260205_103000.json"


@pytest.fixture(autouse=True, params=["small", "staged"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule holds for rows that go straight to the table and for those that go through staging."""
    if request.param == "staged":
        monkeypatch.setattr(direct, "MOST_ROWS", 0)


def start(world: World, *ddl: str, tables: tuple[str, ...] = ("t",)) -> None:
    world.execute(*ddl)
    world.whitelist(*tables)


def rows(world: World, table: str = "t") -> list[tuple[Any, ...]]:
    return world.rows(f"SELECT * FROM {table} ORDER BY 1, 2")


def test_the_key_comes_from_the_catalog_not_from_the_json(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (name text, code text PRIMARY KEY, n int)")
    any_world.write(
        FILE,
        [
            insert("t", name="a", n=1, code="x"),
            insert("t", name="a", n=2, code="y"),
            update("t", {"code": "x"}, name="a", n=10, code="x"),
            delete("t", code="y"),
        ],
    )
    assert any_world.sync().errors == ()
    assert rows(any_world) == [("a", "x", 10)]


@pytest.mark.parametrize("is_ordinary", [False, True])
def test_the_example_of_the_plan_and_the_writer(any_world: World, is_ordinary: bool) -> None:
    start(any_world, "CREATE TABLE orders (id int PRIMARY KEY, status text, note text)", tables=("orders",))
    any_world.execute("INSERT INTO orders VALUES (7, 'new', 'ring twice')")
    if is_ordinary:
        any_world.use_ordinary_role()
    any_world.write(
        FILE,
        [
            update("orders", None, id=7, status="paid"),
            update("orders", {"id": 7}, id=17, status="sent"),
            insert("orders", id=7, status="new", note="none"),
        ],
    )
    assert any_world.sync().errors == ()
    assert rows(any_world, "orders") == [(7, "new", "none"), (17, "sent", "ring twice")]


def test_a_composite_key_and_a_change_of_it_move_the_row(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (a int, b int, note text, big text DEFAULT 'kept', PRIMARY KEY (a, b))")
    any_world.execute("INSERT INTO t VALUES (1, 1, 'one'), (2, 2, 'two')")
    any_world.write(
        FILE,
        [
            update("t", {"a": 1, "b": 1}, a=1, b=9, note="moved"),
            update("t", {"a": 2, "b": 2}, a=1, b=1, note="took its place"),
        ],
    )
    any_world.sync()
    assert rows(any_world) == [(1, 1, "took its place", "kept"), (1, 9, "moved", "kept")]


def test_a_table_without_any_key_is_matched_on_all_old_values_one_row_a_record(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (a int, j json, n numeric)")
    any_world.execute(
        "INSERT INTO t VALUES (1, '{\"x\": 1}', 1.50), (1, '{\"x\": 1}', 1.50), (2, NULL, NULL)"
    )
    twin: dict[str, Any] = {"a": 1, "j": '{"x": 1}', "n": "1.50"}
    any_world.write(
        FILE,
        [
            delete("t", **twin),
            update("t", {"a": 2, "j": None, "n": None}, a=2, j=None, n="7"),
            insert("t", a=3, j="[]", n=None),
            delete("t", a=99, j=None, n=None),
        ],
    )
    result = any_world.sync()
    assert result.errors == ()
    assert any_world.rows("SELECT a, j::text, n::text FROM t ORDER BY a") == [
        (1, '{"x": 1}', "1.50"),
        (2, None, "7"),
        (3, "[]", None),
    ]
    assert any_world.value("SELECT records_missing FROM data_sync_logs") == 1


def test_a_keyless_delete_finds_the_row_that_its_own_batch_inserted_in_another_spelling(world: World) -> None:
    start(world, "CREATE TABLE t (n numeric(5, 2))")
    world.write(FILE, [insert("t", n="1.5"), delete("t", n="1.50"), insert("t", n="2")])
    assert world.sync().errors == ()
    assert world.rows("SELECT n::text FROM t") == [("2.00",)]


def test_an_insert_of_an_existing_key_is_an_upsert_that_keeps_local_columns(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (id int PRIMARY KEY, v text, local_only text DEFAULT 'l')")
    any_world.execute("INSERT INTO t VALUES (1, 'old', 'mine')")
    any_world.write(FILE, [insert("t", id=1, v="new"), insert("t", id=2, v="two")])
    any_world.sync()
    assert rows(any_world) == [(1, "new", "mine"), (2, "two", "l")]


def test_a_missing_row_is_inserted_when_complete_and_else_counted_as_missing(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (id int PRIMARY KEY, v text, w text)")
    any_world.write(
        FILE,
        [update("t", id=1, v="a", w="b"), update("t", id=2, v="only v"), delete("t", id=3)],
    )
    any_world.sync()
    assert rows(any_world) == [(1, "a", "b")]
    assert any_world.rows("SELECT records_updated, records_deleted, records_missing FROM data_sync_logs") == [
        (2, 1, 2)
    ]


def test_an_absent_column_is_unchanged_and_identity_full_supplies_it(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (id int PRIMARY KEY, v text, toast text)")
    any_world.execute("INSERT INTO t VALUES (1, 'a', 'long')")
    any_world.write(
        FILE,
        [
            update("t", {"id": 1}, id=1, v="b"),
            # Not there locally, but its old row carries what the new one leaves out.
            update("t", {"id": 2, "v": "x", "toast": "whole"}, id=2, v="y"),
        ],
    )
    any_world.sync()
    assert rows(any_world) == [(1, "b", "long"), (2, "y", "whole")]


def test_truncate_empties_the_table_although_an_outside_table_refers_to_it(any_world: World) -> None:
    start(
        any_world,
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "CREATE TABLE outside (id int PRIMARY KEY, t_id int REFERENCES t)",
        "INSERT INTO t VALUES (1, 'a')",
        "INSERT INTO outside VALUES (1, 1)",
    )
    any_world.write(FILE, [truncate("t"), insert("t", id=2, v="b")])
    assert any_world.sync().errors == ()
    assert rows(any_world) == [(2, "b")]
    assert any_world.value("SELECT records_truncated FROM data_sync_logs") == 1


def test_two_rows_swap_a_unique_value_in_one_batch(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (id int PRIMARY KEY, email text UNIQUE, bio text)")
    any_world.execute("INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')")
    any_world.write(
        FILE,
        [
            update("t", {"id": 1}, id=1, email="tmp"),
            update("t", {"id": 2}, id=2, email="a"),
            update("t", {"id": 1}, id=1, email="b"),
            update("t", {"id": 3}, id=3, email="d"),
            insert("t", id=4, email="c", bio="new"),
        ],
    )
    assert any_world.sync().errors == ()
    assert rows(any_world) == [(1, "b", "x"), (2, "a", "y"), (3, "d", "z"), (4, "c", "new")]


def test_two_rows_swap_their_keys(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (id int PRIMARY KEY, v text, toast text)")
    any_world.execute("INSERT INTO t VALUES (1, 'a', 'A'), (2, 'b', 'B')")
    any_world.write(
        FILE,
        [
            update("t", {"id": 1}, id=99, v="a"),
            update("t", {"id": 2}, id=1, v="b"),
            update("t", {"id": 99}, id=2, v="a"),
        ],
    )
    assert any_world.sync().errors == ()
    assert rows(any_world) == [(1, "b", "B"), (2, "a", "A")]


def test_generated_columns_are_left_out_and_identity_columns_written(any_world: World) -> None:
    start(
        any_world,
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int,"
        " twice int GENERATED ALWAYS AS (a * 2) STORED)",
    )
    any_world.write(
        FILE,
        [
            insert("t", id=5, a=1, twice=2),
            insert("t", id=6, a=2, twice=4),
            update("t", {"id": 6}, id=6, a=3, twice=6),
        ],
    )
    assert any_world.sync().errors == ()
    assert rows(any_world) == [(5, 1, 2), (6, 3, 6)]


def test_a_partitioned_table_is_written_through_its_root(any_world: World) -> None:
    start(
        any_world,
        "CREATE TABLE t (id int, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
        "CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')",
    )
    any_world.write(
        FILE,
        [
            insert("t", id=1, day="2026-01-05", v="a"),
            insert("t", id=2, day="2026-02-05", v="b"),
            update("t", {"id": 1, "day": "2026-01-05"}, id=1, day="2026-02-06", v="moved"),
        ],
    )
    assert any_world.sync().errors == ()
    assert any_world.rows("SELECT id, v FROM t_2 ORDER BY id") == [(1, "moved"), (2, "b")]


def test_a_developer_can_insert_after_a_sync(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (id bigserial PRIMARY KEY, v text)")
    any_world.write(FILE, [insert("t", id=41, v="a")])
    any_world.sync()
    assert any_world.value("INSERT INTO t (v) VALUES ('local') RETURNING id") == 42


def test_names_in_capitals_reserved_words_and_the_same_name_in_two_schemas(any_world: World) -> None:
    start(
        any_world,
        "CREATE SCHEMA other",
        'CREATE TABLE "Order" ("select" int PRIMARY KEY, "Straße %s" text)',
        'CREATE TABLE other."Order" ("select" int PRIMARY KEY, "Straße %s" text)',
        tables=("Order", "other.Order"),
    )
    data: dict[str, Any] = {"select": 1, "Straße %s": "here"}
    any_world.write(
        FILE,
        [insert("Order", **data), insert("Order", **(data | {"Straße %s": "there"})) | {"schema": "other"}],
    )
    assert any_world.sync().errors == ()
    assert any_world.rows('SELECT * FROM "Order"') == [(1, "here")]
    assert any_world.rows('SELECT * FROM other."Order"') == [(1, "there")]


def test_a_deferrable_key_is_upserted_too(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text)")
    any_world.execute("INSERT INTO t VALUES (1, 'old')")
    any_world.write(FILE, [insert("t", id=1, v="new"), insert("t", id=2, v="b"), delete("t", id=9)])
    assert any_world.sync().errors == ()
    assert rows(any_world) == [(1, "new"), (2, "b")]


def test_the_replica_identity_index_serves_where_there_is_no_primary_key(any_world: World) -> None:
    start(
        any_world,
        "CREATE TABLE t (v text, code int NOT NULL)",
        "CREATE UNIQUE INDEX t_code ON t (code)",
        "ALTER TABLE t REPLICA IDENTITY USING INDEX t_code",
    )
    any_world.write(FILE, [insert("t", v="a", code=1), update("t", {"code": 1}, v="b", code=1)])
    assert any_world.sync().errors == ()
    assert rows(any_world) == [("b", 1)]


def test_values_of_all_kinds_keep_every_digit(any_world: World) -> None:
    start(
        any_world,
        "CREATE DOMAIN code AS text NOT NULL CHECK (value <> '')",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE TABLE t (id int PRIMARY KEY, n numeric, f float8, b bytea, j json, jb jsonb, arr text[],"
        " grid int[], p pair, pairs pair[], d code, ok boolean, at timestamptz, r int4range)",
    )
    digits = "12345678901234567890.12345678901234567890"
    line = (
        '{"table":"t","op":"INSERT","ts":"2026-02-05 10:30:00+00","data":{"id":1,"n":'
        + digits
        + ',"f":-0,"b":"dead",'
        '"j":{"a": 1.50, "b":[1]},"jb":"\\"s\\"","arr":["a,b","\\"",null,"\\\\"],"grid":[[1,2],[3,4]],'
        '"p":{"b":"x\\"y","a":1},"pairs":[[1,"q"],null],"d":"c","ok":true,"at":"0044-03-15 00:00:00+00 BC",'
        '"r":"[1,5)"}}'
    )
    any_world.write(FILE, [line])
    assert any_world.sync().errors == ()
    texts = any_world.rows(
        "SELECT n::text, f::text, b::text, j::text, jb::text, arr::text, grid::text, p::text, pairs::text,"
        " d::text, ok::text, (at AT TIME ZONE 'UTC')::text, r::text FROM t"
    )
    assert texts == [
        (
            digits,
            "-0",
            "\\xdead",
            '{"a": 1.50, "b":[1]}',
            '"s"',
            '{"a,b","\\"",NULL,"\\\\"}',
            "{{1,2},{3,4}}",
            '(1,"x""y")',
            '{"(1,q)",NULL}',
            "c",
            "true",
            "0044-03-15 00:00:00 BC",
            "[1,5)",
        )
    ]


def test_records_whose_lsn_goes_backwards_are_all_applied(any_world: World) -> None:
    start(any_world, "CREATE TABLE t (id int PRIMARY KEY, v int)")
    records = [
        insert("t", ts=f"2026-02-05T10:30:{n:02d}Z", id=n, v=0) | {"lsn": f"0/{100 - n:X}"} for n in range(50)
    ]
    any_world.write(FILE, records)
    assert any_world.sync().records_added == 50
    any_world.write("changes_20260205_103001.json", [update("t", id=1, v=7) | {"lsn": "0/1"}])
    any_world.sync()
    assert any_world.value("SELECT count(*) FROM t") == 50
    assert any_world.value("SELECT v FROM t WHERE id = 1") == 7


def test_tables_that_are_not_whitelisted_are_not_touched(world: World) -> None:
    start(world, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE other (id int PRIMARY KEY)")
    world.write(FILE, [insert("t", id=1), insert("other", id=1), insert("nowhere", id=1)])
    result = world.sync()
    assert (result.records_added, result.records_skipped) == (1, 2)
    assert rows_of(world, "other") == 0


def rows_of(world: World, table: str) -> int:
    return int(world.value(f"SELECT count(*) FROM {table}"))


def test_a_replayed_file_changes_nothing(world: World) -> None:
    start(world, "CREATE TABLE t (id int PRIMARY KEY, v int)")
    world.write(FILE, [insert("t", id=1, v=1), update("t", id=1, v=2), delete("t", id=5)])
    world.sync()
    before = world.rows("SELECT xmin::text, * FROM t")
    result = world.sync()
    assert result.files_processed == 0
    assert world.rows("SELECT xmin::text, * FROM t") == before
    assert world.value("SELECT count(*) FROM data_sync_logs") == 1


def test_a_file_that_is_compressed_after_it_was_applied_is_not_applied_again(world: World) -> None:
    start(world, "CREATE TABLE t (v int)")
    path = world.write(FILE, [insert("t", v=1)])
    world.sync()
    (world.archive / f"{FILE}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert world.sync().records_added == 0
    assert rows_of(world, "t") == 1
    assert world.sync().files_processed == 0


@pytest.mark.parametrize("batch_records", [1, 2, 1000])
def test_a_file_of_many_transactions_is_applied_in_batches_of_any_size(
    make_world: Any, batch_records: int
) -> None:
    world = make_world(batch_records=batch_records)
    start(world, "CREATE TABLE t (id int PRIMARY KEY, v int)")
    records = [insert("t", ts=f"2026-02-05T10:{n // 60:02d}:{n % 60:02d}Z", id=n, v=n) for n in range(100)]
    world.write(FILE, records)
    assert world.sync().records_added == 100
    assert rows_of(world, "t") == 100
    assert world.rows("SELECT archive_ref, records_added FROM data_sync_logs") == [(FILE, 100)]


@pytest.mark.parametrize("other", ["x\ty\n", None, 7, True])
def test_all_characters_go_through_copy(world: World, other: Any) -> None:
    """Straight into the table as inserts, and by the staging table as updates."""
    world.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    world.whitelist("t")
    values = {n: chr(n) for n in range(1, 400)} | {1_000: "\\N", 1_001: "\\.", 1_002: "", 1_003: "😀\\"}
    world.write("changes_20260205_103000.json", (insert("t", id=n, a=a, b=other) for n, a in values.items()))
    assert world.sync().records_added == len(values)
    assert world.rows("SELECT id, a FROM t ORDER BY id") == sorted(values.items())
    changed = {n: f"{n}{a}{a}" for n, a in values.items()}
    world.write("changes_20260205_103100.json", (update("t", id=n, a=a, b=other) for n, a in changed.items()))
    assert world.sync().records_updated == len(values)
    assert world.rows("SELECT id, a FROM t ORDER BY id") == sorted(changed.items())
    text = {True: "true", 7: "7"}.get(other, other)
    assert world.rows("SELECT DISTINCT b FROM t") == [(text,)]
