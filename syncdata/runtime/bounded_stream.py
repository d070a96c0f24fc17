"""A stream that is cut off at a given size, and whose reading another thread can stop.

Knows bytes, and the error for a disk that fails; knows nothing of what the bytes mean.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, BinaryIO

from syncdata.errors import FetchError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 1 << 20


class ReadingStopped(Exception):  # not an error: somebody asked for it
    """Reading was stopped from outside: the bytes read so far are not the whole file."""


def up_to(stream: BinaryIO, size_bytes: int, *, stop: threading.Event | None = None) -> BinaryIO:
    """Return the first *size_bytes* of *stream*; bytes that a writer appends meanwhile are not read.

    Reading raises FetchError when the disk fails, and ReadingStopped once *stop* is set.
    """
    return io.BufferedReader(_UpTo(stream, size_bytes, stop or threading.Event()), CHUNK_BYTES)


class _UpTo(io.RawIOBase):
    def __init__(self, stream: BinaryIO, size_bytes: int, stop: threading.Event) -> None:
        self._stream, self._size, self._stop = stream, size_bytes, stop
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._left = self._size - self._stream.seek(offset)
        return offset

    def tell(self) -> int:
        return self._size - self._left

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._stop.is_set():
            raise ReadingStopped
        view = memoryview(buffer).cast("B")
        try:
            block = self._stream.read(min(len(view), self._left))
        except OSError as error:
            raise FetchError(
                f"a change file cannot be read: {error.strerror or error}",
                hint="check the disk; the file is read again in the next cycle",
            ) from error
        view[: len(block)] = block
        self._left -= len(block)
        return len(block)

    def close(self) -> None:
        self._stream.close()
        super().close()
