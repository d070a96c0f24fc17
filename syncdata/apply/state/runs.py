"""A daemon's run: when it began, what it has done since, how it ended."""

from __future__ import annotations

import datetime as dt
from typing import Any

from psycopg import Connection


def start_run(connection: Connection[Any], *, host: str, pid: int, sync_frequency_s: int) -> int:
    """Open the books of a daemon's run; return its id."""
    row = connection.execute(
        "INSERT INTO data_sync_runs (host, pid, sync_frequency) VALUES (%s, %s, %s) RETURNING id",
        (host, pid, sync_frequency_s),
    ).fetchone()
    assert row is not None
    return int(row[0])


def add_to_run(connection: Connection[Any], run_id: int, *, records: int) -> None:
    connection.execute(
        "UPDATE data_sync_runs SET records_synced = records_synced + %s WHERE id = %s", (records, run_id)
    )


def end_cycle(
    connection: Connection[Any], run_id: int, *, now: dt.datetime, errors: int, last_error: str | None
) -> None:
    """Note that a cycle of the run has ended, with so many errors; *last_error* is None when it had none."""
    connection.execute(
        "UPDATE data_sync_runs SET last_sync_at = %s, errors = errors + %s, last_error = %s WHERE id = %s",
        (now, errors, last_error, run_id),
    )


def note_waiting(connection: Connection[Any], run_id: int, *, files: int, size_bytes: int) -> None:
    """Note how much the archive holds that some table has still to go through."""
    connection.execute(
        "UPDATE data_sync_runs SET waiting_files = %s, waiting_bytes = %s WHERE id = %s",
        (files, size_bytes, run_id),
    )


def end_run(connection: Connection[Any], run_id: int, *, now: dt.datetime) -> None:
    connection.execute("UPDATE data_sync_runs SET stopped_at = %s WHERE id = %s", (now, run_id))
