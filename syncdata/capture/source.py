"""Connections to the source database, and its identity. Knows psycopg; reads no changes and no tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from syncdata.capture.refusals import source_errors
from syncdata.changes.position import parse_lsn
from syncdata.runtime import session_settings
from syncdata.runtime.session_settings import SESSION_SETTINGS, pin_statement

# The text forms of values depend on these settings, so they are pinned, whatever the defaults of the role or
# the database are. With this search_path, names of tables, types and functions in values carry their schema.
TEXT_SETTINGS = session_settings.TEXT_SETTINGS | {"search_path": "pg_catalog"}
# The server asks for an answer after half of this time without one. We report more often than that, so a
# server that asks is one that shuts down.
_SENDER_SETTINGS = {"wal_sender_timeout": "60s", "client_min_messages": "warning"}
# With the kernel's defaults, it would take hours to notice that the source's host has vanished.
NETWORK = {"connect_timeout": 10, "tcp_user_timeout": 60_000, "keepalives_idle": 30}


# The first eight digits of a WAL file's name are its timeline.
_TIMELINE = """
SELECT CASE WHEN NOT pg_is_in_recovery()
       THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemIdentity:
    """A source system: its identifier, its timeline, and how far its WAL is written (``wal_lsn``).

    ``switches``: by earlier timeline, the position at which the history of this one left it. ``is_standby``:
    it follows another server, and hands over no changes.
    """

    system_id: str
    timeline: int
    wal_lsn: int
    switches: Mapping[int, int] = field(default_factory=dict)
    is_standby: bool = False


def within_limits(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return psycopg's *params*, with a time limit on the network where they set none."""
    return NETWORK | {name: value for name, value in params.items() if value is not None}


@contextmanager
def connect(params: Mapping[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    """Open an ordinary connection in autocommit mode for the block.

    Raises SourceConnectionError or SourceSetupError for all that the driver raises in the block.
    """
    with source_errors(), psycopg.connect(**within_limits(params), autocommit=True) as connection:
        connection.execute(pin_statement(SESSION_SETTINGS))
        yield connection


def read_timeline(connection: psycopg.Connection[Any]) -> int | None:
    """Return the timeline that the server writes, over an ordinary connection; None for a standby."""
    row = connection.execute(_TIMELINE).fetchone()
    return None if row is None else row[0]


def connect_for_replication(params: Mapping[str, Any]) -> psycopg.Connection[Any]:
    """Return a replication connection in autocommit mode whose values come in one text form.

    Its statements must have no parameters: such a connection knows the simple query protocol only. Raises
    psycopg.Error.
    """
    settings = TEXT_SETTINGS | _SENDER_SETTINGS
    options = " ".join(f"-c {name}={value.replace(' ', '')}" for name, value in settings.items())
    given = within_limits(params)
    if mine := given.pop("options", ""):
        options = f"{mine} {options}"
    connection = psycopg.connect(**given, replication="database", options=options, autocommit=True)
    # A statement that comes again and again would be prepared, which the simple protocol does not know. Test:
    # test_odd_names_of_schemas_tables_and_columns_arrive, which copies more tables than that takes.
    connection.prepare_threshold = None
    try:
        connection.execute(pin_statement(SESSION_SETTINGS))
    except psycopg.Error:
        connection.close()
        raise
    return connection


def read_identity(connection: psycopg.Connection[Any]) -> SystemIdentity:
    """Return the system that a replication connection is connected to. Raises psycopg.Error."""
    row = connection.execute("IDENTIFY_SYSTEM").fetchone()
    assert row is not None
    standby = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    timeline = int(row[1])
    return SystemIdentity(
        system_id=str(row[0]),
        timeline=timeline,
        wal_lsn=parse_lsn(row[2]),
        switches=_read_switches(connection, timeline),
        is_standby=standby is not None and bool(standby[0]),
    )


def _read_switches(connection: psycopg.Connection[Any], timeline: int) -> dict[int, int]:
    """Return where each earlier timeline ended; none where the server has kept no history of *timeline*."""
    if timeline == 1:  # the first one has no history
        return {}
    try:
        row = connection.execute(sql.SQL("TIMELINE_HISTORY {}").format(timeline)).fetchone()
    except psycopg.errors.DatabaseError:
        if connection.broken:
            raise
        return {}
    return {} if row is None else parse_timeline_history(row[1])


def parse_timeline_history(content: bytes | str) -> dict[int, int]:
    """Return, by timeline, the position at which the next one left it.

    Source: "readTimeLineHistory" of PostgreSQL: a line a timeline, as ``1 0/3000060 no recovery target``;
    blank lines and those that begin with # are comments.
    """
    text = content.decode(errors="replace") if isinstance(content, bytes) else content
    found = {}
    for line in text.splitlines():
        fields = line.split(None, 2)
        if len(fields) >= 2 and not fields[0].startswith("#"):
            found[int(fields[0])] = parse_lsn(fields[1])
    return found
