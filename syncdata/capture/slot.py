"""A slot and a publication as the source's catalog shows them. Knows two queries; connects to nothing.

Source: "pg_replication_slots" and "pg_publication_tables" of the PostgreSQL documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection, sql
from psycopg.rows import dict_row

from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn

_SLOT = """
SELECT slot_name, plugin, slot_type, database, active_pid, wal_status, safe_wal_size,
       confirmed_flush_lsn::text AS confirmed_lsn, restart_lsn::text AS restart_lsn,
       pg_current_wal_lsn()::text AS wal_lsn,
       pg_current_wal_lsn() - restart_lsn AS retained_bytes,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_mb
FROM pg_replication_slots WHERE slot_name = {name}
"""
_MB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """``confirmed_lsn``: all that was committed before it counts as received. ``retained_bytes``: the WAL
    that the slot keeps from being removed; ``limit_bytes``: how much it may keep (None: any amount).
    ``is_lost``: the server has removed WAL that the slot needs."""

    name: str
    plugin: str | None
    database: str | None
    active_pid: int | None
    confirmed_lsn: int | None
    wal_lsn: int
    retained_bytes: int
    limit_bytes: int | None
    is_lost: bool

    @property
    def lag_bytes(self) -> int:
        """How much WAL was written after what is confirmed."""
        return max(0, self.wal_lsn - (self.confirmed_lsn or 0))

    @property
    def retention_share(self) -> float | None:
        """How much of the WAL that may be kept for the slot is: 1.0 when it is about to be lost."""
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
        active_pid=row["active_pid"],
        confirmed_lsn=parse_lsn(row["confirmed_lsn"]) if row["confirmed_lsn"] else None,
        wal_lsn=parse_lsn(row["wal_lsn"]),
        retained_bytes=int(row["retained_bytes"] or 0),
        limit_bytes=None if row["keep_mb"] == -1 else row["keep_mb"] * _MB,
        is_lost=row["wal_status"] == "lost",
    )


def published_tables(connection: Connection[Any], publication: str) -> set[TableName]:
    """Return the tables whose changes *publication* has; none where it does not exist."""
    rows = connection.execute(
        "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = %s",
        (publication,),
    ).fetchall()
    return {TableName(*row) for row in rows}
