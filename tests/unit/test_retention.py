from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncdata.archive.retention import ProvedSnapshot, Removals, old_catalogs, plan_removals
from syncdata.changes.filenames import ChangeFile, SnapshotFile, snapshot_name
from syncdata.changes.names import TableName

NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
USERS, ORDERS = TableName("public", "users"), TableName("public", "orders")


def stamp(days_ago: float) -> str:
    return f"{NOW - dt.timedelta(days=days_ago):%Y%m%d_%H%M%S}"


def changes(days_ago: float) -> ChangeFile:
    return ChangeFile(name=f"changes_{stamp(days_ago)}.json.zst", size_bytes=10)


def snapshot(table: TableName, days_ago: float) -> SnapshotFile:
    return SnapshotFile(table=table, name=snapshot_name(stamp(days_ago), table), size_bytes=100)


def proved(table: TableName, days_ago: float, prev: ChangeFile | None) -> ProvedSnapshot:
    return ProvedSnapshot(file=snapshot(table, days_ago), prev=prev.name if prev else None)


def plan(
    files: list[ChangeFile],
    *newest: ProvedSnapshot,
    older: tuple[SnapshotFile, ...] = (),
    tables: tuple[TableName, ...] = (USERS, ORDERS),
    keep_days: int = 14,
) -> Removals:
    return plan_removals(
        files,
        [*(one.file for one in newest), *older],
        {one.file.table: one for one in newest},
        tables=tables,
        now=NOW,
        keep_days=keep_days,
    )


def test_change_files_up_to_the_oldest_snapshot_that_is_needed_go() -> None:
    files = [changes(days) for days in (30, 25, 20, 18, 1)]
    removals = plan(files, proved(USERS, 24, files[1]), proved(ORDERS, 17, files[3]))
    assert removals.change_files == tuple(files[:2])
    assert removals.size_bytes == 20
    assert not removals.reason


def test_what_is_younger_than_keep_days_stays() -> None:
    files = [changes(days) for days in (30, 15, 13, 1)]
    removals = plan(files, proved(USERS, 0, files[3]), proved(ORDERS, 0, files[3]))
    assert removals.change_files == tuple(files[:2])


def test_the_newest_change_file_stays_however_old_it_is() -> None:
    files = [changes(30), changes(29)]
    removals = plan(files, proved(USERS, 20, files[1]), proved(ORDERS, 20, files[1]))
    assert removals.change_files == (files[0],)


def test_a_table_without_a_snapshot_keeps_all_change_files_and_is_named() -> None:
    files = [changes(days) for days in (30, 25, 1)]
    removals = plan(files, proved(USERS, 20, files[1]))
    assert removals.change_files == ()
    assert removals.without_snapshot == (ORDERS,)
    assert "archive_changes --snapshot orders'" in removals.reason


def test_a_snapshot_that_needs_all_change_files_keeps_them() -> None:
    files = [changes(days) for days in (30, 25, 1)]
    assert not plan(files, proved(USERS, 31, None), proved(ORDERS, 20, files[1])).files


def test_of_each_table_the_newest_snapshot_and_the_young_ones_stay() -> None:
    files = [changes(1)]
    older = (snapshot(USERS, 40), snapshot(USERS, 10), snapshot(ORDERS, 40), snapshot(ORDERS, 50))
    removals = plan(files, proved(USERS, 5, None), proved(ORDERS, 40, None), older=older)
    assert removals.snapshots == (snapshot(ORDERS, 50), snapshot(USERS, 40))


def test_a_snapshot_newer_than_the_proved_one_stays_for_it_may_not_be_finished() -> None:
    removals = plan([], proved(USERS, 40, None), older=(snapshot(USERS, 30),), tables=(USERS,))
    assert not removals.files


def test_of_a_table_without_a_proved_snapshot_no_snapshot_goes() -> None:
    assert not plan([], older=(snapshot(USERS, 40), snapshot(USERS, 50))).files


def test_of_a_table_that_is_withheld_all_old_snapshots_go() -> None:
    older = (snapshot(USERS, 40), snapshot(USERS, 30), snapshot(USERS, 10))
    files = [changes(days) for days in (30, 25, 1)]
    removals = plan_removals(
        files,
        older,
        {ORDERS: proved(ORDERS, 20, files[1])},
        tables=(ORDERS,),
        now=NOW,
        keep_days=14,
        withheld=(USERS,),
    )
    assert removals.snapshots == older[:2]
    assert removals.change_files == tuple(files[:2])


def test_a_catalog_stays_while_a_file_that_stays_may_name_it() -> None:
    staying = {changes(days_ago=5).name, snapshot(USERS, days_ago=9).name}
    named = {"before": stamp(10), "by the snapshot": stamp(9), "between": stamp(7), "now": stamp(5)}
    assert old_catalogs([*named, "unknown"], named, staying) == ("before",)
    assert old_catalogs(named, named, {changes(days_ago=5).name}) == ("before", "between", "by the snapshot")


def test_no_catalog_goes_where_a_file_tells_no_time_or_none_is_there() -> None:
    named = {"old": stamp(10)}
    assert old_catalogs(named, named, {changes(days_ago=5).name, "changes_from_elsewhere.json"}) == ()
    assert old_catalogs(named, named, set()) == ()


@pytest.mark.parametrize("name", ["changes_x.json", "changes_99999999_000000.json"])
def test_a_file_whose_name_tells_no_time_stays_and_so_do_those_after_it(name: str) -> None:
    files = [changes(30), ChangeFile(name=name, size_bytes=1), changes(20), changes(1)]
    last = files[3]
    removals = plan(files, proved(USERS, 0, last), proved(ORDERS, 0, last))
    assert removals.change_files == (files[0],)


DAYS = st.integers(0, 60)


@given(
    days=st.lists(DAYS, unique=True),
    # Of each table: how old its snapshots are, the newest first, and which of them is the newest proved one.
    snapshots=st.fixed_dictionaries(
        {table: st.lists(DAYS, unique=True, max_size=4) for table in (USERS, ORDERS)}
    ),
    broken=st.fixed_dictionaries({table: st.integers(0, 2) for table in (USERS, ORDERS)}),
    keep_days=st.integers(1, 40),
)
def test_after_pruning_every_table_can_still_be_rebuilt(
    days: list[int], snapshots: dict[TableName, list[int]], broken: dict[TableName, int], keep_days: int
) -> None:
    files = [changes(day + 0.5) for day in sorted(days, reverse=True)]
    found, newest = [], {}
    for table, ages in snapshots.items():
        ages = sorted(ages)
        found += [snapshot(table, age) for age in ages]
        for age in ages[broken[table] :][:1]:
            before = [file for file in files if file.stem < f"changes_{stamp(age)}"]
            newest[table] = proved(table, age, before[-1] if before else None)
    removals = plan_removals(files, found, newest, tables=(USERS, ORDERS), now=NOW, keep_days=keep_days)

    left = [file for file in files if file not in removals.change_files]
    assert not files or left[-1] == files[-1]
    assert left == files[len(files) - len(left) :], "an unbroken end of the chain"
    for table in (USERS, ORDERS):
        if table not in newest:
            assert left == files
            continue
        assert newest[table].file not in removals.snapshots
        prev = newest[table].prev
        needed = files if prev is None else [file for file in files if file.name > prev]
        assert set(needed) <= set(left)
    limit = stamp(keep_days)
    assert all(file.stem < f"changes_{limit}" for file in removals.change_files)
    assert all(file.stamp < limit for file in removals.snapshots)
    again = plan_removals(
        left,
        [file for file in found if file not in removals.snapshots],
        newest,
        tables=(USERS, ORDERS),
        now=NOW,
        keep_days=keep_days,
    )
    assert not again.files, "once is enough"
