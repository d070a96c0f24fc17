"""Writes the audit log: each action on a table, who asked for it, and its outcome. Changes no entry."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import Connection

from syncdata.apply.counts import Counts
from syncdata.apply.position import FileCounts
from syncdata.apply.result import Effect
from syncdata.changes.names import TableName
from syncdata.errors import SyncError

# `rows_synced` is the predecessor's column, an integer; the counts by operation are exact.
_MOST_ROWS = 2**31 - 1


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
        " %(now)s, %(rows)s, %(added)s, %(updated)s, %(deleted)s, %(truncated)s, %(missing)s,"
        " %(duration_ms)s, %(requested_by)s)",
        {
            "name": str(table),
            "status": "FAILED" if error else "SUCCESS",
            "action": action,
            "reference": reference,
            "error": str(error) if error else detail,
            "now": now,
            "requested_by": requested_by or None,
            # Not added up by the server: it takes numbers this small for smallint, and their sum may be none.
            "rows": min(effect.counts.rows, _MOST_ROWS),
            **parameters_of(effect),
        },
    )


def log_files(
    connection: Connection[Any],
    files: Sequence[FileCounts],
    effects: Mapping[TableName, Effect],
    *,
    now: dt.datetime,
) -> None:
    """Add the entries of several files that were applied as one batch with *effects*: one for each file and
    table with activity, as if they had been applied one by one.

    The time that a table took is shared among the files by their records. Their entries are a microsecond
    apart, so that they sort as the files do.
    """
    rows = []
    for number, file in enumerate(files):
        for table, counts in sorted(file.counts.items()):
            if table in effects and counts.records:
                total = effects[table]
                took_ms = round(total.duration_ms * counts.records / total.counts.records)
                moment = now + dt.timedelta(microseconds=number)
                operations = (counts.added, counts.updated, counts.deleted, counts.truncated)
                written = min(counts.rows, _MOST_ROWS)
                rows.append((str(table), file.name, moment, written, *operations, took_ms))
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        connection.execute(
            "INSERT INTO data_sync_logs (table_name, status, action, archive_ref, sync_time, rows_synced,"
            " records_added, records_updated, records_deleted, records_truncated, records_missing,"
            " duration_ms) SELECT name, 'SUCCESS', 'sync', file, moment, written, added, updated, deleted,"
            " truncated, 0, duration_ms FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::bigint[],"
            " %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
            " AS f(name, file, moment, written, added, updated, deleted, truncated, duration_ms)",
            columns,
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
