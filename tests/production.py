"""A production side for a test: a database with publication and slot, and the archiver that reads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from syncdata.archive.archive import Archive, open_archive
from syncdata.archive.local import LocalSettings
from syncdata.capture.archiver import Archiver
from syncdata.capture.chain import load_chain
from syncdata.capture.settings import CaptureSettings
from syncdata.capture.snapshot import TakenSnapshot, take_snapshots
from syncdata.capture.source import TEXT_SETTINGS
from syncdata.changes.names import TableName
from syncsite.demo.postgres import PostgresServer
from tests.postgres import Database, create_database, drop_database

PUBLICATION = "syncdata"
_numbers = count(1)
_PATIENCE_S = 40.0


@dataclass
class Production:
    """`execute` SQL at the source, `archive` it, and take `snapshot`s; the files lie in `archive_dir`."""

    database: Database
    archive_dir: Path
    spool_dir: Path
    slot_name: str
    options: dict[str, Any] = field(default_factory=dict)
    login: dict[str, Any] = field(default_factory=dict)
    """What the archiver connects with otherwise than `connect`."""

    @property
    def settings(self) -> CaptureSettings:
        return CaptureSettings(
            params=self.database.params | self.login,
            slot_name=self.slot_name,
            publication=PUBLICATION,
            spool_dir=self.spool_dir,
            **self.options,
        )

    def open_archive(self) -> Archive:
        return open_archive(LocalSettings(directory=self.archive_dir))

    def archiver(self, **options: Any) -> Archiver:
        return Archiver(self.settings, self.open_archive, **options)

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

    def archive(self, **options: Any) -> None:
        """Put all that was committed before now into the archive. The options are Archiver's."""
        self.archiver(**options).run_once(threading.Event())

    def snapshot(
        self, *tables: str, stop: threading.Event | None = None, **options: Any
    ) -> list[TakenSnapshot]:
        """Take one of each table, all at one point. The options are those of `take_snapshots`."""
        chain = load_chain(self.spool_dir) or self.archiver().open_chain()
        return take_snapshots(
            self.settings,
            self.open_archive,
            chain,
            [TableName.parse(table) for table in tables],
            stop=stop or threading.Event(),
            **options,
        )

    def create_slot(self) -> None:
        self.execute(f"SELECT pg_create_logical_replication_slot('{self.slot_name}', 'pgoutput')")

    def drop_slot(self) -> None:
        """Fine when there is none."""
        self.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            f" WHERE slot_name = '{self.slot_name}'"
        )


def rows_as_text(database: Database, table: TableName) -> list[dict[str, str | None]]:
    """Return the table's rows in PostgreSQL's text form, in an order of their own; generated columns, too."""
    options = " ".join(f"-c {name}={value.replace(' ', '')}" for name, value in TEXT_SETTINGS.items())
    relation = sql.Identifier(table.schema, table.name)
    with database.connect(options=options) as connection:
        columns = [
            name
            for (name,) in connection.execute(
                "SELECT attname::text FROM pg_attribute"
                " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attname",
                (relation.as_string(None),),
            )
        ]
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(names, relation)
        with connection.cursor().copy(query) as copy:
            rows = sorted(copy.rows(), key=lambda row: [(value is not None, value) for value in row])
    return [dict(zip(columns, row, strict=True)) for row in rows]


def differences(source: Database, target: Database, tables: Iterable[str]) -> list[str]:
    """Return where the rows are not byte for byte the same in both: `table`, or `table.column`."""
    found = []
    for table in tables:
        ours, theirs = (rows_as_text(side, TableName.parse(table)) for side in (source, target))
        if ours != theirs:
            columns = {
                name
                for one, other in zip(ours, theirs, strict=False)
                for name in one
                if one[name] != other.get(name)
            }
            found += [f"{table}.{name}" for name in sorted(columns)] or [table]
    return found


@pytest.fixture
def make_production(postgres: PostgresServer, tmp_path: Path) -> Iterator[Callable[..., Production]]:
    """`make_production()` on the default server, `make_production(server)` elsewhere; any number of them.

    The publication is empty at first. Its database is of *encoding*, else of the server's default. Other
    keyword arguments are those of CaptureSettings.
    """
    with ExitStack() as cleanup:

        def make(
            server: PostgresServer = postgres, *, encoding: str | None = None, **options: Any
        ) -> Production:
            name = f"production_{next(_numbers)}"
            create_database(server, name, encoding=encoding)
            cleanup.callback(drop_database, server, name)
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


@contextmanager
def archiving(source: Production) -> Iterator[None]:
    """Let an archiver run beside the block."""
    stop = threading.Event()
    thread = threading.Thread(target=source.archiver().run_loop, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_PATIENCE_S)
        assert not thread.is_alive()


def until(is_so: Callable[[], Any]) -> None:
    """Wait for what an archiver does by itself."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def until_archived(production: Production) -> None:
    """Wait until all that was committed before now is in the archive."""
    ((lsn,),) = production.rows("SELECT pg_current_wal_lsn()::text")
    query = (
        f"SELECT FROM pg_replication_slots WHERE slot_name = '{production.slot_name}'"
        f" AND confirmed_flush_lsn >= '{lsn}'"
    )
    until(lambda: production.rows(query))
