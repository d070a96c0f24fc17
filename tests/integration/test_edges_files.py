"""Archives at their worst: files that vanish, shrink, grow, or hold what nobody expects."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from syncdata.apply.progress import NoProgress
from syncdata.errors import ApplyError, DiscoveryError, ParseError, ResyncError, SyncError
from tests.world import World, insert, with_header

FIRST, SECOND = "changes_20260205_103000.json", "changes_20260205_103001.json"


@pytest.fixture
def pair(world: World) -> World:
    """Two whitelisted tables, t and o."""
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", "CREATE TABLE o (id int PRIMARY KEY)")
    world.whitelist("t", "o")
    return world


def without_header(records: list[dict[str, Any]], *, seq: int, prev: str | None, start: int = 0) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def inserts(table: str, *keys: Any) -> list[dict[str, Any]]:
    """Records of a transaction each."""
    return [insert(table, ts=f"2026-02-05T10:30:{n:02d}Z", id=key) for n, key in enumerate(keys)]


def ids(world: World, table: str = "t") -> list[int]:
    return [number for (number,) in world.rows(f"SELECT id FROM {table} ORDER BY 1")]


def the_error(world: World, kind: type[SyncError]) -> SyncError:
    (error,) = world.sync().errors
    assert type(error) is kind
    return error


# What vanishes or shrinks


@pytest.mark.parametrize("encode", [without_header, with_header])
def test_a_file_that_vanishes_half_applied_is_missed_until_it_is_back(
    pair: World, encode: Callable[..., bytes]
) -> None:
    pair.options["batch_records"] = 1
    half = pair.archive / FIRST
    half.write_bytes(encode(inserts("t", 1, 2, "bad", 4), seq=1, prev=None))
    the_error(pair, ApplyError)
    assert pair.checkpoint("t")[:2] == (FIRST, 2)
    half.unlink()
    (pair.archive / SECOND).write_bytes(encode(inserts("t", 5), seq=2, prev=FIRST, start=4))
    error = the_error(pair, DiscoveryError)
    assert "gone from the archive" in error.message and error.file == FIRST
    assert ids(pair) == [1, 2]
    half.write_bytes(encode(inserts("t", 1, 2, 3, 4), seq=1, prev=None))
    assert pair.sync().errors == ()
    assert ids(pair) == [1, 2, 3, 4, 5]


def test_a_plain_file_that_shrinks_below_its_checkpoint_is_never_taken_for_finished(pair: World) -> None:
    pair.options["batch_records"] = 2
    records = inserts("t", *range(10))
    pair.write(FIRST, [*records[:5], "broken"])
    the_error(pair, ParseError)
    applied = pair.checkpoint("t")[1]
    pair.write(FIRST, records[: applied - 1])
    assert f"but {applied} of it were applied" in the_error(pair, ParseError).message
    pair.write(SECOND, inserts("t", 99))
    the_error(pair, ParseError)
    pair.write(FIRST, records)
    assert pair.sync().errors == ()
    assert ids(pair) == [*range(10), 99]


@pytest.mark.parametrize("gone", [(FIRST, SECOND), (SECOND,), (FIRST,)], ids=["all", "newest", "oldest"])
def test_a_resync_from_an_archive_that_lacks_files_keeps_the_old_rows(
    pair: World, gone: tuple[str, ...]
) -> None:
    for seq, (name, prev) in enumerate([(FIRST, None), (SECOND, FIRST)], start=1):
        records = [*inserts("t", seq), *inserts("o", seq)]
        (pair.archive / name).write_bytes(with_header(records, seq=seq, prev=prev, start=seq * 10))
    pair.sync()
    for name in gone:
        (pair.archive / name).unlink()
    with pair.service() as service, pytest.raises(ResyncError, match="old rows are still there"):
        service.resync("t")
    assert ids(pair) == [1, 2]
    assert pair.checkpoint("t")[:2] == pair.checkpoint("o")[:2]


def test_tables_are_not_blocked_any_more_once_the_broken_file_is_withdrawn(pair: World) -> None:
    broken = pair.write(FIRST, ["broken"])
    the_error(pair, ParseError)
    assert pair.checkpoint("t")[2] == "blocked"
    broken.unlink()
    assert pair.sync().errors == ()
    assert pair.checkpoint("t")[2:] == ("active", None)


# What grows or comes late


def test_a_plain_file_that_grew_before_it_was_compressed_goes_on(pair: World) -> None:
    path = pair.write(FIRST, inserts("t", 1))
    pair.sync()
    pair.write(FIRST, inserts("t", 1, 2))
    (pair.archive / f"{FIRST}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    pair.write(SECOND, inserts("t", 3))
    assert pair.sync().records_added == 2
    assert ids(pair) == [1, 2, 3]


def test_a_file_that_grows_while_it_is_read_is_read_as_it_was(pair: World) -> None:
    path = pair.write(FIRST, inserts("t", *range(50)))
    one_more = json.dumps(insert("t", id=50))

    class Writer(NoProgress):
        def file_started(self, name: str, size_bytes: int) -> None:
            with path.open("a") as file:
                file.write(one_more[:20])

    with pair.service(progress=Writer()) as service:
        assert service.run_once().errors == ()
    assert len(ids(pair)) == 50
    with path.open("a") as file:
        file.write(one_more[20:] + "\n")
    assert pair.sync().records_added == 1


def test_a_file_with_an_old_time_that_sorts_after_the_checkpoint_is_applied(pair: World) -> None:
    pair.write(FIRST, inserts("t", 1))
    pair.sync()
    os.utime(pair.write(SECOND, inserts("t", 2)), (0, 0))
    assert pair.sync().records_added == 1


# What nobody expects


def test_a_file_whose_name_is_no_text_is_named_and_left_out_until_it_is_renamed(
    pair: World, caplog: pytest.LogCaptureFixture
) -> None:
    odd = os.fsencode(pair.archive) + b"/changes_\xff.json"
    with open(odd, "w") as file:
        file.write(json.dumps(insert("t", id=1)) + "\n")
    assert pair.sync().records_added == 0
    assert r"'changes_\udcff.json'" in caplog.text
    os.rename(odd, pair.archive / FIRST)
    assert pair.sync().records_added == 1


@pytest.mark.parametrize("depth", [450, 100_000])
def test_nesting_however_deep_stops_at_its_line_until_it_is_mended(pair: World, depth: int) -> None:
    pair.execute("ALTER TABLE t ADD a int[]")
    nested = "[" * depth + "]" * depth
    deep = '{"table":"t","op":"INSERT","data":{"id":2,"a":%s},"ts":"2"}'
    pair.write(FIRST, [insert("t", ts="1", id=1), deep % nested])
    (error,) = pair.sync().errors
    assert (error.file, error.line) == (FIRST, 2)
    pair.write(FIRST, [insert("t", ts="1", id=1), deep % "[1]"])
    assert pair.sync().errors == ()
    assert ids(pair) == [1, 2]


def test_a_number_of_thousands_of_digits_is_kept(pair: World) -> None:
    pair.execute("ALTER TABLE t ADD n numeric")
    digits = "1" * 5000
    pair.write(FIRST, ['{"table":"t","op":"INSERT","data":{"id":1,"n":' + digits + '},"ts":"1"}'])
    assert pair.sync().errors == ()
    assert pair.rows("SELECT n::text FROM t") == [(digits,)]


@pytest.mark.parametrize("ts", ["9999-12-31T23:59:59-05:00", "infinity", "today"])
def test_a_time_that_no_datetime_can_hold_stops_nothing(pair: World, ts: str) -> None:
    pair.write(FIRST, [insert("t", ts=ts, id=1)])
    assert pair.sync().errors == ()
    with pair.service() as service:
        assert [info.last_change_at for info in service.list_tables()] == [None, None]
