"""Real PostgreSQL servers and fresh databases for the tests.

`postgres` is the default server (embedded PostgreSQL 18); `any_postgres` is every server of the run, one
after the other (`tests.matrix` says which those are); `fresh_database()` makes an empty database on either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from syncsite.demo.postgres import PostgresServer, embedded_binaries, system_binaries
from tests.fetch_postgres import fetched_binaries

DEFAULT_SERVER = pytest.StashKey[PostgresServer]()


@dataclass(frozen=True, slots=True)
class Database:
    """One empty database on a running server."""

    server: PostgresServer
    name: str

    @property
    def params(self) -> dict[str, Any]:
        """Keyword arguments for `psycopg.connect`."""
        return self.server.params(self.name)

    @property
    def pg_keys(self) -> dict[str, Any]:
        """The same as the `pg_*` keys of a SyncConfig."""
        return {
            "pg_host": self.server.host,
            "pg_port": self.server.port,
            "pg_user": self.server.user,
            "pg_password": self.server.password,
            "pg_database": self.name,
        }

    def connect(self, **kwargs: Any) -> psycopg.Connection[Any]:
        return self.server.connect(self.name, **kwargs)


def other_servers() -> dict[str, Path]:
    """Return the binaries to test besides the default ones: the system's, else another embedded version."""
    found = {path.parent.name: path for path in system_binaries()}
    return found or {"16": embedded_binaries(16)}


VERSIONS = ["18", *other_servers()]


def all_versions() -> list[str]:
    """Return the versions of the matrix. Raises UsageError when one of them is not on this machine."""
    versions = ["14", "15", "16", "17", "18"]
    missing = [version for version in versions if not binaries_of(version).exists()]
    if missing:
        raise pytest.UsageError(f"PostgreSQL {', '.join(missing)} is missing here: `make matrix` gets it")
    return versions


def binaries_of(version: str) -> Path:
    """Return the directory of the binaries: the virtual environment's, the system's, or fetched ones."""
    if version == "18":
        return embedded_binaries()
    return other_servers().get(version) or fetched_binaries(version)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The default server: embedded PostgreSQL 18, `wal_level=logical`, a superuser with a password."""
    server = request.config.stash[DEFAULT_SERVER]
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(postgres: PostgresServer) -> Iterator[Callable[[str], PostgresServer]]:
    """`postgres_server("15")` is the server of that version, started when asked for."""
    with ExitStack() as cleanup:
        servers = {"18": postgres}

        def of_version(version: str) -> PostgresServer:
            if version not in servers:
                server = PostgresServer(binaries=binaries_of(version))
                server.start()
                cleanup.callback(server.stop)
                servers[version] = server
            return servers[version]

        yield of_version


@pytest.fixture(scope="session")
def any_postgres(
    request: pytest.FixtureRequest, postgres_server: Callable[[str], PostgresServer]
) -> PostgresServer:
    """Every PostgreSQL server of the run, one after the other."""
    return postgres_server(request.param)


_numbers = count(1)


@pytest.fixture
def fresh_database(postgres: PostgresServer) -> Iterator[Callable[..., Database]]:
    """`fresh_database()` makes an empty database on the default server, `fresh_database(other)` there.

    With a *template* it is a copy of that database.
    """
    with ExitStack() as cleanup:

        def make(server: PostgresServer = postgres, *, template: str = "template1") -> Database:
            database = Database(server, f"fresh_{next(_numbers)}")
            create_database(server, database.name, template=template)
            cleanup.callback(drop_database, server, database.name)
            return database

        yield make


def create_database(
    server: PostgresServer, name: str, *, template: str = "template1", encoding: str | None = None
) -> None:
    """Make a database that is a copy of *template*, or an empty one of *encoding*."""
    with server.connect(autocommit=True) as connection:
        # By way of the WAL, as is the default, it takes twice the time, and every slot reads all of it.
        copy = " STRATEGY file_copy" if connection.info.server_version >= 150_000 else ""
        if encoding is not None:
            template, copy = "template0", f"{copy} ENCODING '{encoding}' LOCALE 'C'"
        names = map(sql.Identifier, (name, template))
        connection.execute(sql.SQL(f"CREATE DATABASE {{}} TEMPLATE {{}}{copy}").format(*names))


def drop_database(server: PostgresServer, name: str) -> None:
    """Drop it together with the sessions in it. Fine when there is none."""
    with server.connect(autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
