"""What only a role that may not silence triggers meets: cascades, constraints that wait, row security."""

from __future__ import annotations

import contextlib
import random

import psycopg
import pytest

from syncdata.errors import ApplyError, SchemaError
from tests.production import Production, differences
from tests.world import World, delete, insert, truncate, update

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"
CHILD = "CREATE TABLE c (id int PRIMARY KEY, p_id int REFERENCES p ON DELETE {}, toast text)"
WAITING = "REFERENCES p DEFERRABLE INITIALLY DEFERRED"


def begin(world: World, *ddl: str, tables: tuple[str, ...]) -> None:
    world.execute(*ddl)
    world.whitelist(*tables)
    world.use_ordinary_role()


def blocked(world: World) -> list[str | None]:
    errors = world.sync().errors
    assert all(type(error) is ApplyError for error in errors)
    return [error.table for error in errors]


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
def test_a_child_that_left_its_parent_before_the_parent_went_stays_whole(world: World, action: str) -> None:
    begin(
        world,
        "CREATE TABLE p (id int PRIMARY KEY)",
        CHILD.format(action),
        "INSERT INTO p VALUES (1), (2)",
        "INSERT INTO c VALUES (1, 1, 'only here')",
        tables=("p", "c"),
    )
    world.write(FIRST, [update("c", {"id": 1}, id=1, p_id=2), delete("p", id=1)])
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM c") == [(1, 2, "only here")]


def test_a_child_survives_a_truncate_of_the_parents_it_had_left(world: World) -> None:
    begin(
        world,
        "CREATE TABLE p (id int PRIMARY KEY)",
        CHILD.format("CASCADE"),
        "INSERT INTO p VALUES (1)",
        "INSERT INTO c VALUES (1, 1, 'only here')",
        tables=("p", "c"),
    )
    world.write(
        FIRST,
        [
            update("c", {"id": 1}, id=1, p_id=None),
            truncate("p"),
            insert("p", id=2),
            update("c", {"id": 1}, id=1, p_id=2),
        ],
    )
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM c") == [(1, 2, "only here")]


def test_a_cascade_within_one_table_takes_only_what_it_took_at_the_source(world: World) -> None:
    begin(
        world,
        "CREATE TABLE n (id int PRIMARY KEY, up int REFERENCES n ON DELETE CASCADE, toast text)",
        "INSERT INTO n VALUES (1, NULL, 'a'), (2, 1, 'b'), (3, NULL, 'c'), (4, 1, 'd')",
        tables=("n",),
    )
    world.write(FIRST, [update("n", {"id": 2}, id=2, up=3), delete("n", id=1), delete("n", id=4)])
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM n ORDER BY id") == [(2, 3, "b"), (3, None, "c")]


def test_a_truncate_after_inserts_whose_constraints_wait_leaves_other_tables_alone(world: World) -> None:
    begin(
        world,
        "CREATE TABLE p (id int PRIMARY KEY)",
        f"CREATE TABLE c (id int PRIMARY KEY, n int, p_id int {WAITING})",
        "CREATE TABLE o (id int PRIMARY KEY)",
        "INSERT INTO p VALUES (1)",
        tables=("c", "o"),
    )
    records = [
        insert("c", id=1, n=1, p_id=1),
        insert("c", id=2, n=1, p_id=1),
        truncate("c"),
        insert("c", id=3, n="bad", p_id=1),
        insert("o", id=1),
    ]
    world.write(FIRST, records)
    assert blocked(world) == ["c"]
    assert world.value("SELECT count(*) FROM o") == 1
    records[3]["data"]["n"] = 7
    world.write(FIRST, records)
    assert blocked(world) == []
    assert world.rows("SELECT * FROM c") == [(3, 7, 1)]


def test_a_foreign_key_that_a_partition_breaks_is_blamed_on_its_root(world: World) -> None:
    begin(
        world,
        "CREATE TABLE p (id int PRIMARY KEY)",
        f"CREATE TABLE c (id int PRIMARY KEY, p_id int {WAITING}) PARTITION BY RANGE (id)",
        "CREATE TABLE c_1 PARTITION OF c FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE o (id int PRIMARY KEY)",
        tables=("c", "o"),
    )
    world.write(FIRST, [insert("c", id=1, p_id=1), insert("o", id=1)])
    assert blocked(world) == ["c"]
    assert world.value("SELECT count(*) FROM o") == 1


def test_a_broken_foreign_key_is_not_blamed_on_another_of_the_same_name(world: World) -> None:
    begin(
        world,
        "CREATE TABLE p (id int PRIMARY KEY)",
        "CREATE TABLE x (id int PRIMARY KEY)",
        "CREATE TABLE a (x_id int CONSTRAINT fk REFERENCES x DEFERRABLE INITIALLY DEFERRED)",
        f"CREATE TABLE here (p_id int CONSTRAINT fk {WAITING})",
        "INSERT INTO p VALUES (1)",
        "INSERT INTO here VALUES (1)",
        tables=("p", "x"),
    )
    world.write(FIRST, [delete("p", id=1), insert("x", id=1)])
    assert blocked(world) == ["p"]
    assert world.rows("SELECT * FROM x") == [(1,)]


def test_rows_that_row_security_hides_are_an_error_not_missing(world: World) -> None:
    begin(
        world,
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t VALUES (1, 'hidden')",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY not_all ON t USING (v <> 'hidden')",
        tables=("t",),
    )
    world.write(FIRST, [delete("t", id=1)])
    (error,) = world.sync().errors
    assert type(error) is SchemaError and error.table == "t"
    world.execute("ALTER TABLE t DISABLE ROW LEVEL SECURITY")
    assert blocked(world) == []
    assert world.rows("SELECT * FROM t") == []


def test_a_resync_exchanges_unique_values_under_a_deferrable_key(world: World) -> None:
    table = "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, email text UNIQUE)"
    begin(world, table, tables=("t",))
    world.write(FIRST, [insert("t", id=1, email="a"), insert("t", id=2, email="b")])
    world.sync()
    world.execute("DELETE FROM t", "INSERT INTO t VALUES (1, 'b'), (2, 'a')")
    with world.service() as service:
        service.resync("t")
    assert world.rows("SELECT * FROM t ORDER BY id") == [(1, "a"), (2, "b")]


def test_a_unique_value_of_a_row_that_goes_is_free_for_the_next_one(world: World) -> None:
    begin(
        world,
        "CREATE TABLE p (id int PRIMARY KEY, email text UNIQUE)",
        CHILD.format("CASCADE"),
        "INSERT INTO p VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO c VALUES (1, 1, 'stays'), (2, 1, 'goes'), (3, 2, 'stays')",
        tables=("p", "c"),
    )
    world.write(
        FIRST,
        [
            update("c", {"id": 1}, id=1, p_id=2),
            delete("p", id=1),
            delete("c", id=2),
            insert("p", id=3, email="a"),
            insert("p", id=1, email="c"),
            update("c", {"id": 3}, id=3, p_id=1),
        ],
    )
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM p ORDER BY id") == [(1, "c"), (2, "b"), (3, "a")]
    assert world.rows("SELECT * FROM c ORDER BY id") == [(1, 2, "stays"), (3, 1, "stays")]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_records", [7, 50_000])
def test_an_ordinary_role_ends_with_the_rows_that_production_has(
    world: World, production: Production, seed: int, batch_records: int
) -> None:
    world.options["batch_records"] = batch_records
    dice = random.Random(seed)
    tables = (
        "CREATE TABLE p (id int PRIMARY KEY, email text UNIQUE, toast text)",
        "CREATE TABLE m (id int PRIMARY KEY, p_id int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE,"
        " up int REFERENCES m ON DELETE SET NULL, toast text)",
        "CREATE TABLE c (id int PRIMARY KEY, m_id int REFERENCES m ON DELETE CASCADE,"
        " p_id int REFERENCES p ON DELETE SET NULL ON UPDATE CASCADE, toast text)",
        "CREATE TABLE r (id int PRIMARY KEY, m_id int REFERENCES m ON DELETE RESTRICT)",
    )
    for side in (production, world):
        side.execute(*tables)
        for table in "pmc":
            side.execute(f"ALTER TABLE {table} ALTER toast SET STORAGE EXTERNAL")
    production.publish("p", "m", "c", "r")
    world.archive = production.archive_dir
    world.whitelist("p", "m", "c", "r")
    world.use_ordinary_role()

    def some() -> int:
        return dice.randrange(6)

    def change() -> str:
        one, two, toast = some(), some(), f"repeat('{some()}', 3000)"
        return dice.choice(
            [
                f"INSERT INTO p VALUES ({one}, '{two}', {toast})",
                f"INSERT INTO m VALUES ({one}, {two}, {some()}, {toast})",
                f"INSERT INTO c VALUES ({one}, {two}, {some()}, {toast})",
                f"INSERT INTO r VALUES ({one}, {two})",
                f"UPDATE p SET email = '{two}' WHERE id = {one}",
                f"UPDATE p SET id = {two} WHERE id = {one}",
                f"UPDATE m SET p_id = {two}, up = {some()} WHERE id = {one}",
                f"UPDATE m SET id = {two} WHERE id = {one}",
                f"UPDATE c SET m_id = {two}, p_id = {some()} WHERE id = {one}",
                f"UPDATE r SET m_id = {two} WHERE id = {one}",
                f"DELETE FROM p WHERE id = {one}",
                f"DELETE FROM m WHERE id = {one}",
                f"DELETE FROM c WHERE id = {one}",
                f"DELETE FROM r WHERE id = {one}",
                "TRUNCATE p CASCADE" if dice.random() < 0.1 else f"DELETE FROM r WHERE m_id = {one}",
            ]
        )

    with production.connect() as connection:
        for _ in range(150):
            with contextlib.suppress(psycopg.IntegrityError):
                connection.execute(change())
    production.archive()
    assert world.sync().errors == ()
    assert differences(production.database, world.database, ["p", "m", "c", "r"]) == []
