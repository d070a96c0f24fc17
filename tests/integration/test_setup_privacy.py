"""What setup_logical_replication makes of a privacy policy on real servers: column lists and row filters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from syncsite.demo.postgres import PostgresServer
from tests.integration.test_setup import Production
from tests.postgres import Database

KEPT = {"id": "keep", "name": "keep"}
USERS = "CREATE TABLE users (id int PRIMARY KEY, name text, notes text, tenant int)"

MakeShop = Callable[..., Production]


@pytest.fixture
def make_shop(
    any_postgres: PostgresServer, fresh_database: Callable[..., Database], tmp_path: Path
) -> MakeShop:
    """`make_shop("CREATE …", columns={…})` is a source with a policy, on every server of the run."""

    def make(*ddl: str, **keys: Any) -> Production:
        shop = Production(fresh_database(any_postgres), tmp_path, keys)
        shop.execute(*(ddl or [USERS]))
        return shop

    return make


def parts(shop: Production) -> dict[str, tuple[str | None, str | None]]:
    """By table, the columns that are listed and the row filter."""
    query = """
    SELECT c.relname, (SELECT string_agg(a.attname, ',' ORDER BY a.attnum) FROM pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attnum = ANY(r.prattrs)),
           pg_get_expr(r.prqual, r.prrelid)
    FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid ORDER BY 1
    """
    return {name: (columns, condition) for name, columns, condition in shop.rows(query)}


def test_the_publication_lists_the_columns_that_the_policy_lets_travel(make_shop: MakeShop) -> None:
    shop = make_shop(columns={"users": KEPT | {"tenant": "null"}})
    assert shop.setup()[0] == 'created publication "syncdata" for users'
    assert parts(shop) == {"users": ("id,name,tenant", None)}
    assert shop.setup() == []
    assert "table users: of 4 columns 1 are masked, 1 withheld (notes)" in shop.findings("ok")


def test_a_new_column_is_not_published_until_a_rule_names_it_and_somebody_widens(make_shop: MakeShop) -> None:
    shop = make_shop(columns={"users": KEPT})
    shop.setup()
    shop.execute("ALTER TABLE users ADD email text")
    shop.keys["columns"] = {"users": KEPT | {"email": "keep"}}
    assert shop.setup() == [], "no list is widened by itself"
    assert parts(shop) == {"users": ("id,name", None)}
    assert any("the privacy policy lets email travel, too" in text for text in shop.findings("note"))
    assert shop.setup(widens=True) == [
        'publication "syncdata": publishes the columns id, name, email of users now'
    ]
    assert parts(shop) == {"users": ("id,name,email", None)}
    assert shop.setup(widens=True) == []


def test_a_column_that_is_newly_withheld_is_taken_off_the_list(make_shop: MakeShop) -> None:
    shop = make_shop(columns={"users": KEPT | {"notes": "keep"}})
    shop.setup()
    shop.keys["columns"] = {"users": KEPT}
    assert any("has more of users than the privacy policy" in text for text in shop.findings("missing"))
    assert shop.setup() == ['publication "syncdata": publishes the columns id, name of users now']
    assert shop.findings("missing") == []


def test_a_table_published_whole_is_narrowed_and_a_narrower_list_stays(make_shop: MakeShop) -> None:
    shop = make_shop(USERS, "CREATE PUBLICATION syncdata FOR TABLE users", columns={"users": KEPT})
    shop.setup()
    assert parts(shop) == {"users": ("id,name", None)}
    shop.execute("ALTER PUBLICATION syncdata SET TABLE ONLY users (id, notes)")
    shop.setup()
    assert parts(shop) == {"users": ("id", None)}


def test_a_row_rule_becomes_the_row_filter_as_the_server_spells_it(make_shop: MakeShop) -> None:
    shop = make_shop(
        "CREATE TABLE users (id int, tenant int, PRIMARY KEY (id, tenant))",
        columns={"users": {"id": "keep", "tenant": "keep"}},
        rows={"users": "tenant IN (3, 5) AND id % 2 = 0"},
    )
    shop.setup()
    ((listed, condition),) = parts(shop).values()
    assert listed == "id,tenant" and condition is not None and "ARRAY[3, 5]" in condition
    assert shop.setup() == []
    assert any("TRUNCATE travels" in text for text in shop.findings("note"))
    shop.keys["rows"] = {"users": "tenant = 3"}
    assert len(shop.refusal()) == 1, "another filter may have more rows"
    assert "WHERE (tenant = 3)" in shop.setup(widens=True)[0]
    del shop.keys["rows"]
    assert shop.setup() == []
    assert any("has only the rows of users WHERE (tenant = 3)" in text for text in shop.findings("note"))


@pytest.mark.parametrize("condition", ["nowhere = 1", "id", "true); DROP TABLE users; --"])
def test_a_row_rule_that_is_no_condition_is_refused(make_shop: MakeShop, condition: str) -> None:
    shop = make_shop(columns={"users": KEPT}, rows={"users": condition})
    (problem,) = shop.refusal()
    assert problem.startswith("source.rows.users: the server refuses it: ")


def test_a_row_rule_that_would_stop_productions_updates_is_taken_back(make_shop: MakeShop) -> None:
    shop = make_shop(columns={"users": KEPT | {"tenant": "keep"}}, rows={"users": "tenant = 3"})
    problems = shop.refusal()
    assert any("WHERE expression is not part of the replica identity" in text for text in problems)


def test_a_table_that_no_rule_names_is_not_published(make_shop: MakeShop) -> None:
    shop = make_shop(
        USERS,
        "CREATE TABLE secrets (id int PRIMARY KEY)",
        columns={"users": KEPT},
        tables=["users", "secrets"],
    )
    shop.setup()
    assert [*parts(shop)] == ["users"]
    shop.keys["columns"] = {"secrets": {"id": "keep"}}
    assert 'publication "syncdata": dropped users' in shop.setup()
    shop.keys["columns"] = {}
    assert any("withholds every table" in text for text in shop.refusal())


def test_rules_that_cannot_hold_are_told_before_anything_is_made(make_shop: MakeShop) -> None:
    shop = make_shop(
        "CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL)",
        columns={"users": {"id": "withhold", "name": "null"}},
    )
    told = shop.refusal()
    assert any(text.startswith("source.columns.users.id: ") for text in told)
    assert any(text.startswith("source.columns.users.name: ") for text in told)


def test_identity_full_takes_no_list_and_the_setup_says_who_protects(make_shop: MakeShop) -> None:
    shop = make_shop(USERS, "ALTER TABLE users REPLICA IDENTITY FULL", columns={"users": KEPT})
    shop.setup()
    assert parts(shop) == {"users": (None, None)}
    assert any("held back by the archiver alone" in text for text in shop.findings("note"))


def test_generated_columns_and_partitions_and_odd_names_are_listed_rightly(make_shop: MakeShop) -> None:
    shop = make_shop(
        'CREATE TABLE "Odd ""x""" ("Id %s" int, "a{}" text, g text GENERATED ALWAYS AS ("a{}") STORED,'
        ' PRIMARY KEY ("Id %s")) ',
        "CREATE TABLE logs (id int, at date, ip inet, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
        "CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        tables=['"Odd ""x"""', "logs"],
        columns={
            '"Odd ""x"""': {"Id %s": "keep", "a{}": "keep"},
            "logs": {"id": "keep", "at": "keep"},
        },
    )
    shop.setup()
    assert parts(shop) == {'Odd "x"': ("Id %s,a{}", None), "logs": ("id,at", None)}
    shop.execute(
        "INSERT INTO logs VALUES (1, '2026-05-05', '::1'); UPDATE logs SET ip = NULL; DELETE FROM logs"
    )


def test_a_schema_of_the_publication_gives_way_to_lists(make_shop: MakeShop) -> None:
    shop = make_shop(
        USERS,
        "CREATE SCHEMA other",
        "CREATE PUBLICATION syncdata FOR TABLES IN SCHEMA other",
        columns={"users": KEPT},
    )
    assert shop.setup()[:2] == [
        'publication "syncdata": dropped schema other',
        'publication "syncdata": added users',
    ]


def test_a_dropped_column_takes_its_table_off_the_publication_unless_it_was_withheld_before(
    make_shop: MakeShop,
) -> None:
    shop = make_shop(columns={"users": KEPT | {"notes": "keep", "tenant": "keep"}})
    shop.setup()
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        shop.execute("ALTER TABLE users DROP COLUMN notes")
    shop.keys["columns"] = {"users": KEPT | {"notes": "withhold", "tenant": "keep"}}
    shop.setup()
    shop.execute("ALTER TABLE users DROP COLUMN notes CASCADE")
    assert parts(shop) == {"users": ("id,name,tenant", None)}
    shop.execute("ALTER TABLE users DROP COLUMN tenant CASCADE")
    assert parts(shop) == {}
    (told,) = shop.findings("missing")
    assert "lacks users" in told
    assert shop.setup() == ['publication "syncdata": added users']
    assert parts(shop) == {"users": ("id,name", None)}
