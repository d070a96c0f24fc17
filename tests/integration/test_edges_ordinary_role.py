"""What only a role that may not silence triggers meets: cascades, constraints that wait, row security."""

from __future__ import annotations

import pytest

from syncdata.errors import ApplyError
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
    assert blocked(world) == ["t"]
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
