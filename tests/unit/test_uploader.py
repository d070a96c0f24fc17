from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from syncdata.archive.archive import Archive, open_archive
from syncdata.archive.local import LocalSettings, LocalStorage
from syncdata.capture.spool import FileWriter, SpooledFile
from syncdata.capture.uploader import Uploader
from syncdata.changes.header import Header
from syncdata.errors import DeliveryError, SpoolError


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    spool = tmp_path / "spool"
    spool.mkdir()
    return spool


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "archive"
    directory.mkdir()
    return directory


def spooled(spool: Path, number: int) -> SpooledFile:
    writer = FileWriter(spool, ".changes.part", Header(syncdata=1, seq=number), "zstd")
    return writer.finish(
        f"changes_20260205_10300{number}",
        records=0,
        transactions=0,
        first_commit_lsn=None,
        last_commit_lsn=None,
        end_lsn=None,
    )


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_defect_in_an_errand_is_told_once_and_keeps_no_file_from_the_archive(
    spool: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def errand(archive: Archive) -> None:
        raise RuntimeError(str(directory))

    with Uploader(open_archive(LocalSettings(directory=directory))) as uploader:
        for number in range(2):
            uploader.run_errand(errand)
            uploader.wait_for_errand(20)
            uploader.submit(spooled(spool, number))
            until(lambda: len(uploader.take_uploaded()) > 0)

    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told.startswith("SHD_SYN_094: unexpected: RuntimeError in ") and "Traceback" in told
    assert str(directory) not in caplog.text


def test_files_are_uploaded_in_their_order_and_taken_once(spool: Path, directory: Path) -> None:
    files = [spooled(spool, number) for number in range(5)]
    taken: list[SpooledFile] = []
    with Uploader(open_archive(LocalSettings(directory=directory))) as uploader:
        for file in files:
            uploader.submit(file)
        assert uploader.waiting == 5

        def all_are_taken() -> bool:
            taken.extend(uploader.take_uploaded())
            return uploader.waiting == 0

        until(all_are_taken)
        assert uploader.take_uploaded() == []
    assert taken == files
    assert [file.name for file in open_archive(LocalSettings(directory=directory)).discover(None)] == [
        file.name for file in files
    ]


def test_an_archive_that_refuses_is_tried_again_and_the_reason_shows_meanwhile(
    spool: Path, directory: Path
) -> None:
    file = spooled(spool, 1)
    (directory / file.name).write_bytes(b"of somebody else")
    with Uploader(open_archive(LocalSettings(directory=directory))) as uploader:
        uploader.submit(file)
        until(lambda: uploader.error is not None)
        assert isinstance(uploader.error, DeliveryError)
        assert uploader.take_uploaded() == []
        (directory / file.name).unlink()
        until(lambda: uploader.take_uploaded() == [file])
    assert (directory / file.name).read_bytes() == file.path.read_bytes()


def test_a_file_that_the_spool_has_lost_ends_the_upload(spool: Path, directory: Path) -> None:
    file = spooled(spool, 1)
    file.path.unlink()
    with Uploader(open_archive(LocalSettings(directory=directory))) as uploader:
        uploader.submit(file)
        with pytest.raises(SpoolError, match="No such file"):
            until(lambda: uploader.take_uploaded() != [])


def test_a_defect_of_the_archive_is_not_swallowed_by_the_thread(spool: Path, directory: Path) -> None:
    class Defective(Archive):
        def put(self, name: str, content: BinaryIO) -> None:
            raise ZeroDivisionError

    with Uploader(Defective(LocalStorage(directory))) as uploader:
        uploader.submit(spooled(spool, 1))
        with pytest.raises(ZeroDivisionError):
            until(lambda: uploader.take_uploaded() != [])


def test_leaving_gives_up_what_is_under_way(spool: Path, tmp_path: Path) -> None:
    with Uploader(open_archive(LocalSettings(directory=tmp_path / "missing"))) as uploader:
        uploader.submit(spooled(spool, 1))
        until(lambda: uploader.error is not None)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert uploader.waiting == 1
