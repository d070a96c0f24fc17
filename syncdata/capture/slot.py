"""A replication slot and a publication as the source's catalog shows them. Knows two queries; opens no
connection, and decides nothing of what it reads.

Source: "pg_replication_slots" and "pg_publication_tables" of the PostgreSQL documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection, sql
from psycopg.rows import dict_row

from syncdata.changes.names import TableName
from syncdata.changes.position import format_lsn, parse_lsn

PLUGIN = "pgoutput"

# A standby has slots, too, but no current WAL position: setup_logical_replication --check reads both.
_SLOT = """
SELECT s.slot_name, s.plugin, s.database, s.temporary AS is_temporary, s.active_pid, s.wal_status,
       CASE WHEN s.active_pid IS NOT NULL THEN concat_ws(', ', 'role ' || a.usename,
            'application ' || nullif(a.application_name, ''), 'host ' || host(a.client_addr),
            'pid ' || s.active_pid) END AS reader,
       s.confirmed_flush_lsn::text AS confirmed_lsn, wal.lsn::text AS wal_lsn,
       wal.lsn - s.restart_lsn AS retained_bytes,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_mb,
       coalesce((to_jsonb(s) ->> 'failover')::boolean, false) AS is_failover
FROM pg_replication_slots s
LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
CROSS JOIN LATERAL (
    SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn
) AS wal
WHERE s.slot_name = {name}
"""
_MB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A slot that exists. All that was committed before ``confirmed_lsn`` counts as received.

    ``reader`` is the session that reads it now, as ``role archiver, application syncdata, pid 812``; None
    when nobody does. The server keeps ``retained_bytes`` of WAL for it, and may keep ``limit_bytes`` (None:
    any amount). ``wal_status`` is the catalog's. A physical slot has neither plugin nor database.
    ``is_failover``: standbys may keep a copy of it (PostgreSQL 17 and later).
    """

    name: str
    plugin: str | None
    database: str | None
    is_temporary: bool
    active_pid: int | None
    reader: str | None
    wal_status: str | None
    confirmed_lsn: int | None
    wal_lsn: int
    retained_bytes: int
    limit_bytes: int | None
    is_failover: bool = False

    @property
    def is_lost(self) -> bool:
        """True when the server has removed WAL that the slot needs."""
        return self.wal_status == "lost"

    @property
    def lag_bytes(self) -> int:
        """The amount of WAL that was written after the confirmed position."""
        return max(0, self.wal_lsn - (self.confirmed_lsn or 0))

    @property
    def retention_share(self) -> float | None:
        """The share of ``limit_bytes`` that is kept now: at 1.0 the slot is about to be lost."""
        return None if self.limit_bytes is None else self.retained_bytes / max(self.limit_bytes, 1)


def read_slot(connection: Connection[Any], name: str) -> Slot | None:
    """Return the slot called *name*, or None. Works on replication connections, too; so no parameters."""
    query = sql.SQL(_SLOT).format(name=sql.Literal(name))
    row = connection.cursor(row_factory=dict_row).execute(query).fetchone()
    if row is None:
        return None
    return Slot(
        name=row["slot_name"],
        plugin=row["plugin"],
        database=row["database"],
        is_temporary=row["is_temporary"],
        active_pid=row["active_pid"],
        reader=row["reader"],
        wal_status=row["wal_status"],
        confirmed_lsn=parse_lsn(row["confirmed_lsn"]) if row["confirmed_lsn"] else None,
        wal_lsn=parse_lsn(row["wal_lsn"]),
        retained_bytes=int(row["retained_bytes"] or 0),
        limit_bytes=None if row["keep_mb"] == -1 else row["keep_mb"] * _MB,
        is_failover=row["is_failover"],
    )


def advance_slot(connection: Connection[Any], name: str, lsn: int) -> None:
    """Let the slot *name*, which nobody reads, count all that was committed before *lsn* as received."""
    connection.execute("SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", (name, format_lsn(lsn)))


def published_tables(connection: Connection[Any], publication: str) -> set[TableName]:
    """Return the tables whose changes *publication* has; none where it does not exist."""
    rows = connection.execute(
        "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = %s",
        (publication,),
    ).fetchall()
    return {TableName(*row) for row in rows}
