from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.changes.filenames import (
    check_name,
    file_time,
    is_ahead,
    is_change_file,
    is_left_out,
    is_snapshot_directory,
    newest_first,
    next_name,
    parse_snapshot_name,
    parse_stamp,
    snapshot_file,
    snapshot_name,
    temporary_name,
)
from syncdata.changes.names import TableName
from syncdata.errors import SpoolError

STAMP = "20260205_103000"
NOW = dt.datetime(2026, 2, 5, 10, 30, tzinfo=dt.UTC)
identifiers = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (TableName("public", "users"), "public.users.json.gz"),
        (TableName("public", "Order"), "public.Order.json.gz"),
        (TableName("my.schema", "t"), "my%2Eschema.t.json.gz"),
        (TableName("a/b", 'c\\d"e%'), 'a%2Fb.c%5Cd"e%25.json.gz'),
        (TableName("straße", "line\nbreak\x85"), "straße.line%0Abreak%C2%85.json.gz"),
    ],
)
def test_a_snapshot_file_is_named_by_its_table(table: TableName, expected: str) -> None:
    assert snapshot_name(STAMP, table) == f"snapshot_{STAMP}/{expected}"


@given(schema=identifiers, name=identifiers)
def test_every_table_comes_back_from_its_name_which_is_one_file_in_one_directory(
    schema: str, name: str
) -> None:
    table = TableName(schema, name)
    file_name = snapshot_name(STAMP, table)
    assert parse_snapshot_name(file_name) == (STAMP, table)
    assert file_name.count("/") == 1 and not any(ord(character) < 32 for character in file_name)


@given(tail=st.text() | st.builds("{}.{}.json.gz".format, st.text(), st.text()))
def test_a_name_that_is_read_is_the_one_that_would_be_written(tail: str) -> None:
    name = f"snapshot_{STAMP}/{tail}"
    parsed = parse_snapshot_name(name)
    assert parsed is None or snapshot_name(*parsed) == name


@pytest.mark.parametrize(
    "name",
    [
        f"snapshot_{STAMP}/users.json.gz",
        f"snapshot_{STAMP}/public.users.json",
        f"snapshot_{STAMP}/public.users.json.gz.tmp",
        f"snapshot_{STAMP}/public.users.json.gz.part",
        f"snapshot_{STAMP}/.public.users.json.gz.part",
        f"snapshot_{STAMP}/.public.users.json.gz",
        f"snapshot_{STAMP}/a.b.c.json.gz",
        f"snapshot_{STAMP}/public.%75sers.json.gz",  # not how we write it
        f"snapshot_{STAMP}/public.%FF.json.gz",
        f"snapshot_{STAMP}/public.\udcff.json.gz",
        f"snapshot_{STAMP}/../public.users.json.gz",
        "snapshot_now/public.users.json.gz",
        f"backup/snapshot_{STAMP}/public.users.json.gz",
        "public.users.json.gz",
    ],
)
def test_other_names_are_no_snapshot_files(name: str) -> None:
    assert parse_snapshot_name(name) is None
    with pytest.raises(ValueError, match="is no name of"):
        check_name(name)


def test_a_snapshot_needs_a_time() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        snapshot_name("yesterday", TableName("public", "users"))


@pytest.mark.parametrize(
    "name", ["changes_20260205_103000.json.zst", f"snapshot_{STAMP}/public.users.json.gz"]
)
def test_a_temporary_name_is_hidden_beside_its_file_and_nobody_reads_it(name: str) -> None:
    check_name(name)
    temporary = temporary_name(name)
    assert temporary.rpartition("/")[0] == name.rpartition("/")[0]
    assert temporary.rpartition("/")[2] == f".{name.rpartition('/')[2]}.part"
    assert not is_change_file(temporary) and parse_snapshot_name(temporary) is None


def test_the_newest_snapshot_comes_first_and_its_tables_in_order() -> None:
    names = [
        f"snapshot_{stamp}/{table}.json.gz"
        for stamp in ("20260101_000000", "20270101_000000", "20260601_000000")
        for table in ("public.b", "public.a", "other.z")
    ]
    files = [file for name in names if (file := snapshot_file(name, 1))]
    assert [(file.stamp, str(file.table)) for file in newest_first(files)] == [
        (stamp, table)
        for stamp in ("20270101_000000", "20260601_000000", "20260101_000000")
        for table in ("other.z", "a", "b")
    ]


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".json.zst"])
@pytest.mark.parametrize(
    "stamp", ["20260205_103000", "20240229_235959", "00010101_000000", "99991231_235959"]
)
def test_a_change_file_is_named_by_a_time_that_there_is(stamp: str, ending: str) -> None:
    assert is_change_file(f"changes_{stamp}{ending}")
    assert not is_left_out(f"changes_{stamp}{ending}")


@given(st.text(max_size=30), st.sampled_from([".json", ".json.gz", ""]))
def test_what_is_a_change_file_is_nothing_else_and_sorts_by_its_time(middle: str, ending: str) -> None:
    name = f"changes_{middle}{ending}"
    if is_change_file(name):
        assert (moment := parse_stamp(middle)) and f"changes_{moment:%Y%m%d_%H%M%S}{ending}" == name
    else:
        assert is_left_out(name) or name.endswith((".tmp", ".part"))


@pytest.mark.parametrize(
    "name", ["snapshot_20260230_103000/public.users.json.gz", "snapshot_99999999_999999"]
)
def test_a_snapshot_of_a_time_that_there_is_not_is_none(name: str) -> None:
    assert parse_snapshot_name(name) is None and not is_snapshot_directory(name)


@pytest.mark.parametrize(("ahead", "expected"), [("20260207_102959", False), ("20260207_103001", True)])
def test_a_name_may_run_ahead_by_hours_but_not_by_days(ahead: str, expected: bool) -> None:
    assert is_ahead(f"changes_{ahead}.json", NOW) is expected


# The time in a name


moments = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(9998, 1, 1), timezones=st.just(dt.UTC))


@given(st.lists(moments, min_size=1), st.sampled_from(["", "_2", "-late.x"]))
def test_names_strictly_increase_whatever_the_clock_does(clock: list[dt.datetime], foreign: str) -> None:
    name = f"changes_20260205_103000{foreign}"
    for now in clock:
        following = next_name(now, f"{name}.json.zst")
        assert following > name
        name = following


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (None, "changes_20260205_103000"),
        ("changes_20260205_102959.json", "changes_20260205_103000"),
        ("changes_20260205_103000.json.gz", "changes_20260205_103001"),
        ("changes_20260205_103000_b.json", "changes_20260205_103001"),
        ("changes_20261231_235959.json.zst", "changes_20270101_000000"),
    ],
)
def test_a_name_is_the_time_or_the_second_after_the_last(last: str | None, expected: str) -> None:
    assert next_name(NOW, last) == expected


@pytest.mark.parametrize(
    "last", ["changes_99991231_235959.json", "changes_99999999_999999.json", "changes_zzz.json"]
)
def test_a_last_name_that_nothing_can_follow_is_refused(last: str) -> None:
    with pytest.raises(SpoolError, match="no name of a change file can follow"):
        next_name(NOW, last)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("changes_20260205_103000.json", NOW),
        ("changes_20260205_103000_late.json.zst:17", NOW),
        ("changes_20260205_103000", NOW),
        ("changes_99999999_999999.json", None),
        ("changes_2026025_103000.json", None),
        ("changes_monday.json", None),
        ("snapshot_20260205_103000/public.users.json.gz", None),
        ("", None),
    ],
)
def test_the_time_in_a_name_is_that_of_a_change_file_or_none(name: str, expected: dt.datetime | None) -> None:
    assert file_time(name) == expected


def test_a_stamp_is_a_time_in_utc_or_none() -> None:
    assert parse_stamp(STAMP) == NOW
    assert parse_stamp("20260230_103000") is None
