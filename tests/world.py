"""A whole local side for a test: a migrated database, an archive directory, and the service between them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections

from syncdata.conf import SyncConfig, config_from_settings
from syncdata.service import SyncDataService, SyncResult
from syncsite.demo.postgres import PostgresServer
from tests.postgres import Database, create_database, drop_database

_TEMPLATE = "syncdata_template"
_numbers = count(1)


@dataclass
class World:
    """`write` change files into `archive`, `sync`, and look at the `rows`."""

    database: Database
    archive: Path
    state_dir: Path
    alias: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> SyncConfig:
        keys = {"archive_backend": "local", "archive_dir": self.archive, **self.options}
        return config_from_settings({"database": self.alias, "state_dir": self.state_dir, **keys}, {})

    @property
    def toml(self) -> str:
        """The configuration as the file that commands in other processes read."""
        keys = {
            "archive_backend": "local",
            "archive_dir": str(self.archive),
            **self.database.pg_keys,
            **self.options,
        }
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())

    def service(self, **options: Any) -> SyncDataService:
        return SyncDataService(self.config, **options)

    def sync(self) -> SyncResult:
        with self.service() as service:
            return service.run_once()

    def whitelist(self, *tables: str) -> None:
        with self.service() as service:
            service.add_tables(tables)

    def write(self, name: str, records: Iterable[dict[str, Any] | str]) -> Path:
        """Write a plain change file; a string is a line as it is."""
        lines = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in records)
        path = self.archive / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def use_ordinary_role(self) -> None:
        """From now on the service's role is no superuser: it may neither silence triggers nor own tables."""
        self.execute(
            "DO $$ BEGIN CREATE ROLE ordinary LOGIN PASSWORD 'ordinary';"
            " EXCEPTION WHEN duplicate_object THEN NULL; END $$",
            *(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO ordinary" for kind in ("TABLES", "SEQUENCES")),
        )
        connections.databases[self.alias] |= {"USER": "ordinary", "PASSWORD": "ordinary"}

    def connect(self) -> psycopg.Connection[Any]:
        return self.database.connect(autocommit=True)

    def execute(self, *statements: str) -> None:
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            return connection.execute(query).fetchall()

    def value(self, query: str) -> Any:
        ((value,),) = self.rows(query)
        return value

    def checkpoint(self, table: str) -> tuple[str, int, str, str | None]:
        ((file, number, state, error),) = self.rows(
            "SELECT file, record_number, state, error FROM data_sync_checkpoints"
            f" WHERE table_name = '{table}'"
        )
        return file, number, state, error


def insert(table: str, ts: str = "2026-02-05T10:30:00Z", **data: Any) -> dict[str, Any]:
    return {"table": table, "op": "INSERT", "data": data, "lsn": "0/1", "ts": ts}


def update(
    table: str, old_keys: dict[str, Any] | None = None, ts: str = "2026-02-05T10:30:00Z", **data: Any
) -> dict[str, Any]:
    record = {"table": table, "op": "UPDATE", "data": data, "lsn": "0/1", "ts": ts}
    return record | ({"old_keys": old_keys} if old_keys else {})


def delete(table: str, ts: str = "2026-02-05T10:30:00Z", **old_keys: Any) -> dict[str, Any]:
    return {"table": table, "op": "DELETE", "old_keys": old_keys, "lsn": "0/1", "ts": ts}


def truncate(table: str, ts: str = "2026-02-05T10:30:00Z") -> dict[str, Any]:
    return {"table": table, "op": "TRUNCATE", "lsn": "0/1", "ts": ts}


@pytest.fixture
def make_world(
    postgres: PostgresServer, tmp_path: Path, django_db_blocker: Any
) -> Iterator[Callable[..., World]]:
    """`make_world()` on the default server, `make_world(server)` elsewhere; any number of them."""
    with ExitStack() as cleanup:
        cleanup.enter_context(django_db_blocker.unblock())

        def make(server: PostgresServer = postgres, **options: Any) -> World:
            name = f"world_{next(_numbers)}"
            try:
                create_database(server, name, template=_TEMPLATE)
            except psycopg.errors.InvalidCatalogName:  # the first world on this server
                _make_template(server)
                create_database(server, name, template=_TEMPLATE)
            cleanup.callback(drop_database, server, name)
            database = Database(server, name)
            _add_alias(name, database)
            cleanup.callback(connections.databases.pop, name)
            archive, state_dir = tmp_path / name / "archive", tmp_path / name
            archive.mkdir(parents=True)
            return World(database, archive, state_dir, name, options)

        yield make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture
def any_world(make_world: Callable[..., World], any_postgres: PostgresServer) -> World:
    """A world on every PostgreSQL server found, one after the other."""
    return make_world(any_postgres)


def _make_template(server: PostgresServer) -> None:
    create_database(server, _TEMPLATE)
    _add_alias(_TEMPLATE, Database(server, _TEMPLATE))
    try:
        call_command("migrate", database=_TEMPLATE, verbosity=0)
    finally:
        connections[_TEMPLATE].close()
        del connections[_TEMPLATE]
        del connections.databases[_TEMPLATE]


def _add_alias(alias: str, database: Database) -> None:
    values = copy.deepcopy(connections.databases["default"])
    keys = {"NAME": "pg_database", "HOST": "pg_host", "PORT": "pg_port", "USER": "pg_user"}
    values |= {key: database.pg_keys[pg_key] for key, pg_key in keys.items()}
    values["PASSWORD"] = database.pg_keys["pg_password"]
    connections.databases[alias] = values


def with_header(
    records: Iterable[dict[str, Any]],
    *,
    seq: int,
    prev: str | None,
    system_id: str = "7000",
    start: int = 0,
) -> bytes:
    """Return a change file as syncdata's own archiver writes it, a transaction a record."""
    stamped = [record | {"commit_lsn": f"0/{start + n + 1:X}"} for n, record in enumerate(records)]
    header = {
        "syncdata": 1,
        "system_id": system_id,
        "timeline": 1,
        "slot": "syncdata_slot",
        "epoch": "1",
        "seq": seq,
        "prev": prev,
    }
    body = f"# {json.dumps(header, separators=(',', ':'))}\n".encode()
    body += b"".join(json.dumps(record).encode() + b"\n" for record in stamped)
    footer = {
        "end": True,
        "records": len(stamped),
        "transactions": len(stamped),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return body + f"# {json.dumps(footer, separators=(',', ':'))}\n".encode()
