from __future__ import annotations

import datetime as dt
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.apply.position import START, Position
from syncdata.apply.postgres.target import parse_time
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


def test_positions_sort_as_the_archive_does() -> None:
    in_order = [
        START,
        Position(file="changes_1.json", record_number=0),
        Position(file="changes_1.json", record_number=9),
        Position(file="changes_1.json", record_number=10),
        Position(file="changes_1.json", is_finished=True, record_number=12),
        Position(file="changes_2.json.gz", record_number=1),
        Position(file="changes_2.json.gz", is_finished=True, record_number=2),
    ]
    assert all(a.order < b.order for a, b in pairwise(in_order))


def test_compressing_a_file_moves_no_position() -> None:
    plain, packed = (
        Position(file="changes_1.json", record_number=3),
        Position(file="changes_1.json.zst", record_number=3),
    )
    assert plain.order == packed.order


def test_what_a_position_knows_besides_does_not_order_it() -> None:
    bare = Position(file="changes_1.json", record_number=3)
    assert (
        Position(file="changes_1.json", record_number=3, commit_lsn=7, source_id="s", file_size=9).order
        == bare.order
    )


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
    assert parse_time(text) == moment("2026-02-05 10:30:00")


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
