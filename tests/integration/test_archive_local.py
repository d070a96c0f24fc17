"""The archive in a directory of this machine, and what both archives share: names and their order."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from syncdata.archive.archive import ChangeFile, open_archive
from syncdata.archive.local import LocalSettings
from syncdata.changes.filenames import stem
from syncdata.errors import DiscoveryError, FetchError
from tests.many_files import name_of, put_100_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    path.mkdir()
    return path


def discover(directory: Path, since: str | None = None) -> list[str]:
    archive = open_archive(LocalSettings(directory=directory))
    return [file.name for file in archive.discover(since)]


def put(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).touch()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("changes_20260205_103000.json", "changes_20260205_103000"),
        ("changes_20260205_103000.json.gz", "changes_20260205_103000"),
        ("changes_20260205_103000.json.zst", "changes_20260205_103000"),
        ("changes_20260205_103000", "changes_20260205_103000"),
        ("", ""),
    ],
)
def test_the_stem_is_the_name_without_its_ending(name: str, expected: str) -> None:
    assert stem(name) == expected
    assert ChangeFile(name=name, size_bytes=0).stem == expected


def test_files_come_in_the_order_of_their_names_whatever_their_times(directory: Path) -> None:
    put(
        directory,
        "changes_20260101_000002.json",
        "changes_20260101_000001.json.gz",
        "changes_20260101_000003.json.zst",
    )
    os.utime(directory / "changes_20260101_000002.json", (1, 1))
    os.utime(directory / "changes_20260101_000001.json.gz", (9, 9))
    assert discover(directory) == [
        "changes_20260101_000001.json.gz",
        "changes_20260101_000002.json",
        "changes_20260101_000003.json.zst",
    ]


def test_endings_do_not_disturb_the_order(directory: Path) -> None:
    names = [
        "changes_20260101_000001.json.zst",
        "changes_20260101_000002.json",
        "changes_20260101_000003.json.gz",
    ]
    put(directory, *names)
    assert discover(directory) == names


def test_unfinished_hidden_and_other_names_are_left_out(directory: Path) -> None:
    put(
        directory,
        ".changes_20260101_000001.json",
        "changes_20260101_000002.json.tmp",
        "changes_20260101_000003.json.part",
        "changes_20260101_000004.json.gz.tmp",
        "changes_20260101_000005.json.bz2",
        "changes_20260101_000006.jsonl",
        "changes_20260101_000007",
        "old_changes_20260101_000008.json",
        "changes_20260101_000009.json~",
        "changes_20260101_000009.json\n",
    )
    (directory / "changes_20260101_000010.json").mkdir()
    (directory / "snapshot_20260205_103000").mkdir()
    os.mkfifo(directory / "changes_20260101_000011.json")
    (directory / "changes_20260101_000012.json").symlink_to("nowhere")
    put(directory, "changes_20260101_000000.json")
    assert discover(directory) == ["changes_20260101_000000.json"]


def test_discovery_begins_with_the_file_it_is_given_and_ignores_its_ending(directory: Path) -> None:
    put(
        directory,
        "changes_20260101_000001.json",
        "changes_20260101_000002.json.gz",
        "changes_20260101_000003.json",
    )
    for since in (
        "changes_20260101_000002.json",
        "changes_20260101_000002.json.gz",
        "changes_20260101_000002.json.zst",
    ):
        assert discover(directory, since) == [
            "changes_20260101_000002.json.gz",
            "changes_20260101_000003.json",
        ]
    assert discover(directory, "changes_20260101_000004.json") == []


def test_a_late_file_that_sorts_after_the_last_one_is_found_though_it_is_older(directory: Path) -> None:
    put(directory, "changes_20260101_000002.json", "changes_20260101_000003.json")
    os.utime(directory / "changes_20260101_000003.json", (1, 1))
    assert discover(directory, "changes_20260101_000002.json") == [
        "changes_20260101_000002.json",
        "changes_20260101_000003.json",
    ]


def test_of_two_files_with_one_stem_the_plainest_is_taken(directory: Path) -> None:
    put(
        directory,
        "changes_20260101_000001.json",
        "changes_20260101_000001.json.gz",
        "changes_20260101_000001.json.zst",
    )
    put(directory, "changes_20260101_000002.json.zst", "changes_20260101_000002.json.gz")
    assert discover(directory) == ["changes_20260101_000001.json", "changes_20260101_000002.json.gz"]


def test_only_the_new_files_of_100_000_are_looked_at(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_100_000(directory)
    looked_at: list[str] = []
    scandir = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name = entry.name
            self._entry = entry

        def stat(self) -> os.stat_result:
            looked_at.append(self.name)
            return self._entry.stat()

    class Watched:
        def __init__(self, path: Path) -> None:
            self._entries = scandir(path)

        def __enter__(self) -> list[Entry]:
            return [Entry(entry) for entry in self._entries]

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    monkeypatch.setattr("syncdata.archive.local.os.scandir", Watched)
    expected = [name_of(number) for number in (99_997, 99_998, 99_999)]
    assert discover(directory, expected[0]) == expected
    assert sorted(looked_at) == expected


def test_a_fetched_file_is_as_it_lies_there(directory: Path) -> None:
    content = gzip.compress(b"{}\n")
    (directory / "changes_20260101_000001.json.gz").write_bytes(content)
    archive = open_archive(LocalSettings(directory=directory))
    [file] = archive.discover(None)
    assert file.size_bytes == len(content)
    with archive.fetch(file) as fetched:
        assert fetched.seekable() and fetched.read() == content


def test_files_that_the_predecessor_read_and_we_do_not_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("users.json", "Changes_1.JSON", "old.json.gz", "notes.txt", ".hidden.json", "head.json"):
        put(tmp_path, name)
    put(tmp_path, "changes_20260205_103000.json")
    archive = open_archive(LocalSettings(directory=tmp_path))
    for _ in range(2):
        assert [file.name for file in archive.discover(None)] == ["changes_20260205_103000.json"]
    (told,) = caplog.messages
    assert "3 file(s) are not read" in told
    assert told.endswith(": 'Changes_1.JSON', 'old.json.gz', 'users.json'")
    put(tmp_path, "more.json")
    archive.discover(None)
    assert caplog.messages[1:] and caplog.messages[1].endswith(": 'more.json'")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiscoveryError) as caught:
        discover(tmp_path / "none")
    assert str(caught.value) == (
        f"SHD_SYN_061: {tmp_path}/none: the archive cannot be listed: No such file or directory"
        " (check in the configuration that the archive is there)"
    )


def test_a_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    put(tmp_path, "file")
    with pytest.raises(DiscoveryError, match="Not a directory"):
        discover(tmp_path / "file")


def test_a_file_that_is_gone_is_a_fetch_error(directory: Path) -> None:
    archive = open_archive(LocalSettings(directory=directory))
    with pytest.raises(FetchError) as caught:
        archive.fetch(ChangeFile(name="changes_20260101_000001.json", size_bytes=0))
    assert str(caught.value).startswith(f"SHD_SYN_062: {directory}/changes_20260101_000001.json: ")


def test_closing_and_describing_need_no_directory(tmp_path: Path) -> None:
    archive = open_archive(LocalSettings(directory=tmp_path / "none"))
    assert archive.describe() == f"{tmp_path}/none"
    archive.close()
