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
