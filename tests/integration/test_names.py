"""Names in the archive that mislead: copies, strays, times that cannot be."""

from __future__ import annotations

import datetime as dt
import logging
import shutil

import pytest

from syncdata.archive.archive import Archive
from syncdata.archive.local import LocalStorage
from syncdata.archive.retention import find_removals
from syncdata.changes.filenames import is_ahead
from syncdata.changes.names import TableName
from tests.framed import Record, Writer, file_name
from tests.world import World, insert


@pytest.fixture
def pair(world: World) -> World:
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    return world


def row(number: int) -> Record:
    return {"table": "t", "op": "INSERT", "data": {"id": number}}


def ids(world: World) -> list[int]:
    return [number for (number,) in world.rows("SELECT id FROM t ORDER BY id")]


def error_of(world: World) -> str:
    return world.checkpoint("t")[3] or ""


@pytest.mark.parametrize(
    "stray", ["changes_backup.json", "changes_20260205_000001 (copy).json", "changes_20269999_000000.json"]
)
def test_a_stray_copy_is_named_and_hides_nothing(
    pair: World, stray: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(pair.archive)
    shutil.copy(writer.changes(1, [(10, [row(1)])]), pair.archive / stray)
    pair.sync()
    writer.changes(2, [(20, [row(2)])])
    pair.sync()
    assert ids(pair) == [1, 2] and pair.checkpoint("t")[2] == "active"
    assert sum(stray in message for message in caplog.messages) == 1


def test_a_plain_file_behind_a_chain_is_a_gap_until_it_is_moved_away(pair: World) -> None:
    writer = Writer(pair.archive)
    writer.changes(1, [(10, [row(1)])])
    stray = pair.write(file_name(2), [insert("t", id=99)])
    pair.sync()
    assert ids(pair) == [1]
    assert "a gap" in error_of(pair) and "move it out of the archive" in error_of(pair)
    writer.changes(3, [(30, [row(3)])], prev=1)
    pair.sync()
    assert ids(pair) == [1]
    stray.rename(pair.state_dir / stray.name)
    pair.sync()
    assert ids(pair) == [1, 3] and pair.checkpoint("t")[2] == "active"


def test_a_copy_of_a_file_of_the_chain_under_a_later_name_is_a_gap_until_it_is_moved_away(
    pair: World,
) -> None:
    writer = Writer(pair.archive)
    first = writer.changes(1, [(10, [row(1)])])
    writer.changes(2, [(20, [row(2)])])
    copy = pair.archive / file_name(50)
    shutil.copy(first, copy)
    pair.sync()
    assert "it is a copy under another name" in error_of(pair)
    copy.unlink()
    writer.changes(3, [(30, [row(3)])])
    pair.sync()
    assert ids(pair) == [1, 2, 3] and pair.checkpoint("t")[2] == "active"


def test_a_plain_file_of_a_time_that_is_days_ahead_is_not_taken_for_the_newest(pair: World) -> None:
    pair.write(file_name(1), [insert("t", id=1)])
    ahead = pair.write("changes_99991231_235959.json", [insert("t", id=2)])
    pair.sync()
    assert ids(pair) == [1]
    assert "days ahead" in error_of(pair) and "rename it" in error_of(pair)
    ahead.rename(pair.archive / file_name(2))
    pair.sync()
    assert ids(pair) == [1, 2] and pair.checkpoint("t")[2] == "active"
    assert not is_ahead(file_name(2), dt.datetime.now(dt.UTC))


def test_a_table_that_stands_behind_a_stray_copy_says_so(pair: World) -> None:
    """An older version took the copy for the newest file, and then nothing followed it, silently."""
    writer = Writer(pair.archive)
    writer.changes(1, [(10, [row(1)])])
    pair.sync()
    pair.execute("UPDATE data_sync_checkpoints SET file = 'changes_backup.json'")
    writer.changes(2, [(20, [row(2)])])
    pair.sync()
    assert "changes_backup.json" in error_of(pair) and "resync" in error_of(pair)
    writer.snapshot(3, "t", 20, [{"id": 1}, {"id": 2}], prev=2)
    with pair.service() as service:
        service.resync("t")
    writer.changes(4, [(40, [row(4)])], prev=2)
    pair.sync()
    assert ids(pair) == [1, 2, 4] and pair.checkpoint("t")[2] == "active"


@pytest.mark.parametrize(
    "prev", ["changes_backup.json", "../changes.json", "x\ny", "changes_20991231_000000.json"]
)
def test_a_snapshot_that_goes_on_from_no_file_of_the_archive_is_passed_over_with_a_word(
    pair: World, prev: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(pair.archive)
    writer.changes(1, [(10, [row(1)])])
    writer.snapshot(2, "t", 10, [{"id": 1}], prev=1)
    writer.snapshot(3, "t", 20, [{"id": 77}], prev=prev)
    pair.sync()
    writer.changes(4, [(40, [row(4)])], prev=1)
    pair.sync()
    assert ids(pair) == [1, 4] and pair.checkpoint("t")[2] == "active"
    (passed_over,) = (message for message in caplog.messages if "passed over" in message)
    assert "it goes on from" in passed_over and passed_over.isprintable()


def test_a_snapshot_whose_file_was_pruned_is_as_good_as_before(pair: World) -> None:
    writer = Writer(pair.archive)
    first = writer.changes(1, [(10, [row(1)])])
    writer.snapshot(2, "t", 10, [{"id": 1}], prev=1)
    writer.changes(3, [(30, [row(3)])], prev=1)
    first.unlink()
    pair.sync()
    assert ids(pair) == [1, 3] and pair.checkpoint("t")[2] == "active"


@pytest.mark.parametrize("prev", ["changes_zzz.json", "changes_20991231_000000.json"])
def test_a_snapshot_that_goes_on_from_no_change_file_lets_none_be_removed(
    pair: World, prev: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(pair.archive)
    for number in (1, 2, 3):
        writer.changes(number, [(number * 10, [row(number)])])
    writer.snapshot(4, "t", 20, [{"id": 1}], prev=prev)
    with caplog.at_level(logging.WARNING):
        removals = find_removals(
            Archive(LocalStorage(pair.archive)),
            [TableName.parse("t")],
            source_id="7000/1/syncdata_slot/1",
            now=dt.datetime(2027, 1, 1, tzinfo=dt.UTC),
            keep_days=1,
        )
    assert removals.change_files == () and removals.without_snapshot
    assert "goes on from no change file" in caplog.text
