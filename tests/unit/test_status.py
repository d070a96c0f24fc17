from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from syncdata.apply.state.marks import Kind, Mark
from syncdata.apply.state.status import (
    DaemonStatus,
    TableInfo,
    daemon_status,
    format_status,
    lag_s,
    record_place,
    table_state,
)
from syncdata.errors import Reason

NOON = dt.datetime(2026, 2, 5, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("file", "line", "place"),
    [
        ("changes_20260205_103000.json", 13, "changes_20260205_103000.json:13"),
        ("changes_20260205_103000.json.zst", 1, "changes_20260205_103000.json.zst:1"),
        ("changes_20260205_103000.json", None, ""),
        ("snapshot_20260205_000000/public.users.json.gz", 7, ""),
        (None, None, ""),
    ],
)
def test_only_an_error_of_one_change_record_has_a_place(
    file: str | None, line: int | None, place: str
) -> None:
    assert record_place(Reason(text="whatever it says", file=file, line=line)) == place


def test_no_error_has_no_place() -> None:
    assert record_place(None) == ""


@pytest.mark.parametrize(
    ("state", "file", "commit_lsn", "expected"),
    [
        (None, "", None, "new"),
        ("active", "", None, "new"),
        ("active", "changes_1.json", None, "active"),
        ("active", "", "0/1", "active"),
        ("blocked", "", None, "blocked"),
        ("paused", "", None, "paused"),
    ],
)
def test_a_table_is_new_until_it_has_begun(
    state: str | None, file: str, commit_lsn: str | None, expected: str
) -> None:
    assert table_state(state, file=file, commit_lsn=commit_lsn) == expected


@pytest.mark.parametrize(
    ("kinds", "state", "shown"),
    [
        (["partial"], "active", "partial"),
        (["partial", "suspect"], "active", "suspect"),
        (["unpublished", "partial"], "active", "partial"),
        (["suspect", "differs"], "active", "differs"),
        (["suspect"], "blocked", "blocked"),
        (["suspect"], "paused", "paused"),
    ],
)
def test_the_worst_of_a_tables_marks_is_its_state(kinds: list[Kind], state: str, shown: str) -> None:
    marks = tuple(Mark(kind, "why") for kind in kinds)
    assert table_state(state, file="changes_1.json", commit_lsn=None, marks=marks) == shown


def make_table(name: str, **fields: Any) -> TableInfo:
    return TableInfo(**{"table_name": name, "creator": None, "created_at": NOON, "state": "active"} | fields)


def make_run(**fields: Any) -> dict[str, Any]:
    columns = ("last_error", "error_code", "error_file", "error_line", "error_hint")
    return {
        **dict.fromkeys(columns),
        "started_at": NOON,
        "last_sync_at": NOON,
        "sync_frequency": 60,
        "records_synced": 0,
        "errors": 0,
        "unexpected_errors": 0,
        "is_busy": False,
        **fields,
    }


def status_of(
    *tables: TableInfo, run: dict[str, Any] | None, is_active: bool = True, **late: int
) -> DaemonStatus:
    return daemon_status(is_active, run, tables, frequency_s=60, now=NOON + dt.timedelta(**late))


def test_a_problem_is_a_kind_with_a_table_and_a_reason_and_reads_as_one_sentence() -> None:
    blocked = make_table(
        "users", state="blocked", error="SHD_SYN_064: f.json:1: refused (mend it)", error_code="SHD_SYN_064"
    )
    (problem,) = status_of(blocked, run=make_run()).problems
    assert (problem.kind, problem.table, problem.reason) == ("blocked", "users", blocked.reason)
    assert str(problem) == "users is blocked: SHD_SYN_064: f.json:1: refused (mend it)"


def test_each_problem_has_a_kind_of_its_own() -> None:
    failed = make_run(last_error="SHD_SYN_060: gone", error_code="SHD_SYN_060")
    assert [problem.kind for problem in status_of(run=failed, hours=1).problems] == [
        "cycle-failed",
        "overdue",
    ]
    assert [problem.kind for problem in status_of(run=None, is_active=False).problems] == ["not-started"]
    assert status_of(run=make_run()).problems == ()
    assert status_of(run=make_run(is_busy=True), hours=1).is_healthy


def test_an_error_that_blocks_a_table_is_not_told_a_second_time_as_the_cycles() -> None:
    columns = {"error_code": "SHD_SYN_064", "error_file": "changes_1.json", "error_line": 3}
    blocked = make_table("users", state="blocked", error="refused", **columns)
    run = make_run(last_error="refused", **columns)
    assert [problem.kind for problem in status_of(blocked, run=run).problems] == ["blocked"]


def test_the_text_lists_the_problems() -> None:
    text = format_status(status_of(run=None, is_active=False))
    assert text.endswith("problems:\n  - no daemon runs on this database: start one with syncdata_start")


@pytest.mark.parametrize(
    ("own", "front", "expected"),
    [
        ("changes_20260205_103000.json:7", "changes_20260205_113000.json.gz:1", 3600.0),
        ("changes_20260205_103000.json:7", "changes_20260205_103000.json:900", 0.0),
        ("", "changes_20260205_103000.json:900", None),
        ("changes_other.json:1", "changes_20260205_103000.json:900", None),
    ],
)
def test_lag_is_the_time_between_files(own: str, front: str, expected: float | None) -> None:
    assert lag_s(own, front) == expected
