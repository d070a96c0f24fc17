"""Odd but legal tables, from production through the archive into the local database: they arrive, or are
blamed alone, and the table beside them goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from syncdata.changes.names import TableName
from syncsite.demo.postgres import PostgresServer
from tests.production import Production, rows_as_text
from tests.world import World

BESIDE = "CREATE TABLE beside (id int PRIMARY KEY)"


@dataclass
class Site:
    production: Production
    world: World
    number: int = 0

    def begin(self, *ddl: str, tables: tuple[str, ...] = ("odd",), has_snapshot: bool = True) -> None:
        for side in (self.production, self.world):
            side.execute(BESIDE, *ddl)
        self.production.publish("beside", *tables)
        self.production.archive()
        if has_snapshot:
            self.production.snapshot("beside", *tables)
        self.world.archive = self.production.archive_dir
        self.world.whitelist("beside", *tables)
        self.go()

    def go(self, *statements: str) -> None:
        """Let *statements* happen at production, and take them over; the table beside is always equal."""
        self.number += 1
        self.production.execute(*statements, f"INSERT INTO beside VALUES ({self.number})")
        self.production.archive()
        self.world.sync()
        assert self.world.value("SELECT max(id) FROM beside") == self.number
        assert self.world.checkpoint("beside")[2:] == ("active", None)

    def count(self, table: str = "odd") -> tuple[int, int]:
        query = f"SELECT count(*) FROM {table}"
        return self.production.rows(query)[0][0], self.world.value(query)

    def is_equal(self, table: str) -> bool:
        name = TableName.parse(table)
        return rows_as_text(self.production.database, name) == rows_as_text(self.world.database, name)


@pytest.fixture
def site(
    make_production: Callable[..., Production],
    make_world: Callable[..., World],
    any_postgres: PostgresServer,
) -> Site:
    return Site(make_production(any_postgres), make_world(any_postgres))


@pytest.mark.parametrize("columns", ["", "g int GENERATED ALWAYS AS (1 + 1) STORED"])
def test_a_table_without_columns_of_its_own_arrives_by_every_way(site: Site, columns: str) -> None:
    full = "ALTER TABLE odd REPLICA IDENTITY FULL"
    site.begin(f"CREATE TABLE odd ({columns})", full)
    site.go(*["INSERT INTO odd DEFAULT VALUES"] * 3)
    assert site.count() == (3, 3)
    site.production.snapshot("odd")
    with site.world.service() as service:
        service.resync("odd")
    assert site.count() == (3, 3)
    # From version 18 on PostgreSQL itself refuses DELETEs and UPDATEs of the second one.
    if not columns or site.production.rows("SHOW server_version_num")[0][0] < "180000":
        site.go("DELETE FROM odd WHERE ctid = (SELECT min(ctid) FROM odd)")
        assert site.count() == (2, 2)
        if columns:
            site.go("UPDATE odd SET g = DEFAULT")
            assert site.count() == (2, 2)
    site.go("TRUNCATE odd", "INSERT INTO odd DEFAULT VALUES")
    assert site.count() == (1, 1)


NAMES = ['"a.b"', '"Qu""oted"', '"new\nline"', '"# {"', '" "', '"Ä\u2028"', f'"{"n" * 63}"']


def test_odd_names_of_schemas_tables_and_columns_arrive(site: Site) -> None:
    tables = []
    ddl = []
    for name in NAMES:
        ddl.append(f"CREATE SCHEMA {name}")
        ddl.append(f'CREATE TABLE {name}.{name} ({name} text PRIMARY KEY, {name[:-1][:60]}2" text)')
        tables.append(f"{name}.{name}")
    site.begin(*ddl, tables=tuple(tables))
    for table, name in zip(tables, NAMES, strict=True):
        site.production.execute(
            f"INSERT INTO {table} VALUES ('k', 'v'), ('gone', 'v')",
            f"UPDATE {table} SET {name} = 'K' WHERE {name} = 'k'",
            f"DELETE FROM {table} WHERE {name} = 'gone'",
        )
    site.go()
    for table in tables:
        assert site.is_equal(table), table


@dataclass(frozen=True)
class Way:
    """Something odd but legal that happens to `odd` at production in mid-stream, and what may become of it:
    ``state`` in the end. Beside it goes on in any case."""

    there: tuple[str, ...]
    state: str
    ddl: str = "CREATE TABLE odd (id int PRIMARY KEY, v text)"


WAYS = {
    "the primary key goes": Way(
        ("ALTER TABLE odd DROP CONSTRAINT odd_pkey", "INSERT INTO odd VALUES (7, 'x')"), "blocked"
    ),
    "its replica identity becomes nothing": Way(
        ("ALTER TABLE odd REPLICA IDENTITY NOTHING", "INSERT INTO odd VALUES (7, 'x')"), "active"
    ),
    "the index that identifies rows goes": Way(
        ("DROP INDEX by_code", "INSERT INTO odd VALUES (7, 'x')"),
        "blocked",
        "CREATE TABLE odd (id int NOT NULL, v text); CREATE UNIQUE INDEX by_code ON odd (id);"
        " ALTER TABLE odd REPLICA IDENTITY USING INDEX by_code",
    ),
    "a name with a dot": Way(
        ('ALTER TABLE odd RENAME TO "odd.b"', """INSERT INTO "odd.b" VALUES (7, 'x')"""), "unpublished"
    ),
    "all its columns go": Way(
        ("ALTER TABLE odd DROP COLUMN id, DROP COLUMN v", "INSERT INTO odd DEFAULT VALUES"), "blocked"
    ),
    "it is emptied together with the one beside, identities anew": Way(
        ("TRUNCATE odd, beside RESTART IDENTITY CASCADE", "INSERT INTO odd VALUES (7, 'x')"), "active"
    ),
    "its key column gets an odd name": Way(
        ('ALTER TABLE odd RENAME id TO "i""d\n"', "INSERT INTO odd VALUES (7, 'x')"), "blocked"
    ),
}


@pytest.mark.parametrize("kind", WAYS)
def test_what_happens_to_a_table_in_mid_stream_holds_up_no_other(
    make_production: Callable[..., Production], make_world: Callable[..., World], kind: str
) -> None:
    way, site = WAYS[kind], Site(make_production(), make_world())
    site.begin(way.ddl)
    site.go("INSERT INTO odd VALUES (1, 'a'), (2, 'b')", "UPDATE odd SET v = 'c' WHERE id = 1")
    assert site.is_equal("odd")
    site.go(*way.there)
    state = site.world.checkpoint("odd")[2]
    assert state == ("blocked" if way.state == "blocked" else "active")
    if way.state == "active":
        assert site.is_equal("odd")
    marks = site.world.value("SELECT marks::text FROM data_sync_checkpoints WHERE table_name = 'odd'")
    assert ("unpublished" in marks) == (way.state == "unpublished")
