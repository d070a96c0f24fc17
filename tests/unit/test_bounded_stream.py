"""A stream that ends where it was seen to end, fails as a fetch does, and stops when it is told to."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

import pytest

from syncdata.errors import FetchError
from syncdata.runtime.bounded_stream import ReadingStopped, up_to

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class DyingDisk(io.RawIOBase):
    """Can be opened and sought, but not read."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def readinto(self, buffer: WriteableBuffer) -> int:
        raise OSError(5, "Input/output error")


def test_what_is_appended_later_is_not_read_however_often_one_begins_again() -> None:
    stream = up_to(io.BytesIO(b"one\ntwo\nthr"), 8)
    for _ in range(2):
        assert list(stream) == [b"one\n", b"two\n"]
        stream.seek(0)


def test_a_disk_that_fails_while_it_is_read_is_a_fetch_error() -> None:
    with pytest.raises(FetchError, match="Input/output error") as caught:
        up_to(io.BufferedReader(DyingDisk()), 10).read()
    assert caught.value.hint


def test_a_stop_ends_reading_without_looking_like_the_end() -> None:
    stop = threading.Event()
    stream = up_to(io.BytesIO(b"x" * (4 << 20)), 4 << 20, stop=stop)
    assert stream.read(1) == b"x"
    stop.set()
    with pytest.raises(ReadingStopped):
        stream.read()


def test_closing_it_closes_what_it_reads() -> None:
    inner = io.BytesIO(b"x")
    up_to(inner, 1).close()
    assert inner.closed
