"""Migrations after which values go by rules that were not made for them: no original gets out by any."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import pytest

from syncdata.capture.privacy_note import load_privacy_note
from syncdata.capture.published import Look, SourceEye
from syncdata.errors import PrivacyError, SourceConnectionError
from tests.integration.test_private_stream import SECRET, Source, make_source
from tests.production import archiving, until

__all__ = ["make_source"]

MARK = "INSERT INTO mark VALUES (1)"
USERS = "CREATE TABLE users (id int PRIMARY KEY, email text)"
RULES = {"users": {"id": "keep", "email": "email"}}
ANN = f"INSERT INTO users VALUES (1, '{SECRET}')"


def production(source: Source, *create: str) -> None:
    """Publish all tables that there will be, and `mark`, whose row says that all before has come."""
    source.execute(
        *create,
        "CREATE TABLE mark (id int PRIMARY KEY)",
        "ALTER PUBLICATION syncdata ADD TABLES IN SCHEMA public",
    )
    # Only what is noticed at once is noticed in time.
    source.production.options["rotate_s"] = 4.0


def is_marked(source: Source) -> bool:
    return any(record.table == "mark" and record.data == {"id": "1"} for record in source.records())


def is_told(source: Source) -> bool:
    note = load_privacy_note(source.production.spool_dir)
    return note is not None and any("it was called" in problem for problem in note.problems)


@pytest.mark.parametrize(
    ("rules", "unnamed", "create", "migration"),
    [
        pytest.param(
            RULES,
            "keep",
            (USERS, ANN),
            ("ALTER TABLE users RENAME TO members", f"INSERT INTO members VALUES (2, '{SECRET}')"),
            id="a table has another name, which no rule has",
        ),
        pytest.param(
            {"patients": {"id": "keep", "note": "null"}, "items": {"id": "keep", "note": "keep"}},
            "withhold",
            (
                "CREATE TABLE patients (id int PRIMARY KEY, note text)",
                "CREATE TABLE items (id int PRIMARY KEY, note text)",
            ),
            (
                "ALTER TABLE items RENAME TO x",
                "ALTER TABLE patients RENAME TO items",
                "ALTER TABLE x RENAME TO patients",
                f"INSERT INTO items VALUES (2, '{SECRET}')",
            ),
            id="two tables have changed their names",
        ),
        pytest.param(
            {"items": {"id": "keep", "note": "keep"}},
            "withhold",
            (
                "CREATE TABLE secrets (id int PRIMARY KEY, note text)",
                "CREATE TABLE items (id int PRIMARY KEY, note text)",
            ),
            (
                "DROP TABLE items",
                "ALTER TABLE secrets RENAME TO items",
                f"INSERT INTO items VALUES (2, '{SECRET}')",
            ),
            id="a withheld table has the name of one that travels",
        ),
        pytest.param(
            {"users": {"id": "keep", "a": "keep", "b": "token"}},
            "withhold",
            ("CREATE TABLE users (id int PRIMARY KEY, a text, b text)",),
            (
                "ALTER TABLE users DROP a",
                "ALTER TABLE users RENAME b TO a",
                "ALTER TABLE users ADD b text",
                f"INSERT INTO users VALUES (2, '{SECRET}')",
            ),
            id="other columns have the same names",
        ),
        pytest.param(
            RULES,
            "keep",
            (
                "CREATE TABLE users (id int PRIMARY KEY, email text,"
                " own text GENERATED ALWAYS AS (email) STORED)",
            ),
            ("ALTER TABLE users ALTER own DROP EXPRESSION", ANN, f"UPDATE users SET own = '{SECRET}'"),
            id="a generated column is a plain one",
        ),
        pytest.param(
            {"users": {"id": "keep", "email": "email"}},
            "keep",
            (
                "CREATE TABLE users (id int PRIMARY KEY, email text) PARTITION BY RANGE (id)",
                "CREATE TABLE users_1 (email text, id int PRIMARY KEY)",
                "ALTER TABLE users ATTACH PARTITION users_1 FOR VALUES FROM (0) TO (10)",
            ),
            (
                "ALTER TABLE users DETACH PARTITION users_1",
                f"INSERT INTO users_1 VALUES ('{SECRET}', 2)",
            ),
            id="a partition is a table of its own",
        ),
    ],
)
def test_columns_that_change_under_the_same_names_are_noticed_at_once(
    make_source: Callable[..., Source],
    rules: dict[str, dict[str, str]],
    unnamed: str,
    create: tuple[str, ...],
    migration: tuple[str, ...],
) -> None:
    source = make_source({**rules, "mark": {"id": "keep"}}, unnamed=unnamed)
    production(source, *create)
    names = [statement.split()[2] for statement in create if statement.startswith("CREATE TABLE")]
    with archiving(source.production):
        # The stream has described each, and the archiver has looked.
        source.execute("INSERT INTO mark VALUES (0)", *(f"UPDATE {name} SET id = id" for name in names))
        until(source.records)
        with source.production.connect() as connection, connection.transaction():
            for statement in migration:
                connection.execute(statement)
        source.execute(MARK)
        until(lambda: is_marked(source) and is_told(source))
    source.tell_nothing()


def test_names_that_were_swapped_for_a_while_are_not_taken_at_their_word(
    make_source: Callable[..., Source],
) -> None:
    rules = {"users": {"id": "keep", "email": "email", "city": "keep"}, "mark": {"id": "keep"}}
    source = make_source(rules, unnamed="keep")
    production(source, "CREATE TABLE users (id int PRIMARY KEY, email text, city text)")
    source.execute(f"INSERT INTO users VALUES (1, '{SECRET}', 'Rome')")
    source.archive()
    swap = (
        "ALTER TABLE users RENAME email TO x",
        "ALTER TABLE users RENAME city TO email",
        "ALTER TABLE users RENAME x TO city",
    )
    source.execute(
        *swap,
        f"INSERT INTO users (id, city) VALUES (2, '{SECRET}')",
        *swap,
        f"INSERT INTO users (id, email, city) VALUES (3, '{SECRET}', 'Rome')",
        "ALTER TABLE users RENAME TO members",
        f"INSERT INTO members (id, email, city) VALUES (4, '{SECRET}', 'Rome')",
        "ALTER TABLE members RENAME TO users",
        f"INSERT INTO users (id, email, city) VALUES (5, '{SECRET}', 'Rome')",
    )
    records = [record for record in source.archive() if record.data]
    found = {record.data["id"]: record.data for record in records if record.data}
    assert "city" not in found.get("2", {}) and "email" not in found.get("4", {})
    assert found["5"]["city"] == "Rome" and found["5"]["email"].endswith("@example.invalid")


def test_without_its_memory_the_archiver_lets_nothing_travel_under_a_new_name(
    make_source: Callable[..., Source],
) -> None:
    source = make_source({"users": {"id": "keep", "email": "email", "city": "keep"}})
    source.execute("CREATE TABLE users (id int PRIMARY KEY, email text, city text)")
    source.publish("users")
    source.archive()
    source.execute(
        "ALTER TABLE users DROP city",
        "ALTER TABLE users RENAME email TO city",
        f"INSERT INTO users VALUES (1, '{SECRET}')",
    )
    state = source.production.spool_dir / "catalog.json"
    state.write_bytes(state.read_bytes()[:-20])
    for work in (source.archive, lambda: source.production.snapshot("users")):
        with pytest.raises(PrivacyError, match=r"catalog\.json cannot be read"):
            work()
    assert source.records() == []
    # The remedy: the operator has looked, and says what the column is now.
    source.rule({"users": {"id": "keep", "city": "token"}})
    state.unlink()
    (record,) = source.archive()
    assert record.data is not None and SECRET not in str(record.data)


def test_a_row_filter_that_quotes_a_value_is_in_no_catalog(
    make_source: Callable[..., Source],
) -> None:
    rules = {"users": {"id": "keep", "email": "email", "tenant": "keep"}, "orders": {"id": "keep"}}
    source = make_source(rules, rows={"users": f"email <> '{SECRET}'", "orders": "id > 5"})
    source.execute(
        "CREATE TABLE users (id int PRIMARY KEY, email text, tenant int)",
        "ALTER TABLE users REPLICA IDENTITY FULL",
        "CREATE TABLE orders (id int PRIMARY KEY)",
        "ALTER PUBLICATION syncdata SET TABLE"
        f" users WHERE (tenant > 2 AND email <> '{SECRET}'), orders WHERE (id > 5)",
    )
    with archiving(source.production):
        until(lambda: source.travels("users"))
        source.execute(f"INSERT INTO users VALUES (1, 'a@b', 3), (2, '{SECRET}', 3)")
        until(source.records)
    (record,) = source.records()
    assert record.data is not None and re.fullmatch(".*@example.invalid", record.data["email"])
    users, orders = source.table("users"), source.table("orders")
    assert users is not None and users.row_filter == "by columns that are masked or withheld"
    # One that quotes only what travels as it is says what it is.
    assert orders is not None and orders.row_filter == "(id > 5)"


def test_nothing_is_masked_by_names_while_the_source_cannot_be_looked_at(
    make_source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"users": {"id": "keep", "email": "email", "city": "keep"}, "mark": {"id": "keep"}}
    source = make_source(rules)
    production(source, "CREATE TABLE users (id int PRIMARY KEY, email text, city text)")
    is_away, looked = threading.Event(), SourceEye.look

    def look(eye: SourceEye) -> Look:
        if is_away.is_set():
            raise SourceConnectionError("too many connections")
        return looked(eye)

    monkeypatch.setattr(SourceEye, "look", look)
    with archiving(source.production):
        source.execute("INSERT INTO mark VALUES (0)")
        until(source.records)
        is_away.set()
        with source.production.connect() as connection, connection.transaction():
            connection.execute("ALTER TABLE users RENAME city TO town")
            connection.execute("ALTER TABLE users RENAME email TO city")
            connection.execute(f"INSERT INTO users (id, city) VALUES (1, '{SECRET}')")
        source.execute(MARK)
        time.sleep(2.0)
        assert not is_marked(source)
        is_away.clear()
        until(lambda: is_marked(source) and is_told(source))
    source.tell_nothing()


def test_a_partition_that_became_a_table_is_followed_like_one(make_source: Callable[..., Source]) -> None:
    users = {"id": "keep", "email": "email", "city": "keep"}
    source = make_source({"users": users, "users_1": users, "mark": {"id": "keep"}})
    production(
        source,
        "CREATE TABLE users (id int PRIMARY KEY, email text, city text) PARTITION BY RANGE (id)",
        "CREATE TABLE users_1 PARTITION OF users FOR VALUES FROM (0) TO (10)",
    )
    with archiving(source.production):
        source.execute("INSERT INTO users VALUES (1, 'a@b', 'Rome')", "INSERT INTO mark VALUES (0)")
        until(source.records)
        source.execute("ALTER TABLE users DETACH PARTITION users_1", "INSERT INTO mark VALUES (2)")
        until(lambda: source.table("users_1") is not None)
        with source.production.connect() as connection, connection.transaction():
            connection.execute("ALTER TABLE users_1 RENAME email TO x")
            connection.execute("ALTER TABLE users_1 RENAME city TO email")
            connection.execute("ALTER TABLE users_1 RENAME x TO city")
            connection.execute(f"INSERT INTO users_1 (id, city) VALUES (2, '{SECRET}')")
        source.execute(MARK)
        until(lambda: is_marked(source) and is_told(source))
    source.tell_nothing()
