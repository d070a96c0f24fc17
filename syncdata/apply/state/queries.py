"""Reads syncdata's own tables for status and dashboard, over any connection. Changes nothing.

Columns are named one by one, so that a database that has not been migrated is an error with a remedy.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, Cursor
from psycopg.rows import dict_row, tuple_row
from psycopg.types.datetime import TimestamptzLoader

from syncdata.apply.state.status import TableInfo, table_info
from syncdata.apply.state.verifications import summaries

# ``is_busy``: a batch has committed lately, so a cycle that takes long is at work, not stuck.
_LATEST_RUN = """
SELECT host, pid, sync_frequency, started_at, stopped_at, last_sync_at, records_synced, errors,
    unexpected_errors, waiting_files, waiting_bytes, head::text AS head, head_read_at, head_changed_at,
    last_error, error_code, error_file, error_line, error_hint,
    coalesce((SELECT max(last_sync_at) FROM data_sync_checkpoints) > now() - interval '5 minutes', false)
        AS is_busy
FROM data_sync_runs ORDER BY id DESC LIMIT 1
"""

_TABLES = """
SELECT w.table_name, creator, created_at, state, file, record_number, commit_lsn, last_lsn, rows_synced,
    records_added, records_updated, records_deleted, records_truncated, last_sync_at, last_change_at,
    error, error_code, error_file, error_line, error_hint, marks,
    CASE WHEN published IS NOT NULL THEN jsonb_build_array(
        jsonb_path_query_array(published, '$.table.columns[*] ? (exists(@.privacy))'),
        coalesce(published -> 'rules', '[]')
    ) END::text AS privacy
FROM tables_to_sync w LEFT JOIN data_sync_checkpoints c ON c.table_name = w.table_name ORDER BY w.table_name
"""

_PROGRESS = """
SELECT w.table_name, coalesce(file, ''), last_lsn::text, last_sync_at, coalesce(rows_synced, 0)
FROM tables_to_sync w LEFT JOIN data_sync_checkpoints c ON c.table_name = w.table_name ORDER BY w.table_name
"""

_MINUTES = """
SELECT minute, lag_s, records_added + records_updated + records_deleted + records_truncated AS records
FROM data_sync_minutes WHERE minute > now() - interval '1 day' ORDER BY minute
"""

_PERIODS = """
SELECT period_start, sum(records_added)::bigint AS added, sum(records_updated)::bigint AS updated,
    sum(records_deleted)::bigint AS deleted
FROM data_sync_metrics WHERE period_type = 'FREQ' AND period_start > now() - interval '31 days'
GROUP BY period_start ORDER BY period_start DESC LIMIT 62
"""

_UNEQUAL = """
SELECT table_name, bounds, rows, rows_here, is_equal, reason, position, commit_lsn::text AS commit_lsn,
    verified_at
FROM data_sync_verifications WHERE NOT is_equal OR (is_equal IS NULL AND reason <> '')
ORDER BY table_name, verified_at, id
"""

_REQUESTS = """
WITH request AS (
    SELECT id, action, table_names, place, requested_by, requested_at, state, progress, finished_at,
        error, error_code, error_file, error_line, error_hint FROM data_sync_requests
)
(SELECT * FROM request WHERE state IN ('waiting', 'running') ORDER BY id LIMIT 20)
UNION ALL
(SELECT * FROM request WHERE state IN ('done', 'failed') AND finished_at > now() - interval '1 day'
 ORDER BY id DESC LIMIT 5)
"""


# Of a table: its name, its file, its newest LSN, the time of its last sync, and how many rows were synced.
Progress = tuple[str, str, str | None, dt.datetime | None, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnequalCheck:
    """A check that did not find the rows in ``bounds`` equal. ``rows``: at production; ``rows_here``: in the
    local table at that moment, when it stood at ``position``. ``is_equal`` is False, or None where the rows
    could not be compared, for the ``reason``."""

    table_name: str
    bounds: str
    rows: int
    rows_here: int
    is_equal: bool | None
    reason: str
    position: str
    commit_lsn: str | None
    verified_at: dt.datetime


def read_minutes(connection: Connection[Any]) -> list[dict[str, Any]]:
    """Return ``minute``, ``records`` and ``lag_s`` of each minute of the last day with applied records."""
    return _cursor(connection).execute(_MINUTES).fetchall()


def read_periods(connection: Connection[Any]) -> list[dict[str, Any]]:
    """Return the counts of all tables together in each metric period of the last month, oldest first."""
    return _cursor(connection).execute(_PERIODS).fetchall()[::-1]


def read_requests(connection: Connection[Any]) -> list[dict[str, Any]]:
    """Return the requests that are open, then the newest that are over."""
    return _cursor(connection).execute(_REQUESTS).fetchall()


def read_tables(connection: Connection[Any]) -> list[TableInfo]:
    """Return the whitelist with each table's checkpoint, and how far it is verified."""
    verified = summaries(connection)
    rows = _cursor(connection).execute(_TABLES).fetchall()
    return [table_info(row, verified.get(row["table_name"])) for row in rows]


def read_unequal_checks(connection: Connection[Any]) -> list[UnequalCheck]:
    """Return the checks whose rows differed, or could not be compared, oldest first."""
    return [UnequalCheck(**row) for row in _cursor(connection).execute(_UNEQUAL).fetchall()]


def read_progress(connection: Connection[Any]) -> list[Progress]:
    """Return how far each whitelisted table has come."""
    cursor = connection.cursor(row_factory=tuple_row)
    cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
    return cursor.execute(_PROGRESS).fetchall()


def read_latest_run(connection: Connection[Any]) -> dict[str, Any] | None:
    """Return the columns of the daemon's newest run, and ``is_busy``."""
    return _cursor(connection).execute(_LATEST_RUN).fetchone()


def _cursor(connection: Connection[Any]) -> Cursor[dict[str, Any]]:
    """Return a cursor whose times have a zone, also where the project's ``USE_TZ`` is off."""
    cursor = connection.cursor(row_factory=dict_row)
    cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
    return cursor
