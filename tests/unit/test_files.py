"""Files of the archive as they are fetched."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from syncdata.apply.feed.files import Fetched, fetch
from syncdata.archive.archive import Archive, ChangeFile
from syncdata.archive.local import LocalStorage
from syncdata.archive.steady import BLOCK_BYTES
from syncdata.changes.reader import read_records
from syncdata.errors import FetchError

NAME = "changes_20260205_103000.json"
LINE = b'{"table":"t","op":"INSERT","data":{"id":"7"},"ts":"t"}\n'


def fetched(directory: Path, content: bytes) -> Fetched:
    (directory / NAME).write_bytes(content)
    file = ChangeFile(name=NAME, size_bytes=len(content))
    return fetch(Archive(LocalStorage(directory)), file, stop=threading.Event())


def test_a_small_file_is_read_once(tmp_path: Path) -> None:
    file = fetched(tmp_path, LINE)
    (tmp_path / NAME).write_bytes(LINE.replace(b"7", b"8"))
    with file.stream:
        assert [located.record.data for located in read_records(file.stream, NAME)] == [{"id": "7"}]
    assert (file.size_bytes, file.inspection.text_bytes) == (len(LINE), len(LINE))


def test_a_large_file_that_is_written_over_after_it_was_proved_is_not_applied(tmp_path: Path) -> None:
    content = LINE * (2 * BLOCK_BYTES // len(LINE))
    file = fetched(tmp_path, content)
    (tmp_path / NAME).write_bytes(content.replace(b"7", b"8"))
    with file.stream, pytest.raises(FetchError, match="written over"):
        list(read_records(file.stream, NAME))
