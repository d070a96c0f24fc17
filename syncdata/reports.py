"""What the books say, read over any connection to their database. Knows their columns; changes nothing."""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from syncdata.status import TableInfo, table_info

# Busy: a batch has committed lately, so a cycle that takes long is at work, not stuck.
_LATEST_RUN = """
SELECT r.*, coalesce((SELECT max(last_sync_at) FROM data_sync_checkpoints) > now() - interval '5 minutes',
    false) AS is_busy
FROM data_sync_runs r ORDER BY id DESC LIMIT 1
"""

_TABLES = """
SELECT c.*, w.table_name, w.creator, w.created_at FROM tables_to_sync w
LEFT JOIN data_sync_checkpoints c ON c.table_name = w.table_name ORDER BY w.table_name
"""


def read_tables(connection: Connection[Any]) -> list[TableInfo]:
    """Return the whitelist with each table's checkpoint."""
    rows = connection.cursor(row_factory=dict_row).execute(_TABLES).fetchall()
    return [table_info(row) for row in rows]


def read_latest_run(connection: Connection[Any]) -> dict[str, Any] | None:
    """Return the columns of the daemon's newest run, and ``is_busy``."""
    return connection.cursor(row_factory=dict_row).execute(_LATEST_RUN).fetchone()
