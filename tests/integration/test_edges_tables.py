"""Tables with rare definitions, for a role that may silence triggers and for one that may not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.world import World, delete, insert, update

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"


@pytest.fixture(params=["silent", "ordinary"])
def begin(request: pytest.FixtureRequest, world: World) -> Callable[..., World]:
    """`begin(*ddl)` makes the tables and whitelists `t` or *tables*."""

    def begin(*ddl: str, tables: tuple[str, ...] = ("t",)) -> World:
        world.execute(*ddl)
        world.whitelist(*tables)
        if request.param == "ordinary":
            world.use_ordinary_role()
        return world

    return begin


def test_an_insert_of_an_existing_deferrable_key_is_no_duplicate(begin: Callable[..., World]) -> None:
    world = begin("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY IMMEDIATE, v text)")
    for name, value in ((FIRST, "a"), (SECOND, "b")):
        world.write(name, [insert("t", id=1, v=value)])
        assert world.sync().errors == ()
    assert world.rows("SELECT * FROM t") == [(1, "b")]


def test_rows_with_an_identity_that_is_always_generated_are_touched_and_moved(
    begin: Callable[..., World],
) -> None:
    world = begin(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, toast text)",
        "INSERT INTO t (v, toast) VALUES ('a', 'A'), ('b', 'B')",
    )
    world.write(FIRST, [update("t", id=1), update("t", {"id": 2}, id=7, v="moved")])
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM t ORDER BY id") == [(1, "a", "A"), (7, "moved", "B")]


def test_a_key_of_a_domain_moves_beside_columns_of_composites(begin: Callable[..., World]) -> None:
    world = begin(
        "CREATE DOMAIN positive AS int NOT NULL CHECK (value > 0)",
        "CREATE TYPE pair AS (s text, n int)",
        "CREATE TABLE t (id positive PRIMARY KEY, pairs pair[], b positive, toast text)",
        "INSERT INTO t VALUES (1, NULL, 1, 'kept')",
    )
    world.write(FIRST, [update("t", {"id": 1}, id=2, pairs=[{"s": 'x,"y', "n": 1}, None], b=3)])
    assert world.sync().errors == ()
    assert world.rows("SELECT id, pairs[1].s, pairs[2] IS NULL, b, toast FROM t") == [
        (2, 'x,"y', True, 3, "kept")
    ]


def test_true_and_false_stay_words_in_a_text_column(begin: Callable[..., World]) -> None:
    world = begin("CREATE TABLE t (id int PRIMARY KEY, v text, ok boolean)")
    world.write(FIRST, [insert("t", id=1, v=True, ok=True), insert("t", id=2, v=False, ok=False)])
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM t ORDER BY id") == [(1, "true", True), (2, "false", False)]


def test_an_error_of_one_tables_state_leaves_the_other_tables_alone(begin: Callable[..., World]) -> None:
    world = begin(
        "CREATE TABLE bag (v int)",
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE PUBLICATION all_of_it FOR ALL TABLES",
        tables=("bag", "t"),
    )
    # 55000: a table without replica identity, of a publication that publishes deletes.
    world.write(FIRST, [insert("bag", v=1), delete("bag", v=7), insert("t", id=1)])
    (error,) = world.sync().errors
    assert error.table == "bag" and "SQLSTATE 55000" in error.message
    assert world.rows("SELECT * FROM t") == [(1,)]
    world.execute("DROP PUBLICATION all_of_it")
    assert world.sync().errors == ()
    assert world.rows("SELECT * FROM bag") == [(1,)]


# Sequences


@pytest.mark.parametrize(
    "column, value",
    [
        ("text DEFAULT 'INV-' || nextval('numbers')", "INV-7"),
        ("numeric DEFAULT nextval('numbers')", "9" * 30),
        ("numeric DEFAULT nextval('numbers')", "9" * 19),
    ],
)
def test_a_default_from_a_sequence_that_cannot_follow_its_column_stops_nothing(
    begin: Callable[..., World], column: str, value: str
) -> None:
    world = begin("CREATE SEQUENCE numbers", f"CREATE TABLE t (id int PRIMARY KEY, number {column})")
    world.write(FIRST, [insert("t", id=1, number=value)])
    assert world.sync().errors == ()
    assert world.rows("SELECT number::text FROM t") == [(value,)]
    assert world.value("SELECT nextval('numbers')") == 1


def test_sequences_follow_rows_that_came_before_a_restart_in_the_middle_of_a_file(
    begin: Callable[..., World],
) -> None:
    world = begin(
        "CREATE TABLE t (id serial PRIMARY KEY)", "CREATE TABLE o (id int PRIMARY KEY)", tables=("t", "o")
    )
    world.options["batch_records"] = 1
    records = [insert("t", ts="1", id=50), insert("o", ts="2", id=1), insert("o", ts="3", id=2)]
    world.write(FIRST, [*records[:2], "broken"])
    assert world.sync().errors
    assert world.value("SELECT count(*) FROM t") == 1
    world.write(FIRST, records)
    assert world.sync().errors == ()
    assert world.value("SELECT nextval('t_id_seq')") == 51


# The developer's schema changes


def test_a_type_can_be_dropped_while_the_service_is_connected(begin: Callable[..., World]) -> None:
    world = begin(
        "CREATE TYPE mood AS ENUM ('low', 'high')",
        "CREATE TABLE t (id int PRIMARY KEY, m mood)",
        "INSERT INTO t VALUES (1, 'low')",
    )
    world.write(FIRST, [update("t", id=1, m="high")])
    with world.service() as service:
        assert service.run_once().errors == ()
        world.execute("ALTER TABLE t ALTER m TYPE text", "DROP TYPE mood")
        world.write(SECOND, [update("t", id=1, m="middling")])
        assert service.run_once().errors == ()
    assert world.rows("SELECT * FROM t") == [(1, "middling")]


@pytest.mark.parametrize("ddl", ["DROP TABLE t", "ALTER TABLE t RENAME id TO number"])
def test_a_change_of_one_table_in_the_middle_of_a_file_does_not_stop_the_others(
    begin: Callable[..., World], ddl: str
) -> None:
    world = begin(
        "CREATE TABLE t (id serial PRIMARY KEY)", "CREATE TABLE o (id int PRIMARY KEY)", tables=("t", "o")
    )
    world.options["batch_records"] = 1
    records = [insert("t", ts="1", id=50), insert("o", ts="2", id=1), insert("o", ts="3", id=2)]
    world.write(FIRST, [*records[:2], "broken"])
    with world.service() as service:
        assert service.run_once().errors
        world.execute(ddl)
        world.write(FIRST, records)
        assert {error.table for error in service.run_once().errors} <= {
            "t"
        }  # a table that is gone is told of
    assert world.value("SELECT count(*) FROM o") == 2
