"""Change files: compression, header, footer, and the records as a stream. Pure over file objects.

Knows the format of DESIGN's change files; knows nothing of archives, databases or Django. A file is
finished when its footer agrees with its bytes; a plain file (one without a header) is finished when
its last line ends or parses. What is not finished is not read: a half-arrived transaction must wait.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

import msgspec
import zstandard

from syncdata.changes.record import ChangeRecord, TableName, parse_lsn, parse_record
from syncdata.errors import ParseError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

HEADER_PREFIX = b'# {"syncdata":'
FOOTER_PREFIX = b'# {"end":'
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
CHUNK_BYTES = 1 << 20
COMPRESSED_CHUNK_BYTES = 1 << 15  # what it holds may be a thousand times as much
# Stands for a line that an operator has said to skip: no table can have this name.
UNREADABLE = ChangeRecord(table="", schema="", op="UPDATE")
NO_TABLE = TableName(UNREADABLE.schema, UNREADABLE.table)
_REFETCH_HINT = "replace the file in the archive by a good copy; syncing goes on by itself"


def stem(name: str) -> str:
    """Return a file's name without ``.json``, ``.json.gz`` or ``.json.zst``: its identity and its order.

    Compressing a file in place changes its name but not what it holds, so it must not look new.
    """
    for suffix in (".json.zst", ".json.gz", ".json"):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


class Header(msgspec.Struct, frozen=True):
    """The first line of a file written by syncdata: where its changes come from.

    A snapshot's names its table in ``snapshot``, and in ``commit_lsn`` the last commit that it holds.
    """

    syncdata: int
    system_id: str | int = ""
    timeline: int = 0
    slot: str = ""
    epoch: str | int = ""
    seq: int | None = None
    prev: str | None = None
    start_lsn: str | None = None
    created: str | None = None
    snapshot: str | None = None
    commit_lsn: str | None = None

    @property
    def source_id(self) -> str:
        """The stream this file belongs to; a change of any part may hide a hole."""
        return f"{self.system_id}/{self.timeline}/{self.slot}/{self.epoch}"


class Footer(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of a file written by syncdata: what must have arrived before it.

    ``end_lsn``: what was committed before it is in this file or in those before.
    """

    end: bool
    records: int
    transactions: int | None = None
    first_commit_lsn: str | None = None
    last_commit_lsn: str | None = None
    end_lsn: str | None = None
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What one look over a whole file found. ``unfinished`` says why it cannot be read yet, or is empty;
    ``error`` is set when the file contradicts itself. ``text_bytes``: its size without compression."""

    header: Header | None
    footer: Footer | None
    unfinished: str = ""
    error: ParseError | None = None
    text_bytes: int = 0


class LocatedRecord(msgspec.Struct, frozen=True, gc=False):
    """A record, its physical line (from 1) and that line's size in bytes."""

    record: ChangeRecord
    line: int
    size_bytes: int


def inspect(stream: BinaryIO, name: str) -> Inspection:
    """Read all of *stream* once and tell whether it is finished; it is left at its beginning."""
    try:
        inspection = _inspect(_decompress(stream, name), name)
    except EOFError:
        inspection = Inspection(header=None, footer=None, unfinished="its compressed data ends early")
    except (zlib.error, zstandard.ZstdError):
        error = ParseError("the compressed data is corrupt", hint=_REFETCH_HINT, file=name)
        inspection = Inspection(header=None, footer=None, error=error)
    except ParseError as error:
        inspection = Inspection(header=None, footer=None, error=error)
    stream.seek(0)
    return inspection


def read_records(
    stream: BinaryIO, name: str, *, skip: int = 0, ignored: Collection[int] = ()
) -> Iterator[LocatedRecord]:
    """Yield the records of *stream* after the first *skip*, in the file's order.

    Memory is bounded by the longest line. Raises ParseError, with the line, at the first line that is
    no record; those of the lines *ignored* are records of no table, in the transaction of the one before.
    """
    number = 0
    record = UNREADABLE
    for line_number, line in _number_lines(stream, name):
        if line_number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line or line[:1] == b"#" or line.isspace():
            continue
        number += 1
        if number <= skip:
            continue
        try:
            record = parse_record(line)
        except ParseError as error:
            if line_number not in ignored:
                raise ParseError(error.message, hint=error.hint, file=name, line=line_number) from None
            record = msgspec.structs.replace(UNREADABLE, ts=record.ts, commit_lsn=record.commit_lsn)
        yield LocatedRecord(record, line_number, len(line))
    if number < skip:
        raise ParseError(
            f"the file holds {number} records, but {skip} of it were applied",
            hint=_REFETCH_HINT,
            file=name,
        )


def _number_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    try:
        yield from enumerate(_decompress(stream, name), start=1)
    except (EOFError, zlib.error, zstandard.ZstdError):
        # It was whole when it was inspected, so it has changed since.
        raise ParseError("the compressed data is corrupt", hint=_REFETCH_HINT, file=name) from None


def _inspect(stream: BinaryIO, name: str) -> Inspection:
    """Hash up to the last line, which alone decides whether the file is finished."""
    digest = hashlib.sha256()
    head = tail = b""
    text_bytes = 0
    while chunk := stream.read(CHUNK_BYTES):
        if len(head) < CHUNK_BYTES:
            head += chunk[: CHUNK_BYTES - len(head)]
        tail += chunk
        text_bytes += len(chunk)
        # The last line starts after the newline before the last one, unless the file goes on.
        cut = tail.rfind(b"\n", 0, len(tail) - 1) + 1
        digest.update(tail[:cut])
        tail = tail[cut:]
    header = _parse_header(head, name)
    if header is None and head and HEADER_PREFIX.startswith(head):
        return Inspection(header=None, footer=None, unfinished="its header is incomplete")
    if header is None:
        unfinished = _why_plain_is_unfinished(tail)
        return Inspection(header=None, footer=None, unfinished=unfinished, text_bytes=text_bytes)
    footer = _parse_footer(tail)
    if footer is None:
        return Inspection(header=header, footer=None, unfinished="it has no footer yet")
    if footer.sha256 != digest.hexdigest():
        raise ParseError("the SHA-256 in the footer is not that of the file", hint=_REFETCH_HINT, file=name)
    return Inspection(header=header, footer=footer, text_bytes=text_bytes)


def _why_plain_is_unfinished(last_line: bytes) -> str:
    last_line = last_line.removeprefix(BYTE_ORDER_MARK)  # where it is the first line, too
    if not last_line or last_line.endswith(b"\n") or last_line.startswith(b"#") or last_line.isspace():
        return ""
    try:
        parse_record(last_line)
    except ParseError:
        return "its last line is incomplete"
    return ""


def _parse_header(head: bytes, name: str) -> Header | None:
    if not head.startswith(HEADER_PREFIX):
        return None
    first_line, newline, _ = head.partition(b"\n")
    if not newline:
        return Header(syncdata=1)  # cut inside the header: unfinished, for there is no footer
    try:
        header = msgspec.json.decode(first_line[2:], type=Header)
    except msgspec.MsgspecError as error:
        raise ParseError(f"broken header: {error}", hint=_REFETCH_HINT, file=name, line=1) from None
    if header.syncdata != 1:
        raise ParseError(
            f"format version {header.syncdata} is newer than this program",
            hint="upgrade syncdata",
            file=name,
            line=1,
        )
    return header


def _parse_footer(last_line: bytes) -> Footer | None:
    if not last_line.startswith(FOOTER_PREFIX) or not last_line.endswith(b"\n"):
        return None
    try:
        footer = msgspec.json.decode(last_line[2:], type=Footer)
        for lsn in (footer.first_commit_lsn, footer.last_commit_lsn):
            if lsn is not None:
                parse_lsn(lsn)
    except (msgspec.MsgspecError, ValueError):
        return None
    return footer if footer.end else None


def _decompress(stream: BinaryIO, name: str) -> BinaryIO:
    if name.endswith(".gz"):
        return io.BufferedReader(_FrameReader(stream, lambda: zlib.decompressobj(wbits=31)), CHUNK_BYTES)
    if name.endswith(".zst"):
        frames = zstandard.ZstdDecompressor()
        return io.BufferedReader(_FrameReader(stream, frames.decompressobj), CHUNK_BYTES)
    return stream


class _Frame(Protocol):
    """What decompresses one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _FrameReader(io.RawIOBase):
    """Compressed frames, one or more, as a raw stream that raises EOFError when cut short, even at byte 0."""

    def __init__(self, stream: BinaryIO, open_frame: Callable[[], _Frame]) -> None:
        self._stream = stream
        self._open_frame = open_frame
        self._frame = open_frame()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._ready:
            data = self._frame.unused_data if self._frame.eof else b""
            data = data or self._stream.read(COMPRESSED_CHUNK_BYTES)
            if not data:
                if not self._frame.eof:
                    raise EOFError("the compressed data ends early")
                return 0
            if self._frame.eof:
                self._frame = self._open_frame()
            self._ready = self._frame.decompress(data)
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
