from __future__ import annotations

import datetime as dt

import pytest

from syncdata.changes.times import parse_time

HALF_PAST_TEN = dt.datetime(2026, 2, 5, 10, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-05T10:30:00Z",
        "2026-02-05 10:30:00Z",
        "2026-02-05T10:30:00+00",
        "2026-02-05 10:30:00+00:00",
        "2026-02-05 10:30:00.000000+00",
        "2026-02-05 10:30:00",
        "2026-02-05 12:30:00+02",
    ],
)
def test_a_records_time_is_read_in_all_its_forms(text: str) -> None:
    assert parse_time(text) == HALF_PAST_TEN


@pytest.mark.parametrize("text", ["2026-02-05 10:30:00.19743+00", "2026-02-05 10:30:00.2+00"])
def test_a_records_time_may_have_any_number_of_decimals(text: str) -> None:
    time = parse_time(text)
    assert time is not None
    assert time.tzinfo is not None


@pytest.mark.parametrize(
    "text", [None, "", "yesterday", "infinity", "2026-13-01 00:00:00Z", "0044-03-15 00:00:00 BC"]
)
def test_what_is_no_time_is_none(text: str | None) -> None:
    assert parse_time(text) is None
