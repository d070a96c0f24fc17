"""Connections to the source database, and its identity. Knows psycopg; reads no changes and no tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from syncdata.capture.refusals import source_errors
from syncdata.changes.position import parse_lsn

# The text forms of values depend on these settings, so they are pinned, whatever the defaults of the role or
# the database are. With this search_path, names of tables, types and functions in values carry their schema.
TEXT_SETTINGS = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "search_path": "pg_catalog",
}
# The server asks for an answer after half of this time without one. We report more often than that, so a
# server that asks is one that shuts down.
_SENDER_SETTINGS = {"wal_sender_timeout": "60s", "client_min_messages": "warning"}
# Switches off the timeouts that a role or a database may have for its applications. `set_config` on
# pg_settings does it, since not every version has all of them.
PATIENCE = """
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout',
               'idle_in_transaction_session_timeout', 'idle_session_timeout')
"""
# With the kernel's defaults, it would take hours to notice that the source's host has vanished.
NETWORK = {"connect_timeout": 10, "tcp_user_timeout": 60_000, "keepalives_idle": 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemIdentity:
    """A source system: its identifier, its timeline, and how far its WAL is written (``wal_lsn``)."""

    system_id: str
    timeline: int
    wal_lsn: int


@contextmanager
def connect(params: Mapping[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """Open an ordinary connection in autocommit mode for the block.

    Raises SourceConnectionError or SourceSetupError for all that the driver raises in the block.
    """
    with source_errors(), psycopg.connect(**params, autocommit=True) as connection:
        yield connection


def connect_for_replication(params: Mapping[str, Any]) -> psycopg.Connection[Any]:
    """Return a replication connection in autocommit mode whose values come in one text form.

    Its statements must have no parameters: such a connection knows the simple query protocol only. Raises
    psycopg.Error.
    """
    settings = TEXT_SETTINGS | _SENDER_SETTINGS
    options = " ".join(f"-c {name}={value.replace(' ', '')}" for name, value in settings.items())
    given = NETWORK | {name: value for name, value in params.items() if value is not None}
    if mine := given.pop("options", ""):
        options = f"{mine} {options}"
    return psycopg.connect(**given, replication="database", options=options, autocommit=True)


def read_identity(connection: psycopg.Connection[Any]) -> SystemIdentity:
    """Return the system that a replication connection is connected to. Raises psycopg.Error."""
    row = connection.execute("IDENTIFY_SYSTEM").fetchone()
    assert row is not None
    return SystemIdentity(system_id=str(row[0]), timeline=int(row[1]), wal_lsn=parse_lsn(row[2]))
