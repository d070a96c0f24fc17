"""Reads change files: compression, header, footer, a stream of records. Pure over file objects.

Knows the format; knows nothing of archives, databases or Django. A file with a header is finished when its
footer is there and the SHA-256 in it is that of the bytes before. A plain file, one without a header, is
finished when its last line ends with a newline, or is a whole record without one; where it marks its
transactions, as the predecessor's script does, when the last of them has ended. A file that is not
finished is not read at all, since half a transaction may be all that has arrived of it.
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

from syncdata.changes.catalog import COMMENT_PREFIX, Announcement, is_digest, lsn_or_none, parse_announcement
from syncdata.changes.header import HEADER_PREFIX, REFETCH_HINT, Footer, Header, parse_footer, parse_header
from syncdata.changes.names import TableName
from syncdata.changes.record import ChangeRecord, odd_record, parse_record
from syncdata.errors import ParseError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

CHUNK_BYTES = 1 << 20
COMPRESSED_CHUNK_BYTES = 1 << 15  # may be decompressed to a thousand times as many bytes

# The record in place of a line that the operator has said to skip. No table can have this name.
UNREADABLE = ChangeRecord(table="", schema="", op="UPDATE")

NO_TABLE = TableName(UNREADABLE.schema, UNREADABLE.table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The findings about one whole file.

    ``unfinished`` says why the file cannot be read yet, and is empty when it can. ``error`` is set when the
    file is damaged, so that waiting will not help. ``text_bytes`` is its size without compression.
    ``announced``: what comment lines announce in a file with a header, in order.
    """

    header: Header | None
    footer: Footer | None
    unfinished: str = ""
    error: ParseError | None = None
    text_bytes: int = 0
    announced: tuple[Announcement, ...] = ()

    @property
    def digests(self) -> frozenset[str]:
        """The catalogs that the file names."""
        named = (*self.announced, self.catalog) if self.catalog else self.announced
        return frozenset(announcement.digest for announcement in named)

    @property
    def last_catalog(self) -> Announcement | None:
        """The catalog that holds at the file's end: one may be announced behind the last record."""
        return self.announced[-1] if self.announced else self.catalog

    @property
    def catalog(self) -> Announcement | None:
        """The catalog that holds at the file's beginning. A snapshot's is of the commit that its rows are."""
        header = self.header
        if header is None or header.catalog is None:
            return None
        lsn = header.catalog_lsn if header.snapshot is None else header.commit_lsn
        return Announcement(header.catalog, lsn_or_none(lsn))


class LocatedRecord(msgspec.Struct, frozen=True, gc=False):
    """A record, its physical line (from 1) and that line's size in bytes. ``catalog``: the catalog that holds
    from this record on, where it is another than before."""

    record: ChangeRecord
    line: int
    size_bytes: int
    catalog: Announcement | None = None


def inspect(stream: BinaryIO, name: str) -> Inspection:
    """Read all of *stream* once and tell whether the file is finished; leave it at its beginning."""
    try:
        inspection = _inspect(_decompress(stream, name), name)
    except EOFError:
        inspection = Inspection(header=None, footer=None, unfinished="its compressed data ends early")
    except (zlib.error, zstandard.ZstdError):
        error = ParseError("the compressed data is corrupt", hint=REFETCH_HINT, file=name)
        inspection = Inspection(header=None, footer=None, error=error)
    except ParseError as error:
        inspection = Inspection(header=None, footer=None, error=error)
    stream.seek(0)
    return inspection


def read_records(
    stream: BinaryIO, name: str, *, skip: int = 0, ignored: Collection[int] = ()
) -> Iterator[LocatedRecord]:
    """Yield the records of *stream* after the first *skip*, in the file's order.

    The marks of a plain file's transactions (`MARKS`) are yielded and count, too: a position is a number of
    lines, whatever they say. Test: test_a_position_counts_the_marks_of_transactions.
    Memory is bounded by the longest line. For a line that is no record, but names its table, stands an
    OddRecord. The first other one raises ParseError with its number. For a line whose number is in *ignored*
    stands `UNREADABLE`, with the ``ts`` and ``commit_lsn`` of the record before, so that it ends no
    transaction.
    """
    number = 0
    record = UNREADABLE
    catalog: Announcement | None = None
    for line_number, line in _number_lines(stream, name):
        if line_number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line or line[:1] == b"#" or line.isspace():
            # Also of a catalog that was announced among the records to skip: it holds after them.
            catalog = parse_announcement(line) or catalog
            continue
        number += 1
        if number <= skip:
            continue
        try:
            record = parse_record(line)
        except ParseError as error:
            if line_number in ignored:
                record = msgspec.structs.replace(UNREADABLE, ts=record.ts, commit_lsn=record.commit_lsn)
            elif (odd := odd_record(line, error.message)) is not None:
                record = odd
            else:
                raise ParseError(error.message, hint=error.hint, file=name, line=line_number) from None
        yield LocatedRecord(record, line_number, len(line), catalog)
        catalog = None
    if number < skip:
        raise ParseError(
            f"the file holds {number} records, but {skip} of it were applied",
            hint=REFETCH_HINT,
            file=name,
        )


def _number_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    try:
        yield from enumerate(_decompress(stream, name), start=1)
    except (EOFError, zlib.error, zstandard.ZstdError):
        # `inspect` found the file whole, so somebody has changed it since.
        raise ParseError("the compressed data is corrupt", hint=REFETCH_HINT, file=name) from None


def _inspect(stream: BinaryIO, name: str) -> Inspection:
    """Hash everything before the last line; the last line decides whether the file is finished."""
    digest = hashlib.sha256()
    head = tail = b""
    text_bytes = 0
    announced: list[Announcement] = []
    while chunk := stream.read(CHUNK_BYTES):
        if len(head) < CHUNK_BYTES:
            head += chunk[: CHUNK_BYTES - len(head)]
        tail += chunk
        text_bytes += len(chunk)
        # The last line starts after the newline before the last one, unless the file goes on.
        cut = tail.rfind(b"\n", 0, len(tail) - 1) + 1
        digest.update(tail[:cut])
        announced += _announcements(tail[:cut])
        tail = tail[cut:]
    header = parse_header(head, name)
    if header is None and head and HEADER_PREFIX.startswith(head):
        return Inspection(header=None, footer=None, unfinished="its header is incomplete")
    if header is None:
        unfinished = _why_plain_is_unfinished(tail, marks_transactions=_marks_transactions(head))
        return Inspection(header=None, footer=None, unfinished=unfinished, text_bytes=text_bytes)
    footer = parse_footer(tail)
    if footer is None:
        return Inspection(header=header, footer=None, unfinished="it has no footer yet")
    if footer.sha256 != digest.hexdigest():
        raise ParseError("the SHA-256 in the footer is not that of the file", hint=REFETCH_HINT, file=name)
    if header.catalog is not None and not is_digest(header.catalog):
        raise ParseError("the catalog in the header has no digest's form", hint=REFETCH_HINT, file=name)
    return Inspection(header=header, footer=footer, text_bytes=text_bytes, announced=tuple(announced))


_CATALOG_LINE = b"\n" + COMMENT_PREFIX


def _announcements(lines: bytes) -> Iterator[Announcement]:
    """Yield what comment lines among *lines*, which are whole, announce."""
    at = 0 if lines.startswith(COMMENT_PREFIX) else lines.find(_CATALOG_LINE)
    while at >= 0:
        line = lines[at : lines.find(b"\n", at + 1) + 1].lstrip(b"\n")
        if announcement := parse_announcement(line):
            yield announcement
        at = lines.find(_CATALOG_LINE, at + 1)


def _why_plain_is_unfinished(last_line: bytes, *, marks_transactions: bool) -> str:
    last_line = last_line.removeprefix(BYTE_ORDER_MARK)  # a file's only line is its first one, too
    if not last_line or last_line.startswith(b"#") or last_line.isspace():
        return ""
    is_whole = last_line.endswith(b"\n")
    if is_whole and not marks_transactions:
        return ""
    try:
        record = parse_record(last_line)
    except ParseError:
        return "" if is_whole else "its last line is incomplete"
    # A message may stand between two transactions. Test:
    # test_a_plain_file_that_ends_inside_a_marked_transaction_is_unfinished.
    if marks_transactions and record.op not in ("C", "M"):
        return "its last transaction has no end"
    return ""


def _marks_transactions(head: bytes) -> bool:
    """Tell whether the first line of a plain file marks the beginning of a transaction."""
    first_line, newline, _ = head.removeprefix(BYTE_ORDER_MARK).partition(b"\n")
    try:
        return newline != b"" and parse_record(first_line).op == "B"
    except ParseError:
        return False


def _decompress(stream: BinaryIO, name: str) -> BinaryIO:
    if name.endswith(".gz"):
        return io.BufferedReader(_FrameReader(stream, lambda: zlib.decompressobj(wbits=31)), CHUNK_BYTES)
    if name.endswith(".zst"):
        frames = zstandard.ZstdDecompressor()
        return io.BufferedReader(_FrameReader(stream, frames.decompressobj), CHUNK_BYTES)
    return stream


class _Frame(Protocol):
    """The decompressor of one gzip member or one zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _FrameReader(io.RawIOBase):
    """The text of one or more compressed frames, as a raw stream.

    Raises EOFError when the last frame has no end; an empty file is a frame without one.
    """

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
