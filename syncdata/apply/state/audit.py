"""Writes the audit log: each action on a table, who asked for it, and its outcome. Changes no entry."""

from __future__ import annotations

import datetime as dt
from typing import Any

from psycopg import Connection

from syncdata.apply.counts import Counts
from syncdata.apply.result import Effect
from syncdata.changes.names import TableName
from syncdata.errors import SyncError


def log_action(
    connection: Connection[Any],
    table: TableName,
    *,
    action: str,
    reference: str,
    now: dt.datetime,
    counts: Counts | None = None,
    error: SyncError | None = None,
    detail: str | None = None,
    duration_ms: int = 0,
    requested_by: str | None = None,
) -> None:
    """Add an entry for an action on a table: a resync, clear, load of a snapshot, pause, resume or skip."""
    effect = Effect(counts=counts or Counts(), duration_ms=duration_ms)
    connection.execute(
        "INSERT INTO data_sync_logs (table_name, status, action, archive_ref, error_detail, sync_time,"
        " rows_synced, records_added, records_updated, records_deleted, records_truncated, records_missing,"
        " duration_ms, requested_by) VALUES (%(name)s, %(status)s, %(action)s, %(reference)s, %(error)s,"
        " %(now)s, %(added)s + %(updated)s + %(deleted)s, %(added)s, %(updated)s, %(deleted)s, %(truncated)s,"
        " %(missing)s, %(duration_ms)s, %(requested_by)s)",
        {
            "name": str(table),
            "status": "FAILED" if error else "SUCCESS",
            "action": action,
            "reference": reference,
            "error": str(error) if error else detail,
            "now": now,
            "requested_by": requested_by or None,
            **parameters_of(effect),
        },
    )


def parameters_of(effect: Effect) -> dict[str, Any]:
    counts = effect.counts
    return {
        "added": counts.added,
        "updated": counts.updated,
        "deleted": counts.deleted,
        "truncated": counts.truncated,
        "missing": counts.missing,
        "last_change_at": effect.last_change_at,
        "last_lsn": effect.last_lsn,
        "duration_ms": effect.duration_ms,
    }
