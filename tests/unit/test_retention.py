from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from syncdata.capture.retention import Kept, Removals, plan_removals
from syncdata.engine.archive import ChangeFile, SnapshotFile
from syncdata.engine.archive_names import snapshot_name
from syncdata.engine.changes import TableName

USERS, ORDERS = TableName("public", "users"), TableName("public", "orders")
DAY_ZERO = dt.datetime(2026, 2, 1, 12, tzinfo=dt.UTC)


def stamp(day: int) -> str:
    return f"{DAY_ZERO + dt.timedelta(days=day):%Y%m%d_%H%M%S}"


def change_file(day: int) -> ChangeFile:
    return ChangeFile(name=f"changes_{stamp(day)}.json.zst", size_bytes=10)


def snapshot(table: TableName, day: int) -> SnapshotFile:
    return SnapshotFile(table=table, name=snapshot_name(stamp(day), table), size_bytes=100)


def kept(day: int, prev_day: int) -> Kept:
    return Kept(stamp=stamp(day), prev=change_file(prev_day).name)


def plan(
    days: int,
    snapshots: list[SnapshotFile],
    kept_of: dict[TableName, Kept],
    *,
    keep_from_day: int,
    tables: tuple[TableName, ...] = (USERS, ORDERS),
) -> Removals:
    return plan_removals(
        [change_file(day) for day in range(days)],
        snapshots,
        kept_of,
        tables=tables,
        keep_from=DAY_ZERO + dt.timedelta(days=keep_from_day),
    )


def test_change_files_go_up_to_the_oldest_of_the_newest_snapshots() -> None:
    removals = plan(10, [], {USERS: kept(5, 4), ORDERS: kept(7, 6)}, keep_from_day=100)
    assert removals.files == tuple(change_file(day) for day in range(5))
    assert removals.reasons == ()
    assert removals.size_bytes == 50


def test_what_is_young_stays_although_nobody_needs_it() -> None:
    removals = plan(10, [], {USERS: kept(8, 8), ORDERS: kept(8, 8)}, keep_from_day=3)
    assert removals.files == tuple(change_file(day) for day in range(3))


def test_the_newest_change_file_always_stays() -> None:
    removals = plan(3, [], {USERS: kept(9, 2), ORDERS: kept(9, 2)}, keep_from_day=100)
    assert removals.files == (change_file(0), change_file(1))


def test_a_table_without_a_snapshot_keeps_all_change_files_and_is_named() -> None:
    removals = plan(10, [snapshot(USERS, 1)], {USERS: kept(5, 4)}, keep_from_day=100)
    assert removals.files == (snapshot(USERS, 1),)
    assert removals.reasons == (
        "change files are kept: there is no whole snapshot of orders"
        " (python manage.py archive_changes --snapshot orders)",
    )


def test_older_snapshots_go_but_not_the_newest_whole_one_nor_any_after_it() -> None:
    snapshots = [snapshot(USERS, day) for day in (1, 3, 5, 7)]
    removals = plan(0, snapshots, {USERS: kept(5, 4)}, keep_from_day=100, tables=(USERS,))
    assert removals.files == (snapshot(USERS, 1), snapshot(USERS, 3))


def test_a_snapshot_taken_before_the_first_change_file_needs_all_of_them() -> None:
    removals = plan(10, [], {USERS: Kept(stamp=stamp(0), prev="")}, keep_from_day=100, tables=(USERS,))
    assert removals.files == ()


def test_a_name_that_tells_no_time_stays_and_so_does_all_after_it() -> None:
    odd = ChangeFile(name="changes_0.json", size_bytes=1)
    removals = plan_removals(
        [odd, *(change_file(day) for day in range(9))],
        [],
        {USERS: kept(5, 4)},
        tables=[USERS],
        keep_from=DAY_ZERO + dt.timedelta(days=100),
    )
    assert removals.files == ()


@given(
    days=st.integers(1, 12),
    snapshot_days=st.dictionaries(
        st.sampled_from([USERS, ORDERS]), st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=2
    ),
    keep_from_day=st.integers(0, 14),
)
def test_every_table_can_still_begin_with_its_newest_snapshot_and_go_on_without_a_gap(
    days: int, snapshot_days: dict[TableName, list[int]], keep_from_day: int
) -> None:
    newest = {table: max(taken) for table, taken in snapshot_days.items()}
    snapshots = [snapshot(table, day) for table, taken in snapshot_days.items() for day in {*taken}]
    kept_of = {table: kept(day, min(day, days - 1)) for table, day in newest.items()}
    gone = set(plan(days, snapshots, kept_of, keep_from_day=keep_from_day).files)
    left = [day for day in range(days) if change_file(day) not in gone]
    assert left == list(range(left[0], days))
    for table in (USERS, ORDERS):
        if table not in newest:
            assert left == list(range(days))
            continue
        assert snapshot(table, newest[table]) not in gone
        assert left[0] <= min(newest[table], days - 1) + 1
