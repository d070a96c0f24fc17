"""The archive over a storage in memory: what it promises, whatever the storage does."""

from __future__ import annotations

import io

import pytest

from syncdata.archive.archive import Archive
from syncdata.changes.catalog import catalog_name
from syncdata.changes.filenames import ArchivedFile, SnapshotFile, snapshot_name, temporary_name
from syncdata.changes.head import HEAD_NAME
from syncdata.changes.names import TableName
from syncdata.errors import ArchiveConnectionError, DeliveryError, FetchError
from tests.memory_archive import BUCKETS, MemoryStorage, Outage

NAME = "changes_20260205_103000.json"
USERS = snapshot_name("20260205_103000", TableName("public", "users"))


@pytest.fixture(autouse=True)
def empty() -> None:
    BUCKETS.clear()


@pytest.mark.parametrize("name", [NAME, USERS])
def test_a_file_that_was_put_is_found_fetched_and_removed(name: str) -> None:
    storage = MemoryStorage("b")
    archive = Archive(storage)
    archive.put(name, io.BytesIO(b"content"))
    assert storage.files == {name: b"content"} and storage.durable == {name}
    files: list[ArchivedFile] = [*archive.discover(None), *archive.discover_snapshots()]
    [file] = files
    assert (file.name, file.size_bytes) == (name, 7)
    with archive.fetch(file) as fetched:
        assert fetched.read() == b"content"
    archive.remove(name)
    assert storage.files == {}


@pytest.mark.parametrize("was_there", [False, True])
def test_after_an_outage_at_any_moment_putting_again_makes_one_whole_durable_file(was_there: bool) -> None:
    at = 0
    while True:
        at += 1
        BUCKETS.clear()
        if was_there:
            Archive(MemoryStorage("b")).put(NAME, io.BytesIO(b"content"))
        outage = Outage(at)
        storage = MemoryStorage("b", outage)
        archive = Archive(storage)
        try:
            archive.put(NAME, io.BytesIO(b"content"))
        except ArchiveConnectionError:
            assert storage.files.get(NAME, b"content") == b"content"  # readers see all of it, or nothing
            archive.put(NAME, io.BytesIO(b"content"))
        assert storage.files == {NAME: b"content"} and storage.durable == {NAME}
        if not outage.has_come:
            break
    assert at > 5


@pytest.mark.parametrize("was_there", [False, True])
def test_after_an_outage_at_any_moment_the_head_is_the_old_one_or_the_new_one(was_there: bool) -> None:
    at = 0
    while True:
        at += 1
        BUCKETS.clear()
        if was_there:
            Archive(MemoryStorage("b")).write_head(b"old")
        outage = Outage(at)
        storage = MemoryStorage("b", outage)
        archive = Archive(storage)
        try:
            archive.write_head(b"new")
        except ArchiveConnectionError:
            assert storage.files.get(HEAD_NAME, b"old") in (b"old", b"new")
            archive.write_head(b"new")
        assert storage.files == {HEAD_NAME: b"new"} and storage.durable == {HEAD_NAME}
        if not outage.has_come:
            break
    assert at > 5


def test_a_catalog_is_put_once_listed_and_removed_and_is_no_other_kind_of_file() -> None:
    storage = MemoryStorage("b")
    archive = Archive(storage)
    assert archive.catalog_digests() == []
    name = catalog_name("0123456789abcdef")
    archive.put(name, io.BytesIO(b"{}"))
    archive.put(name, io.BytesIO(b"{}"))
    archive.write_head(b"{}")
    assert archive.catalog_digests() == ["0123456789abcdef"]
    assert (archive.discover(None), archive.discover_snapshots()) == ([], [])
    archive.remove(name)
    assert storage.files == {HEAD_NAME: b"{}"}


@pytest.mark.parametrize(
    "name", ["catalog/../secret.json", "catalog/0123.json", "catalog/x.json", "head.json"]
)
def test_no_other_name_is_taken_for_a_catalogs(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of"):
        Archive(MemoryStorage("b")).put(name, io.BytesIO(b"{}"))


def test_other_content_of_the_same_name_is_refused_and_nothing_is_left_of_it() -> None:
    storage = MemoryStorage("b")
    Archive(storage).put(NAME, io.BytesIO(b"content"))
    storage.files[temporary_name(NAME)] = b"left by a crash"
    with pytest.raises(
        DeliveryError, match=f"SHD_SYN_107: memory://b/{NAME}: the archive has a different file"
    ):
        Archive(storage).put(NAME, io.BytesIO(b"CONTENT"))
    assert storage.files == {NAME: b"content"}


def test_a_storage_that_swallows_bytes_is_found_out() -> None:
    class Lossy(MemoryStorage):
        def size_of(self, name: str) -> int | None:
            size_bytes = super().size_of(name)
            return size_bytes and size_bytes - 1

    storage = Lossy("b")
    with pytest.raises(DeliveryError, match="6 of 7 bytes have arrived"):
        Archive(storage).put(NAME, io.BytesIO(b"content"))
    assert storage.files == {}


@pytest.mark.parametrize(
    "name",
    [
        "changes_\udcff.json",
        "changes_20260205_103000.json\nforged",
        "changes_20260205_103000\x1b[2J.json",
        "changes_20260205_103000\u202e.json",
        "changes_backup.json",
        "changes_20260230_103000.json",
        "changes_20260205_103060.json",
        "changes_20260205_103000 (copy).json",
        "changes_20260205_103000-2.json",
        "Changes_20260205_103000.json",
        "changes_20260205_103000.JSON",
        "changes_20260205_103000.json.bak",
        "changes_20260205_103000.json.bz2",
        "changes_20260205_103000",
        "changes_\u0662\u0660\u0662\u06660205_103000.json",  # digits, to Python
        " changes_20260205_103000.json",
        "snapshot_20260230_103000",
        "snapshot_latest",
        "elsewhere.json",
    ],
)
def test_a_name_that_only_looks_like_a_change_files_is_named_once_and_hides_no_other(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage(f"look-alike {name!a}")
    storage.files |= {name: b"", NAME: b""}
    for _ in range(2):  # The archive is opened anew after a loss of the connection.
        archive = Archive(storage)
        assert [file.name for file in archive.discover(None)] == [NAME]
        assert [file.name for file in archive.discover(NAME)] == [NAME]
    (message,) = caplog.messages
    assert ascii(name) in message and "changes_YYYYMMDD_HHMMSS" in message
    assert message.isprintable()


@pytest.mark.parametrize("name", [f".{NAME}.part", f"{NAME}.tmp", f"{NAME}.part", "head.json", "notes.txt"])
def test_what_is_being_written_or_is_no_matter_of_ours_is_not_worth_a_warning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage("unfinished")
    storage.files |= {name: b""}
    assert Archive(storage).discover(None) == []
    assert not caplog.messages


def test_very_many_names_from_outside_fill_neither_log_nor_memory(caplog: pytest.LogCaptureFixture) -> None:
    storage = MemoryStorage("very many")
    storage.files |= {f"changes_{number}{'x' * 240}.json": b"" for number in range(20_000)}
    for _ in range(3):
        Archive(storage).discover(None)
    assert len(caplog.messages) == 1 and len(caplog.messages[0]) < 2_000


def test_a_snapshot_that_vanishes_while_it_is_listed_is_no_error() -> None:
    class Vanishing(MemoryStorage):
        def list_files(self, directory: str, is_wanted: object) -> list[tuple[str, int]]:
            raise FileNotFoundError

    storage = Vanishing("b")
    storage.files[USERS] = b""
    assert Archive(storage).discover_snapshots() == []


def test_a_file_that_is_gone_is_a_fetch_error() -> None:
    gone = SnapshotFile(table=TableName("public", "users"), name=USERS, size_bytes=0)
    with pytest.raises(FetchError, match=f"SHD_SYN_062: memory://b/{USERS}: "):
        Archive(MemoryStorage("b")).fetch(gone)


def test_of_names_without_end_no_more_are_kept_than_are_told(caplog: pytest.LogCaptureFixture) -> None:
    storage = MemoryStorage("many names")
    storage.files |= {f"changes_{number}": b"" for number in range(3_000)}
    for _ in range(2):
        assert Archive(storage).discover(None) == []
    [text] = caplog.messages
    assert "1000 file(s) are not read" in text
