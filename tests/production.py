"""A production side for a test: a database with publication and slot, and the archiver that reads it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from syncdata.capture.archiver import Archiver, CaptureSettings
from syncdata.capture.snapshot import TakenSnapshot, take_snapshots
from syncdata.engine.archive import LocalArchive, LocalSettings
from syncdata.engine.changes import TableName
from syncsite.demo.postgres import PostgresServer
from tests.postgres import Database

PUBLICATION = "syncdata"
_numbers = count(1)


@dataclass
class Production:
    """`execute` SQL at the source, `archive` it, and take `snapshot`s; the files lie in `archive_dir`."""

    database: Database
    archive_dir: Path
    spool_dir: Path
    slot_name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> CaptureSettings:
        return CaptureSettings(
            params=self.database.params,
            slot_name=self.slot_name,
            publication=PUBLICATION,
            spool_dir=self.spool_dir,
            **self.options,
        )

    def open_archive(self) -> LocalArchive:
        return LocalArchive(LocalSettings(directory=self.archive_dir))

    def archiver(self) -> Archiver:
        return Archiver(self.settings, self.open_archive)

    def connect(self, **kwargs: Any) -> psycopg.Connection[Any]:
        return self.database.connect(autocommit=True, **kwargs)

    def execute(self, *statements: str) -> None:
        """Each statement is a transaction of its own."""
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            return connection.execute(query).fetchall()

    def publish(self, *tables: str) -> None:
        """Add tables to the publication; the names may need no quotes for it."""
        for table in tables:
            name = TableName.parse(table)
            self.execute(
                sql.SQL("ALTER PUBLICATION {} ADD TABLE {}")
                .format(sql.Identifier(PUBLICATION), sql.Identifier(name.schema, name.name))
                .as_string(None)
            )

    def archive(self) -> None:
        """Put all that was committed before now into the archive."""
        self.archiver().run_once(threading.Event())

    def snapshot(self, *tables: str, stop: threading.Event | None = None) -> list[TakenSnapshot]:
        chain = self.archiver().open_chain()
        names = [TableName.parse(table) for table in tables]
        return take_snapshots(self.settings, self.open_archive, chain, names, stop=stop or threading.Event())

    def create_slot(self) -> None:
        self.execute(f"SELECT pg_create_logical_replication_slot('{self.slot_name}', 'pgoutput')")

    def drop_slot(self) -> None:
        """Fine when there is none."""
        self.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            f" WHERE slot_name = '{self.slot_name}'"
        )


@pytest.fixture
def make_production(postgres: PostgresServer, tmp_path: Path) -> Iterator[Callable[..., Production]]:
    """`make_production()` on the default server, `make_production(server)` elsewhere; any number of them.

    The publication is empty at first. Keyword arguments are those of CaptureSettings.
    """
    with ExitStack() as cleanup:

        def make(server: PostgresServer = postgres, **options: Any) -> Production:
            name = f"production_{next(_numbers)}"
            _execute(server, "CREATE DATABASE {}", name)
            cleanup.callback(_execute, server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
            archive_dir, spool_dir = tmp_path / name / "archive", tmp_path / name / "spool"
            archive_dir.mkdir(parents=True)
            made = Production(Database(server, name), archive_dir, spool_dir, f"slot_of_{name}", options)
            made.execute(f"CREATE PUBLICATION {PUBLICATION} WITH (publish_via_partition_root)")
            made.create_slot()
            cleanup.callback(made.drop_slot)
            return made

        yield make


@pytest.fixture
def production(make_production: Callable[..., Production]) -> Production:
    return make_production()


def _execute(server: PostgresServer, statement: str, *names: str) -> None:
    with server.connect(autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
