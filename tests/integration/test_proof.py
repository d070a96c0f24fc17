"""What is applied is what was proved, whatever somebody does to the file in between."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syncdata.apply.feed import files
from syncdata.archive.steady import BLOCK_BYTES, open_steady
from syncdata.changes import reader
from syncdata.errors import FetchError, SyncError
from tests.framed import Record, Writer, file_name
from tests.world import World, insert


def row(number: int, v: str = "x") -> Record:
    return {"table": "t", "op": "INSERT", "data": {"id": number, "v": v}}


@pytest.fixture
def pair(world: World) -> World:
    world.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.whitelist("t")
    return world


def write_over(path: Path) -> None:
    """Put other rows into the file, in place and of the same length."""
    content = path.read_bytes().replace(b'"id": 2,', b'"id": 9,')
    with path.open("r+b") as file:
        file.write(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace(path: Path) -> None:
    other = path.with_name(".other")
    other.write_bytes(path.read_bytes().replace(b'"id": 2,', b'"id": 9,'))
    other.rename(path)


def between_proof_and_apply(monkeypatch: pytest.MonkeyPatch, path: Path, do: Callable[[Path], None]) -> None:
    """Let *do* be done to *path* when it has been proved and no record has been read yet; once."""
    to_do = [path]

    def inspect(stream: Any, name: str, **options: Any) -> Any:
        inspection = reader.inspect(stream, name, **options)
        if name == path.name and to_do:
            do(to_do.pop())
        return inspection

    monkeypatch.setattr(files, "inspect", inspect)


@pytest.mark.parametrize("do", [write_over, truncate])
def test_a_file_that_is_written_over_after_its_proof_applies_none_of_the_new_rows(
    pair: World, monkeypatch: pytest.MonkeyPatch, do: Callable[[Path], None]
) -> None:
    long = "y" * 3 * BLOCK_BYTES
    path = Writer(pair.archive).changes(1, [(10, [row(1, long)]), (20, [row(2, long)]), (30, [row(3)])])
    good = path.read_bytes()
    between_proof_and_apply(monkeypatch, path, do)
    with pytest.raises(FetchError, match=r"SHD_SYN_062.*while it was read"):
        pair.sync()
    assert pair.value("SELECT count(*) FROM t WHERE id = 9") == 0
    try:
        pair.sync()  # It is read again, and is broken now.
    except SyncError as error:
        assert error.code in ("SHD_SYN_062", "SHD_SYN_063")
    assert pair.value("SELECT count(*) FROM t WHERE id = 9") == 0
    path.write_bytes(good)
    pair.sync()
    assert pair.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("do", [write_over, truncate, replace])
def test_a_small_file_or_one_that_another_takes_the_place_of_is_applied_as_it_was_proved(
    pair: World, monkeypatch: pytest.MonkeyPatch, do: Callable[[Path], None]
) -> None:
    path = Writer(pair.archive).changes(1, [(10, [row(1)]), (20, [row(2)])])
    between_proof_and_apply(monkeypatch, path, do)
    pair.sync()
    assert pair.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,)]


def test_a_plain_file_that_grows_after_its_proof_is_applied_as_it_was_and_goes_on_later(
    pair: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pair.write(file_name(1), [insert("t", ts="1", id=1)])

    def grow(grown: Path) -> None:
        with grown.open("a") as file:
            file.write(json.dumps(insert("t", ts="2", id=2)) + "\n")

    between_proof_and_apply(monkeypatch, path, grow)
    assert pair.sync().records_added == 1
    assert pair.sync().records_added == 1


@pytest.mark.parametrize(
    ("footer", "problem"),
    [
        ((b'"transactions":2', b'"transactions":1'), "transactions in its footer"),
        ((b'"last_commit_lsn":"0/14"', b'"last_commit_lsn":"0/7F"'), "last_commit_lsn in its footer"),
        ((b'"first_commit_lsn":"0/A"', b'"first_commit_lsn":"0/B"'), "first_commit_lsn in its footer"),
    ],
)
def test_a_footer_that_lies_about_the_records_holds_the_last_of_them_back(
    pair: World, footer: tuple[bytes, bytes], problem: str
) -> None:
    """The SHA-256 covers all lines but the footer's own."""
    path = Writer(pair.archive).changes(1, [(10, [row(1)]), (20, [row(2)])])
    good = path.read_bytes()
    path.write_bytes(good.replace(*footer))
    pair.sync()
    _, _, state, error = pair.checkpoint("t")
    assert state == "blocked" and problem in (error or "") and "SHD_SYN_063" in (error or "")
    path.write_bytes(good)
    pair.sync()
    assert pair.value("SELECT count(*) FROM t") == 2 and pair.checkpoint("t")[2] == "active"


def test_an_open_file_reads_the_same_from_any_place_as_often_as_it_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "f"
    content = os.urandom(2 * BLOCK_BYTES + 17)
    path.write_bytes(content)
    with open_steady(path) as file:
        with path.open("ab") as more:
            more.write(b"later")
        for _ in range(2):
            file.seek(0)
            assert file.read() == content
        file.seek(-20, os.SEEK_END)
        assert file.read() == content[-20:]
        assert file.seek(0, os.SEEK_END) == len(content)


def test_a_pipe_or_a_directory_in_the_place_of_a_file_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            open_steady(path)
