"""The bytes of a file on their way into an archive. Knows a stream; knows nothing of where it goes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from syncdata.errors import SpoolError


class Content:
    """The whole content of a seekable stream, which can be read more than once.

    Raises SpoolError when the stream cannot be read: an OSError would be taken for the archive's.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    @property
    def size_bytes(self) -> int:
        return self._stream.seek(0, io.SEEK_END)

    def blocks(self, block_bytes: int) -> Iterator[bytes]:
        """Yield the bytes in blocks of at most *block_bytes*."""
        self._stream.seek(0)
        while block := self._read(block_bytes):
            yield block

    def equals(self, blocks: Iterable[bytes]) -> bool:
        """Tell whether *blocks*, one behind the other, are the same bytes."""
        self._stream.seek(0)
        return all(self._read(len(block)) == block for block in blocks) and not self._read(1)

    def _read(self, length: int) -> bytes:
        try:
            return self._stream.read(length)
        except OSError as error:
            raise SpoolError(
                f"the file that waits for delivery cannot be read: {error.strerror}",
                hint="check the disk of spool_dir",
            ) from error
