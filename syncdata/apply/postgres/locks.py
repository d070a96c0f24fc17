"""Who holds a lock that the daemon waits for. Reads the server's views, and takes no lock itself.

A holder is a session, or a prepared transaction, which no session shows and which stays until somebody ends
it by its name. Source: "pg_locks" and "pg_prepared_xacts" of the PostgreSQL documentation. No query's text is
shown: it may hold values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import dict_row

from syncdata.apply.sink import LockedError
from syncdata.changes.names import TableName
from syncdata.errors import ApplyError

# The modes that keep rows from being written, and the temporary copy of a table from being made.
_HOLDERS = """
WITH RECURSIVE part (oid) AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(name)s
    UNION ALL SELECT i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid
)
SELECT DISTINCT h.pid, a.usename, a.application_name, a.xact_start, p.gid
FROM pg_locks h
LEFT JOIN pg_stat_activity a ON a.pid = h.pid
LEFT JOIN pg_locks x ON h.pid IS NULL AND x.virtualtransaction = h.virtualtransaction
    AND x.locktype = 'transactionid' AND x.granted
LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE h.locktype = 'relation' AND h.granted AND h.relation IN (SELECT oid FROM part)
  AND h.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND h.pid IS DISTINCT FROM pg_backend_pid()
  AND h.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""

_WAITS = """
SELECT coalesce(w.relation::regclass::text, '') AS relation,
    extract(epoch FROM clock_timestamp() - w.waitstart)::float8 AS waited_s,
    b.pid, a.usename, a.application_name, a.xact_start,
    (SELECT min(p.gid) FROM pg_locks h
     JOIN pg_locks x ON x.virtualtransaction = h.virtualtransaction AND x.locktype = 'transactionid'
     JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
     WHERE b.pid = 0 AND h.pid IS NULL AND h.granted AND h.locktype = w.locktype
       AND (h.relation = w.relation OR h.transactionid = w.transactionid)) AS gid
FROM pg_locks w
CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS b (pid)
LEFT JOIN pg_stat_activity a ON a.pid = b.pid AND b.pid <> 0
WHERE w.pid = %(pid)s AND NOT w.granted AND w.waitstart < clock_timestamp() - interval '1 second'
"""


@contextmanager
def lock_waits(table: TableName | None) -> Iterator[None]:
    """Turn the end of a wait for a lock (``lock_timeout``) in the block into a LockedError for *table*."""
    try:
        yield
    except psycopg.errors.LockNotAvailable as error:
        raise LockedError(table) from error


def locked_error(connection: Connection[Any], table: TableName | None) -> ApplyError:
    """Return the error for a lock on *table* that others have held for too long, with who they are."""
    rows = _rows(connection, _HOLDERS, schema=table.schema, name=table.name) if table else []
    gids = sorted(row["gid"] for row in rows if row["gid"])
    remedy = (
        f"end it: COMMIT PREPARED or ROLLBACK PREPARED '{gids[0]}'" if gids else "let that transaction end"
    )
    return ApplyError(
        f"it is locked by {' and '.join(map(_holder, rows)) or 'another transaction'}",
        hint=f"{remedy}; the table is tried again in every cycle",
        table=None if table is None else str(table),
    )


def describe_waits(connection: Connection[Any], pid: int) -> list[str]:
    """Return for what and for whom the session *pid* has been waiting for over a second; mostly nothing."""
    return [
        f"the daemon has been waiting for {row['waited_s']:.0f} seconds for a lock on"
        f" {row['relation'] or 'a row'}, which {_holder(row)} holds"
        for row in _rows(connection, _WAITS, pid=pid)
    ]


def _holder(row: dict[str, Any]) -> str:
    if row["gid"]:
        return f"the prepared transaction '{row['gid']}'"
    if not row["pid"]:
        return "a prepared transaction (see pg_prepared_xacts)"
    since = row["xact_start"]
    parts = [
        row["usename"],
        row["application_name"],
        since and f"in a transaction since {since.isoformat(timespec='seconds')}",
    ]
    known = ", ".join(part for part in parts if part)
    return f"process {row['pid']}" + (f" ({known})" if known else "")


def _rows(connection: Connection[Any], query: str, **parameters: object) -> list[dict[str, Any]]:
    return connection.cursor(row_factory=dict_row).execute(query, parameters).fetchall()
