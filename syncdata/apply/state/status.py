"""What the books say of the daemon and its tables, and how that reads as text. Pure."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Any

from syncdata.changes.filenames import file_time

# How long no cycle may end before somebody should look.
_OVERDUE_INTERVALS, _OVERDUE_GRACE_S = 2, 60


_PLACE = re.compile(r"SHD_SYN_\d{3}: (changes_\S*?:\d+): ")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInfo:
    """A whitelisted table. ``state``: new, active, blocked or paused. ``checkpoint``: ``file:records`` or
    empty."""

    table_name: str
    creator: str | None
    created_at: dt.datetime | None
    state: str
    checkpoint: str = ""
    rows_synced: int = 0
    error: str | None = None
    last_sync_at: dt.datetime | None = None
    last_change_at: dt.datetime | None = None
    last_lsn: str = ""
    records_added: int = 0
    records_updated: int = 0
    records_deleted: int = 0
    records_truncated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """The daemon as its books show it. ``records_synced`` and ``errors`` count since its start;
    ``problems`` says why it is not healthy, and is empty when it is."""

    status: str
    sync_frequency: int
    start_time: dt.datetime | None
    records_synced: int
    errors: int
    last_sync_time: dt.datetime | None
    tables: tuple[TableInfo, ...]
    last_error: str | None = None
    problems: tuple[str, ...] = ()

    @property
    def is_active(self) -> bool:
        return self.status == "active"

    @property
    def is_healthy(self) -> bool:
        return not self.problems


def blocking_place(error: str) -> str | None:
    """Return the ``file:line`` of the record that *error*, as the books hold it, is about; None for none."""
    match = _PLACE.match(error)
    return match[1] if match else None


def explain(error: str) -> tuple[str, str, str]:
    """Split *error* into its code, what happened and where, and the remedy; the last may be empty."""
    code, _, message = error.partition(": ")
    if not message.endswith(")"):
        return code, message, ""
    depth = 0
    for index in range(len(message) - 1, -1, -1):
        depth += (message[index] == ")") - (message[index] == "(")
        if depth == 0:
            return code, message[:index].rstrip(), message[index + 1 : -1]
    return code, message, ""


def lag_s(checkpoint: str, farthest: str) -> float | None:
    """Return how many seconds of files the place *checkpoint* is behind *farthest*, by the files' names.

    Zero when both lie in one file; None where one is no place in a file.
    """
    own, front = file_time(checkpoint), file_time(farthest)
    return None if own is None or front is None else (front - own).total_seconds()


def format_status(status: DaemonStatus) -> str:
    """Return *status* as the text that ``syncdata_status`` prints."""
    lines = [
        f"status: {status.status}",
        f"sync frequency: {status.sync_frequency} seconds",
        f"start time: {_format_time(status.start_time)}",
        f"last sync: {_format_time(status.last_sync_time)}",
        f"records synced: {status.records_synced}",
        f"errors: {status.errors}",
        "",
        f"synced tables ({len(status.tables)}):",
        *(f"  - {info.table_name}" for info in status.tables),
    ]
    changes = [info.last_change_at for info in status.tables if info.last_change_at]
    if changes:
        lines += ["", f"newest change applied: {_format_time(max(changes))}"]
    if status.problems:
        lines += ["", "problems:", *(f"  - {problem}" for problem in status.problems)]
    return "\n".join(lines)


def daemon_status(
    is_active: bool,
    run: dict[str, Any] | None,
    tables: tuple[TableInfo, ...],
    *,
    frequency_s: int,
    now: dt.datetime,
) -> DaemonStatus:
    last_error = run["last_error"] if run else None
    last_sync = run["last_sync_at"] if run else None
    frequency_s = run["sync_frequency"] if run and is_active else frequency_s
    problems = [f"{info.table_name} is blocked: {info.error}" for info in tables if info.state == "blocked"]
    if not is_active:
        problems.append("no daemon runs on this database: start one with syncdata_start")
    if last_error and last_error not in {info.error for info in tables}:
        problems.append(f"the last cycle failed: {last_error}")
    if is_active and run and not run["is_busy"]:
        idle_s = (now - (last_sync or run["started_at"])).total_seconds()
        if idle_s > _OVERDUE_INTERVALS * frequency_s + _OVERDUE_GRACE_S:
            problems.append(f"overdue: no cycle has ended for {idle_s:.0f} seconds; see the daemon's log")
    return DaemonStatus(
        status="active" if is_active else "not-started",
        sync_frequency=frequency_s,
        start_time=run["started_at"] if run and is_active else None,
        records_synced=run["records_synced"] if run else 0,
        errors=run["errors"] if run else 0,
        last_sync_time=last_sync,
        tables=tables,
        last_error=last_error,
        problems=tuple(problems),
    )


def table_info(row: dict[str, Any]) -> TableInfo:
    has_begun = row["file"] or row["commit_lsn"]  # from a snapshot that was there before any change file
    is_new = row["state"] is None or (not has_begun and row["state"] == "active")
    return TableInfo(
        table_name=row["table_name"],
        creator=row["creator"],
        created_at=row["created_at"],
        state="new" if is_new else row["state"],
        checkpoint=f"{row['file']}:{row['record_number']}" if row["file"] else "",
        rows_synced=row["rows_synced"] or 0,
        error=row["error"],
        last_sync_at=row["last_sync_at"],
        last_change_at=row["last_change_at"],
        last_lsn=row["last_lsn"] or "",
        records_added=row["records_added"] or 0,
        records_updated=row["records_updated"] or 0,
        records_deleted=row["records_deleted"] or 0,
        records_truncated=row["records_truncated"] or 0,
    )


def _format_time(moment: dt.datetime | None) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else "-"
