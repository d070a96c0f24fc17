"""Writes a change file: a header, lines, and a footer that proves them. Pure over file objects.

Knows the format and its compressions; knows nothing of names, disks or durability, nor of what a record is.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

import zstandard

from syncdata.changes.filenames import Compression
from syncdata.changes.header import Footer, Header, format_comment
from syncdata.changes.position import format_lsn

_BUFFER_BYTES = 1 << 18


class ChangeFileWriter:
    """Writes a file's header, lines and footer, compressed, to *raw*, which stays open and the caller's.

    Memory is bounded by a small buffer. Errors of *raw* pass through; the caller then calls `give_up`.
    """

    def __init__(self, raw: BinaryIO, header: Header, compression: Compression) -> None:
        self._raw = raw
        self._out = _compress(raw, compression)
        self._lines: list[bytes] = []
        self._buffered_bytes = self._flushed_bytes = 0
        self._digest = hashlib.sha256()
        self.write(format_comment(header))

    @property
    def text_bytes(self) -> int:
        """The number of bytes written so far, before compression."""
        return self._flushed_bytes + self._buffered_bytes

    def write(self, line: bytes) -> None:
        """Add *line*, which ends with a newline; or several."""
        self._lines.append(line)
        self._buffered_bytes += len(line)
        if self._buffered_bytes >= _BUFFER_BYTES:
            self._flush()

    def finish(
        self,
        *,
        records: int,
        transactions: int,
        first_commit_lsn: int | None,
        last_commit_lsn: int | None,
        end_lsn: int | None,
        sign: Callable[[Footer], Footer] = lambda footer: footer,
    ) -> Footer:
        """Write the footer, with the SHA-256 of all before it, and end the compression. Return the footer,
        which *sign* returns with a signature, where there is one."""
        self._flush()
        footer = Footer(
            end=True,
            records=records,
            transactions=transactions,
            first_commit_lsn=_text(first_commit_lsn),
            last_commit_lsn=_text(last_commit_lsn),
            end_lsn=_text(end_lsn),
            sha256=self._digest.hexdigest(),
        )
        footer = sign(footer)
        self._out.write(format_comment(footer))
        if self._out is not self._raw:
            self._out.close()
        return footer

    def give_up(self) -> None:
        """Close the compressor; errors that *raw* raises at its last bytes are ignored."""
        if self._out is not self._raw:
            with suppress(OSError, ValueError):
                self._out.close()

    def _flush(self) -> None:
        block = b"".join(self._lines)
        self._lines.clear()
        self._buffered_bytes = 0
        self._flushed_bytes += len(block)
        self._digest.update(block)
        self._out.write(block)


def _compress(raw: BinaryIO, compression: Compression) -> BinaryIO:
    match compression:
        case "gzip":
            return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0)  # type: ignore[return-value]
        case "zstd":
            return zstandard.ZstdCompressor(level=1, write_checksum=True).stream_writer(raw, closefd=False)
    return raw


def _text(lsn: int | None) -> str | None:
    return None if lsn is None else format_lsn(lsn)
