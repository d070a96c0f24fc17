"""Reads compressed files in small steps. Knows gzip and zstd; knows nothing of what the text means.

A few bytes of a file can stand for gigabytes of text: no step makes more of it than some megabytes. Where the
compressed data is corrupt, reading raises zlib.error or zstandard.ZstdError; where it ends early, EOFError.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Protocol

import zstandard

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 1 << 20

# The memory that a zstd frame may ask for: what zstd itself grants where nobody says more.
MAX_WINDOW_BYTES = 1 << 27

# The decompressors know no limit for what they return, so the limit is on what they are given: a byte of gzip
# stands for a kilobyte at most, and four bytes of zstd for 128 KiB.
_GZIP_STEP_BYTES = 1 << 12
_ZSTD_STEP_BYTES = 1 << 8


def decompress(stream: BinaryIO, name: str) -> BinaryIO:
    """Return the text of *stream*, a file whose *name* says how it is compressed; *stream* itself where it is
    not. One or more frames are read, and an empty file is a frame without an end."""
    if name.endswith(".gz"):
        return io.BufferedReader(_FrameReader(stream, _open_member, _GZIP_STEP_BYTES), CHUNK_BYTES)
    if name.endswith(".zst"):
        frames = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        return io.BufferedReader(_FrameReader(stream, frames.decompressobj, _ZSTD_STEP_BYTES), CHUNK_BYTES)
    return stream


def _open_member() -> _Frame:
    return zlib.decompressobj(wbits=31)


class _Frame(Protocol):
    """The decompressor of one gzip member or one zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _FrameReader(io.RawIOBase):
    """The text of one or more compressed frames, as a raw stream.

    Raises EOFError when the last frame has no end.
    """

    def __init__(self, stream: BinaryIO, open_frame: Callable[[], _Frame], step_bytes: int) -> None:
        self._stream = stream
        self._open_frame = open_frame
        self._step_bytes = step_bytes
        self._frame = open_frame()
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._ready:
            data = self._frame.unused_data if self._frame.eof else b""
            data = data or self._stream.read(self._step_bytes)
            if not data:
                if not self._frame.eof:
                    raise EOFError("the compressed data ends early")
                return 0
            if self._frame.eof:
                self._frame = self._open_frame()
            self._ready = memoryview(self._frame.decompress(data))
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
