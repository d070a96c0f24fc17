from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import get_args

import pytest

from syncdata.capture import spool
from syncdata.capture.spool import FileWriter, SpooledFile, list_finished, replace_in_spool, take_over
from syncdata.changes.filenames import SUFFIXES, Compression
from syncdata.changes.header import Header
from syncdata.changes.reader import inspect, read_records
from syncdata.errors import SpoolError

HEADER = Header(
    syncdata=1, system_id="7", timeline=1, slot="s", epoch="e", seq=1, created="2026-02-05T10:30:00Z"
)
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


def line(number: int) -> bytes:
    return b'{"table":"t","op":"INSERT","data":{"id":"%d"},"commit_lsn":"0/%X"}\n' % (number, number)


def write(directory: Path, name: str, records: int, compression: Compression = "zstd") -> SpooledFile:
    writer = FileWriter(directory, ".changes.part", HEADER, compression)
    for number in range(1, records + 1):
        writer.write(line(number))
    return writer.finish(
        name,
        records=records,
        transactions=records,
        first_commit_lsn=1,
        last_commit_lsn=records,
        end_lsn=records + 1,
    )


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("records", [1, 20_000])  # within one buffer, and over many
def test_a_finished_file_is_read_back_equal(tmp_path: Path, compression: Compression, records: int) -> None:
    file = write(tmp_path, "changes_20260205_103000", records, compression)
    assert file.name == "changes_20260205_103000" + SUFFIXES[compression]
    with file.path.open("rb") as stream:
        inspection = inspect(stream, file.name)
        assert (inspection.header, inspection.footer) == (file.header, file.footer)
        read = [located.record for located in read_records(stream, file.name)]
    assert [record.data for record in read] == [{"id": str(number)} for number in range(1, records + 1)]
    assert file.footer.records == records
    assert os.listdir(tmp_path) == [file.name]


def test_the_first_file_says_that_nothing_came_before(tmp_path: Path) -> None:
    file = write(tmp_path, "changes_20260205_103000", 1, "none")
    assert b'"prev":null' in file.path.read_bytes().splitlines()[0]


def test_a_record_that_readers_may_refuse_is_written_and_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "DEFAULT_MAX_RECORD_BYTES", len(line(1)))
    file = write(tmp_path, "changes_20260205_103000", 1)
    assert caplog.messages == []
    monkeypatch.setattr(spool, "DEFAULT_MAX_RECORD_BYTES", len(line(1)) - 1)
    file = write(tmp_path, "changes_20260205_103001", 1)
    assert "max_record_bytes" in caplog.text
    assert file.footer.records == 1


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_file_that_is_given_up_leaves_nothing(tmp_path: Path, compression: Compression) -> None:
    writer = FileWriter(tmp_path, ".changes.part", HEADER, compression)
    writer.write(line(1))
    writer.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_full_disk_is_said_and_the_file_can_still_be_given_up(
    tmp_path: Path, compression: Compression
) -> None:
    (tmp_path / ".changes.part").symlink_to("/dev/full")
    writer = FileWriter(tmp_path, ".changes.part", HEADER, compression)
    with pytest.raises(SpoolError, match="SHD_SYN_106.*No space left"):
        for _ in range(200):
            writer.write(os.urandom(20_000).hex().encode() + b"\n")
    writer.discard()
    assert os.listdir(tmp_path) == []


def test_what_was_left_unfinished_is_removed_and_what_is_finished_is_found_in_order(tmp_path: Path) -> None:
    second = write(tmp_path, "changes_20260205_103001", 2, "gzip")
    first = write(tmp_path, "changes_20260205_103000", 1, "zstd")
    (tmp_path / ".changes.part").write_bytes(b"half")
    for state in ("chain", "catalog", "owed", "published"):
        (tmp_path / f".{state}.json.a1b2c3d4.part").write_bytes(b"half")
    (tmp_path / "changes_20260205_103002.json.zst").write_bytes(first.path.read_bytes()[:-3])
    (tmp_path / "chain.json").write_text("{}")
    assert take_over(tmp_path) == [first, second]
    assert sorted(os.listdir(tmp_path)) == ["chain.json", first.name, second.name]
    assert [name for name, _ in list_finished(tmp_path)] == [first.name, second.name]


def test_a_file_of_somebody_else_is_refused_and_not_removed(tmp_path: Path) -> None:
    plain = tmp_path / "changes_20260205_103000.json"
    plain.write_bytes(line(1))
    with pytest.raises(SpoolError, match="not the archiver's"):
        take_over(tmp_path)
    assert plain.exists()


def test_a_spool_that_is_not_there_cannot_be_taken_over_but_is_listed_as_empty(tmp_path: Path) -> None:
    assert list_finished(tmp_path / "spool") == []
    with pytest.raises(SpoolError, match="SHD_SYN_106"):
        take_over(tmp_path / "spool")


def test_a_failed_replacement_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "chain.json"
    replace_in_spool(path, b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(SpoolError, match="SHD_SYN_106.*No space left"):
        replace_in_spool(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]
