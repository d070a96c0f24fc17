"""Tells "production is idle" from "the archiver is silent", by the head that the daemon has read. Pure.

The archiver replaces ``head.json`` once a rotation, also while production is idle. Two clocks are involved:
the head's time is the archiver's, and the time at which we first saw that head is ours. The archiver counts
as silent only when both say so, and only when the daemon has looked since: that it does not look is a problem
of its own. An archive that has never had a head says nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from syncdata.changes.head import Head, parse_head
from syncdata.errors import ParseError, Problem

DEFAULT_STALE_AFTER_S = 600


def find_silence(run: Mapping[str, Any] | None, *, stale_after_s: int) -> Problem | None:
    """Return the problem ``stale`` when the archiver has been silent for longer than *stale_after_s*, or than
    two of its own rotations. *run*: the columns of the daemon's newest run."""
    head = _head_of(run)
    if run is None or head is None or run["head_read_at"] is None:
        return None
    silent_s = _silent_s(head, run["head_read_at"], run["head_changed_at"])
    if silent_s <= max(stale_after_s, 2 * head.every_s):
        return None
    last = f"its last sign of life is of {head.time}" + (
        ", when it was stopped" if head.state == "stopped" else ""
    )
    return Problem(
        kind="stale",
        text=f"the archiver has been silent for {silent_s:.0f} seconds{_code(head)} ({last}): see"
        " 'archive_changes --status' at production; if the archive has moved, correct archive_dir here",
    )


def find_wait(run: Mapping[str, Any] | None) -> Problem | None:
    """Return the problem ``archiver-waits`` when the archiver has said that an error holds it."""
    head = _head_of(run)
    if head is None or head.state != "waiting":
        return None
    return Problem(
        kind="archiver-waits",
        text=f"the archiver at production cannot go on{_code(head)} and tries again by itself: see"
        " 'archive_changes --status' there",
    )


def _silent_s(head: Head, read_at: dt.datetime, changed_at: dt.datetime | None) -> float:
    seen_s = (read_at - (changed_at or read_at)).total_seconds()
    try:
        told_s = (read_at - _utc(dt.datetime.fromisoformat(head.time))).total_seconds()
    except (ValueError, OverflowError):
        return seen_s
    return seen_s if told_s < 0 else min(seen_s, told_s)  # the archiver's clock is ahead of ours


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)


def _head_of(run: Mapping[str, Any] | None) -> Head | None:
    content = None if run is None else run.get("head")
    try:
        return parse_head(content.encode()) if content else None
    except ParseError:
        return None


def _code(head: Head) -> str:
    return f", held by {head.error_code}" if head.error_code else ""
