from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.apply.state.metrics import periods

UTC = dt.UTC


def moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "hours", "expected"),
    [
        (
            "2026-02-05 10:30",
            24,
            [
                ("FREQ", "2026-02-05", "2026-02-06"),
                ("WEEK", "2026-02-02", "2026-02-09"),
                ("MONTH", "2026-02-01", "2026-03-01"),
            ],
        ),
        (
            "2026-12-31 23:59:59.999999",
            1,
            [
                ("FREQ", "2026-12-31 23:00", "2027-01-01"),
                ("WEEK", "2026-12-28", "2027-01-04"),
                ("MONTH", "2026-12-01", "2027-01-01"),
            ],
        ),
        (
            "2028-02-29 00:00",
            6,
            [
                ("FREQ", "2028-02-29", "2028-02-29 06:00"),
                ("WEEK", "2028-02-28", "2028-03-06"),
                ("MONTH", "2028-02-01", "2028-03-01"),
            ],
        ),
        (
            "2026-02-02 00:00",
            168,
            # Counted from 1970-01-01, a Thursday.
            [
                ("FREQ", "2026-01-29", "2026-02-05"),
                ("WEEK", "2026-02-02", "2026-02-09"),
                ("MONTH", "2026-02-01", "2026-03-01"),
            ],
        ),
    ],
)
def test_a_moment_falls_in_one_period_of_each_type(
    now: str, hours: int, expected: list[tuple[str, str, str]]
) -> None:
    assert periods(moment(now), metric_freq_hours=hours) == [
        (kind, moment(start), moment(end)) for kind, start, end in expected
    ]


def test_periods_are_in_utc_wherever_the_clock_is() -> None:
    east = dt.datetime(2026, 3, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert periods(east, metric_freq_hours=24) == periods(moment("2026-02-28 23:00"), metric_freq_hours=24)


@given(
    st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(9000, 1, 1), timezones=st.just(UTC)),
    st.integers(1, 24 * 366),
)
def test_periods_hold_their_moment_and_meet_the_next_ones(now: dt.datetime, hours: int) -> None:
    for number, (kind, start, end) in enumerate(periods(now, metric_freq_hours=hours)):
        assert start <= now < end
        assert periods(start, metric_freq_hours=hours)[number] == (kind, start, end)
        assert periods(end, metric_freq_hours=hours)[number][1] == end
