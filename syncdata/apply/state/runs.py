"""Writes the row of a daemon's run: its beginning, its counts, its end. Knows SQL only."""

from __future__ import annotations

import datetime as dt
from typing import Any

from psycopg import Connection

from syncdata.apply.state.reasons import error_parameters
from syncdata.changes.head import Head, encode_head
from syncdata.errors import SyncError


def start_run(connection: Connection[Any], *, host: str, pid: int, sync_frequency_s: int) -> int:
    """Begin the row of a daemon's run; return its id."""
    # What the run before has seen of the archiver goes on: a head that does not change stays an old one.
    row = connection.execute(
        "INSERT INTO data_sync_runs (host, pid, sync_frequency, head, head_read_at, head_changed_at)"
        " SELECT %s, %s, %s, head, head_read_at, head_changed_at FROM (SELECT) AS one LEFT JOIN LATERAL"
        " (SELECT * FROM data_sync_runs ORDER BY id DESC LIMIT 1) AS before ON true RETURNING id",
        (host, pid, sync_frequency_s),
    ).fetchone()
    assert row is not None
    return int(row[0])


def seconds_since_cycle(connection: Connection[Any]) -> float | None:
    """Return how long ago the newest cycle of any run ended; None when there was none."""
    row = connection.execute(
        "SELECT extract(epoch FROM clock_timestamp() - max(last_sync_at))::float8 FROM data_sync_runs"
    ).fetchone()
    return row[0] if row else None


def add_to_run(connection: Connection[Any], run_id: int, *, records: int) -> None:
    connection.execute(
        "UPDATE data_sync_runs SET records_synced = records_synced + %s WHERE id = %s", (records, run_id)
    )


def end_cycle(
    connection: Connection[Any],
    run_id: int,
    *,
    now: dt.datetime,
    errors: int,
    unexpected: int,
    last_error: SyncError | None,
) -> bool:
    """Note that a cycle of the run has ended, with so many errors, *unexpected* ones among them. Return False
    when the run's row is gone. *last_error* is None when it had none."""
    done = connection.execute(
        "UPDATE data_sync_runs SET last_sync_at = %(now)s, errors = errors + %(errors)s,"
        " unexpected_errors = unexpected_errors + %(unexpected)s,"
        " last_error = %(error)s, error_code = %(error_code)s, error_file = %(error_file)s,"
        " error_line = %(error_line)s, error_hint = %(error_hint)s WHERE id = %(id)s",
        {"id": run_id, "now": now, "errors": errors, "unexpected": unexpected} | error_parameters(last_error),
    )
    return done.rowcount > 0


def note_waiting(connection: Connection[Any], run_id: int, *, files: int, size_bytes: int) -> None:
    """Note how many files, and how many bytes, of the archive some table has not been through yet."""
    connection.execute(
        "UPDATE data_sync_runs SET waiting_files = %s, waiting_bytes = %s WHERE id = %s",
        (files, size_bytes, run_id),
    )


def note_head(connection: Connection[Any], run_id: int, head: Head | None, *, now: dt.datetime) -> None:
    """Note the archiver's sign of life as it was read *now*. None, where there is none, changes nothing else:
    a head that has gone is as old as it was."""
    connection.execute(
        "UPDATE data_sync_runs SET head = coalesce(%(head)s::jsonb, head), head_read_at = %(now)s,"
        " head_changed_at = CASE WHEN head IS DISTINCT FROM coalesce(%(head)s::jsonb, head) THEN %(now)s"
        " ELSE head_changed_at END WHERE id = %(id)s",
        {"id": run_id, "head": None if head is None else encode_head(head).decode(), "now": now},
    )


def end_run(connection: Connection[Any], run_id: int, *, now: dt.datetime) -> None:
    connection.execute("UPDATE data_sync_runs SET stopped_at = %s WHERE id = %s", (now, run_id))
