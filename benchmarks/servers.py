"""Databases of a benchmark: their servers, schema, rows, copies and checksums. Knows nothing of change files.

Two servers that flush to the disk: the source, in production's place, and the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from syncsite.demo.postgres import SETTINGS, PostgresServer, embedded_binaries, system_binaries

# The last one keeps the pause before a subscription's worker starts out of what is measured.
DURABLE = SETTINGS | {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "max_replication_slots": "30",
    "max_wal_senders": "30",
    "max_locks_per_transaction": "256",
    "wal_retrieve_retry_interval": "100ms",
}
SETTINGS_OF_TEXT = "-c timezone=UTC -c extra_float_digits=1 -c datestyle=ISO"


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    source: PostgresServer
    target: PostgresServer


@contextmanager
def running_servers(version: str | None = None) -> Iterator[Servers]:
    """Two new servers, of PostgreSQL *version*, else of the system's, else of the embedded one."""
    binaries = _binaries(version)
    servers = Servers(
        source=PostgresServer(binaries=binaries, settings=DURABLE),
        target=PostgresServer(binaries=binaries, settings=DURABLE | {"wal_level": "replica"}),
    )
    try:
        servers.source.start()
        servers.target.start()
        yield servers
    finally:
        servers.source.stop()
        servers.target.stop()


def _binaries(version: str | None) -> Path:
    found = {path.parent.name: path for path in system_binaries()}
    if version is None:
        return next(iter(found.values()), None) or embedded_binaries()
    return found.get(version) or embedded_binaries(int(version))


def execute(server: PostgresServer, database: str, *statements: str) -> None:
    """Run each statement in a transaction of its own."""
    with server.connect(database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def value(server: PostgresServer, database: str, query: str) -> str:
    """Return the one value that *query* finds, as text."""
    with server.connect(database, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return str(row[0])


def make_database(server: PostgresServer, name: str, template: str = "template1") -> None:
    """Make the database *name*, a copy of *template*, and flush it."""
    copy = (
        " STRATEGY file_copy" if int(value(server, "postgres", "SHOW server_version_num")) >= 150_000 else ""
    )
    execute(server, "postgres", f"CREATE DATABASE {name} TEMPLATE {template}{copy}", "CHECKPOINT")


def drop_database(server: PostgresServer, name: str) -> None:
    execute(server, "postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def copy_rows(source: psycopg.Connection, target: psycopg.Connection, tables: Sequence[str]) -> None:
    """Copy the rows of *tables* from *source* to the same tables of *target*."""
    for table in tables:
        name = sql.Identifier(table)
        with (
            source.cursor().copy(sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(name)) as rows,
            target.cursor().copy(sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(name)) as copy,
        ):
            for block in rows:
                copy.write(block)


def checksum(server: PostgresServer, database: str, tables: Sequence[str]) -> str:
    """Return the number of all rows, and a sum of their hashes, in which their order does not count."""
    counts = (
        "SELECT '{0}' AS name, count(*) AS n, coalesce(sum(hashtextextended(t::text, 0)), 0) AS h FROM {0} t"
    )
    every = " UNION ALL ".join(counts.format(table) for table in tables)
    query = f"SELECT sum(n) || ' rows, ' || md5(string_agg(name || h, ',' ORDER BY name)) FROM ({every}) _"
    with server.connect(database, options=SETTINGS_OF_TEXT) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return str(row[0])
