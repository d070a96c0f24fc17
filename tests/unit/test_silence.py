from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest

from syncdata.apply.state.silence import find_silence, find_wait
from syncdata.apply.state.status import TableInfo, as_of_archiver
from syncdata.changes.head import Head, encode_head

NOON = dt.datetime(2026, 2, 5, 12, tzinfo=dt.UTC)


def run_with(*, told_min: float, seen_min: float, **fields: Any) -> dict[str, Any]:
    """The run of a daemon that read, at noon, a head of *told_min* ago, which it first saw *seen_min* ago."""
    time = (NOON - dt.timedelta(minutes=told_min)).isoformat()
    head = msgspec.structs.replace(Head(version=1, time=time, every_s=60), **fields)
    return {
        "head": encode_head(head).decode(),
        "head_read_at": NOON,
        "head_changed_at": NOON - dt.timedelta(minutes=seen_min),
    }


@pytest.mark.parametrize(
    ("told_min", "seen_min", "fields", "is_silent"),
    [
        (1, 1, {}, False),
        (30, 30, {}, True),
        (30, 0, {}, False),  # an old head that we see for the first time, or an archiver's clock that is slow
        (0, 30, {}, False),
        (-180, 30, {}, True),  # the archiver's clock is three hours ahead
        (-180, 5, {}, False),
        (30, 30, {"every_s": 3600}, False),  # it rotates once an hour
        (30, 30, {"time": "no time"}, True),
    ],
)
def test_the_archiver_is_silent_when_both_clocks_say_so(
    told_min: float, seen_min: float, fields: dict[str, Any], is_silent: bool
) -> None:
    run = run_with(told_min=told_min, seen_min=seen_min, **fields)
    assert (find_silence(run, stale_after_s=600) is not None) == is_silent


def test_an_archive_without_a_head_says_nothing() -> None:
    nothing: dict[str, Any] = {"head": None, "head_read_at": NOON, "head_changed_at": None}
    for run in (None, nothing, nothing | {"head": "{"}):
        assert find_silence(run, stale_after_s=600) is None and find_wait(run) is None


def test_silence_makes_active_tables_stale_and_leaves_worse_states() -> None:
    states = ["active", "new", "blocked", "paused", "suspect", "partial"]
    tables = [TableInfo(table_name=s, creator=None, created_at=None, state=s) for s in states]
    run = run_with(told_min=30, seen_min=30, state="stopped", error_code="SHD_SYN_101")
    shown, (problem,) = as_of_archiver(tables, run, stale_after_s=600)
    assert [table.state for table in shown] == ["stale", *states[1:]]
    assert problem.kind == "stale" and "1800 seconds" in str(problem)
    assert "SHD_SYN_101" in str(problem) and "stopped" in str(problem)


def test_an_archiver_that_waits_is_a_problem_at_once() -> None:
    run = run_with(told_min=0, seen_min=0, state="waiting", error_code="SHD_SYN_101")
    (problem,) = as_of_archiver([], run, stale_after_s=600)[1]
    assert problem.kind == "archiver-waits" and "SHD_SYN_101" in str(problem)
