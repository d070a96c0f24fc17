from __future__ import annotations

import datetime as dt
from dataclasses import fields
from typing import Any

import pytest

from syncdata.apply.state.marks import Kind, Mark, encode_marks
from syncdata.apply.state.status import (
    ColumnPrivacy,
    DaemonStatus,
    TableInfo,
    daemon_status,
    format_status,
    lag_s,
    record_place,
    table_info,
    table_state,
    verification_of,
)
from syncdata.apply.state.verifications import Verification
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


def verified(*, ago: dt.timedelta, **fields: Any) -> dict[str, Any]:
    at = NOON - ago
    return {"verified_at": at, "checked_at": at, "verified_rows": 2_159_331, "verified_share": 1.0} | fields


DIFFERS = (Mark("differs", "rows differ"),)
RECENT = dt.timedelta(minutes=4)


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ({}, "never"),
        ({"checked_at": NOON}, "no whole round yet"),
        (verified(ago=RECENT), "4 minutes ago, 2,159,331 rows"),
        (verified(ago=dt.timedelta(seconds=1), verified_rows=1), "1 second ago, 1 row"),
        (verified(ago=dt.timedelta(hours=26)), "26 hours ago, 2,159,331 rows"),
        (verified(ago=dt.timedelta(days=-1)), "0 seconds ago, 2,159,331 rows"),
        (
            verified(ago=RECENT, verified_share=0.99999),
            "4 minutes ago, 2,159,331 rows, 99.9 % of them proved",
        ),
        (verified(ago=RECENT, left_out="without x"), "4 minutes ago, 2,159,331 rows, not all columns"),
        ({"checked_at": NOON, "not_comparable": "column x"}, "cannot be compared: column x"),
        (verified(ago=RECENT, marks=DIFFERS), "differs"),
    ],
)
def test_what_verification_found_is_said_in_a_few_words(found: dict[str, Any], shown: str) -> None:
    assert verification_of(make_table("users", **found), now=NOON) == shown


def test_the_status_says_how_many_tables_are_verified_within_what_time() -> None:
    tables = (
        make_table("a", **verified(ago=RECENT)),
        make_table("b", **verified(ago=dt.timedelta(hours=26))),
        make_table("c"),
        make_table("d", **verified(ago=dt.timedelta(hours=40), marks=DIFFERS)),
    )
    status = status_of(*tables, run=make_run())
    assert "\nverified: 2 of 4 tables within 26 hours\n" in format_status(status)
    assert "d is differs" not in format_status(status) and "d differs: rows differ" in format_status(status)


def test_the_status_says_nothing_of_verification_where_no_archiver_verifies() -> None:
    assert "verified" not in format_status(status_of(make_table("a"), run=make_run()))


@pytest.mark.parametrize(("marks", "differing"), [(DIFFERS, ("id up to 7",)), ((), ())])
def test_differences_that_a_rebuild_has_ended_are_not_shown(
    marks: tuple[Mark, ...], differing: tuple[str, ...]
) -> None:
    names = [field.name for field in fields(TableInfo)]
    row = dict.fromkeys((*names, "file", "record_number", "commit_lsn")) | {
        "table_name": "a",
        "state": "active",
        "marks": encode_marks(marks),
    }
    assert table_info(row, Verification(differing=("id up to 7",))).differing == differing


def test_the_status_says_what_is_masked_or_withheld_and_where_nothing_is() -> None:
    def line(*tables: TableInfo) -> str:
        shown = format_status(status_of(*tables, run=make_run()))
        return next((line for line in shown.splitlines() if line.startswith("privacy: ")), "")

    def ruled(name: str, *columns: ColumnPrivacy) -> TableInfo:
        return make_table(name, privacy=columns)

    email = ColumnPrivacy(column="email", kind="email")
    phone = ColumnPrivacy(column="phone", kind="withheld", side="here")
    assert line(make_table("a")) == "", "an archive without catalogs says nothing"
    assert line(make_table("a"), ruled("b")) == (
        "privacy: no policy: all columns of the published tables arrive as they are"
    )
    assert line(ruled("a", email), ruled("b", email, email), ruled("c")) == (
        "privacy: 3 columns of 2 tables are masked or withheld at production"
    )
    assert line(ruled("a", email, phone)) == (
        "privacy: 1 column of 1 table is masked or withheld at production;"
        " 1 column of 1 table is masked or withheld by the rules of this side"
    )
