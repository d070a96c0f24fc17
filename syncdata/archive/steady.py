"""An open file that reads the same each time, or not at all. Knows file descriptors; knows no archive.

A file is read twice: once to prove it, once to apply it. Whoever can write to the file can put other bytes
there in between. So the first reading of each block notes its hash, and every later one is held against that.
A copy would do the same, and cost the disk as much as the file; the hashes cost 32 bytes a megabyte.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from syncdata.errors import FetchError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 1 << 20


def open_steady(path: Path) -> BinaryIO:
    """Open *path* to be read, as long as it is now: what is appended later is not seen.

    It is one open file: another one that takes the name does not change what is read. Reading raises
    FetchError once a block is not what it was before. Raises OSError.
    """
    # Not to wait for ever where the name is that of a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return io.BufferedReader(_SteadyFile(descriptor, str(path)), BLOCK_BYTES)
    except BaseException:
        os.close(descriptor)
        raise


class _SteadyFile(io.RawIOBase):
    def __init__(self, descriptor: int, location: str) -> None:
        self._descriptor = descriptor
        self._location = location
        self._size = os.fstat(descriptor).st_size
        self._position = 0
        self._hashes: dict[int, bytes] = {}
        self._number, self._block = -1, memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._position >= self._size:
            return 0
        number, start = divmod(self._position, BLOCK_BYTES)
        if number != self._number:
            self._block = memoryview(self._read_block(number))
            self._number = number
        view = memoryview(buffer).cast("B")
        piece = self._block[start : start + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()

    def _read_block(self, number: int) -> bytes:
        """Read a block again, or for the first time; from then on it has to stay as it is."""
        offset = number * BLOCK_BYTES
        length = min(BLOCK_BYTES, self._size - offset)
        block = b""
        while len(block) < length:
            more = os.pread(self._descriptor, length - len(block), offset + len(block))
            if not more:
                raise self._changed("became shorter")
            block += more
        # Of hashes that nobody can forge, the one that most processors have instructions for.
        digest = hashlib.sha256(block).digest()
        if self._hashes.setdefault(number, digest) != digest:
            raise self._changed("was written over")
        return block

    def _changed(self, how: str) -> FetchError:
        return FetchError(
            f"the file {how} while it was read",
            hint="files of an archive must not be rewritten; it is read again in the next cycle",
            file=self._location,
        )
