"""Reads change files: compression, header, footer, a stream of records. Pure over file objects.

Knows the format; knows nothing of archives, databases or Django. A file with a header is finished when its
footer is there and the SHA-256 in it is that of the bytes before. A plain file, one without a header, is
finished when its last line ends with a newline, or is a whole record without one; where it marks its
transactions, as the predecessor's script does, when the last of them has ended. A file that is not
finished is not read at all, since half a transaction may be all that has arrived of it.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
import zstandard

from syncdata.changes.catalog import COMMENT_PREFIX, Announcement, is_digest, lsn_or_none, parse_announcement
from syncdata.changes.compression import decompress
from syncdata.changes.header import (
    FOOTER_PREFIX,
    HEADER_PREFIX,
    REFETCH_HINT,
    Footer,
    Header,
    parse_footer,
    parse_header,
)
from syncdata.changes.names import TableName
from syncdata.changes.proof import has_frame, require_frame, require_sound
from syncdata.changes.record import ChangeRecord, odd_record, parse_record
from syncdata.changes.run import LocatedRecord as LocatedRecord
from syncdata.changes.run import Piece, Run, count_simple, parted_at_marks, records_in, try_run
from syncdata.changes.verification import VERIFY_PREFIX, Check, parse_check
from syncdata.errors import ParseError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 1 << 18

# The longest line that is read as a record, where the configuration (`max_record_bytes`) says nothing else.
# It has room for a text of 50 MB in which every character is escaped; docs/configuration.md: what it costs.
DEFAULT_MAX_RECORD_BYTES = 128 << 20

# A run keeps its lines beside the values that are made of them, and little time is won where lines are long
# on an average. But one record that is in no run costs its whole batch the short way to a plan, so a few long
# lines, as a file's last block may have, must not be read one by one.
MAX_RUN_LINE_BYTES = 1 << 15

# Headers, footers and announcements are shorter. A longer comment line is any comment, and skipped.
MAX_COMMENT_BYTES = 1 << 16

# Production changes its tables less often than that within one file.
MAX_ANNOUNCED = 10_000

# The record in place of a line that the operator has said to skip. No table can have this name.
UNREADABLE = ChangeRecord(table="", schema="", op="UPDATE")

NO_TABLE = TableName(UNREADABLE.schema, UNREADABLE.table)


class LocatedCheck(msgspec.Struct, frozen=True, gc=False):
    """A check, where it stands among the records. ``catalog``: the catalog that holds there, where it was
    announced since the last record; the next record names it, too."""

    check: Check
    size_bytes: int
    catalog: Announcement | None = None


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


def inspect(stream: BinaryIO, name: str, *, max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES) -> Inspection:
    """Read all of *stream* once and tell whether the file is finished; leave it at its beginning.

    Memory is bounded by *max_record_bytes*.
    """
    try:
        inspection = _inspect(decompress(stream, name), name, max_record_bytes)
    except EOFError:
        inspection = Inspection(header=None, footer=None, unfinished="its compressed data ends early")
    except (zlib.error, zstandard.ZstdError) as error:
        inspection = Inspection(header=None, footer=None, error=_corrupt(error, name))
    except ParseError as error:
        inspection = Inspection(header=None, footer=None, error=error)
    stream.seek(0)
    return inspection


def read_header(stream: BinaryIO, name: str) -> Header | None:
    """Return the header of *stream*, the file *name*, of which no more is read; None where it has none that
    can be read."""
    try:
        return _read_header(decompress(stream, name).read(CHUNK_BYTES), name)
    except (zlib.error, zstandard.ZstdError, EOFError, ParseError):
        return None


def read_records(
    stream: BinaryIO,
    name: str,
    *,
    skip: int = 0,
    ignored: Collection[int] = (),
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES,
) -> Iterator[LocatedRecord]:
    """Yield the records of `read_pieces` one by one."""
    pieces = read_pieces(stream, name, skip=skip, ignored=ignored, max_record_bytes=max_record_bytes)
    for piece in pieces:
        yield from records_in(piece)


def read_pieces(
    stream: BinaryIO,
    name: str,
    *,
    skip: int = 0,
    ignored: Collection[int] = (),
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES,
) -> Iterator[Piece]:
    """Yield what `read_with_checks` does, but for the checks."""
    pieces = read_with_checks(stream, name, skip=skip, ignored=ignored, max_record_bytes=max_record_bytes)
    return (piece for piece in pieces if not isinstance(piece, LocatedCheck))


def read_with_checks(
    stream: BinaryIO,
    name: str,
    *,
    skip: int = 0,
    ignored: Collection[int] = (),
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES,
) -> Iterator[Piece | LocatedCheck]:
    """Yield the records of *stream* after the first *skip*, in the file's order; many of them as runs. The
    checks stand among them where they stand in the file; the last may be behind all records.

    A check directly behind the records to skip is left out: who begins there has met it.

    The marks of a plain file's transactions (`MARKS`) are yielded and count, too: a position is a number of
    lines, whatever they say. Test: test_a_position_counts_the_marks_of_transactions.
    Memory is bounded by *max_record_bytes*. For a line that is no record, but names its table, stands an
    OddRecord. The first other one, or one that is longer than the bound, raises ParseError with its number.
    For a line whose number is in *ignored* stands `UNREADABLE`, with the ``ts`` and ``commit_lsn`` of the
    record before, so that it ends no transaction.
    """
    number = 0
    record = UNREADABLE
    catalog: Announcement | None = None
    for item in _number_lines(stream, name, max_record_bytes):
        if isinstance(item, LocatedCheck):
            if number > skip or not skip:
                yield item
            continue
        first_line, text, size_bytes, announced, simple_lines = item
        del item
        # Also of a catalog that was announced among the records to skip: it holds after them.
        catalog = announced or catalog
        may_run = False
        if simple_lines and number >= skip and catalog is None:
            lines = range(first_line, first_line + simple_lines)
            may_run = size_bytes <= simple_lines * MAX_RUN_LINE_BYTES and _holds_none(lines, ignored)
        for piece in _pieces(text, first_line, simple_lines, name, may_run=may_run):
            if isinstance(piece, Run):
                number += len(piece)
                record = msgspec.structs.replace(UNREADABLE, ts=piece.times[-1], commit_lsn=piece.last_commit)
                yield piece
                continue
            line_number, line = piece
            del piece
            number += 1
            if number <= skip:
                continue
            line_bytes = size_bytes if line is None or not simple_lines else len(line)
            try:
                record = _too_long(max_record_bytes) if line is None else parse_record(line)
            except ParseError as error:
                if line_number in ignored:
                    record = msgspec.structs.replace(UNREADABLE, ts=record.ts, commit_lsn=record.commit_lsn)
                elif line is not None and (odd := odd_record(line, error.message)) is not None:
                    record = odd
                else:
                    raise ParseError(error.message, hint=error.hint, file=name, line=line_number) from None
            del line  # A large value is in memory once while its record is applied.
            yield LocatedRecord(record, line_number, line_bytes, catalog, name)
            catalog = None
    if number < skip:
        raise ParseError(
            f"the file holds {number} records, but {skip} of it were applied",
            hint=REFETCH_HINT,
            file=name,
        )


def _pieces(
    text: bytes | bytearray | None, first_line: int, simple_lines: int, name: str, *, may_run: bool
) -> Iterator[Run | tuple[int, bytes | bytearray | None]]:
    """Yield *text* as a run; where it is none, as runs of the lines between marks, and line by line, each
    with its number, what is none either."""
    parts: list[tuple[int, bytes | bytearray | None, int]] = [(first_line, text, simple_lines)]
    if may_run and text is not None:
        if (run := try_run(bytes(text), first_line, name, lines=simple_lines)) is not None:
            yield run
            return
        parts = list(parted_at_marks(bytes(text), first_line, simple_lines))
    is_parted = len(parts) > 1
    for part_line, part, lines in parts:
        if is_parted and part and (run := try_run(bytes(part), part_line, name, lines=lines)) is not None:
            yield run
            continue
        yield from enumerate(_each(part, lines), start=part_line)


def _holds_none(lines: range, ignored: Collection[int]) -> bool:
    return not ignored or not any(number in lines for number in ignored)


def _each(text: bytes | bytearray | None, simple_lines: int) -> Iterator[bytes | bytearray | None]:
    """Yield the lines of *text*; it is one itself unless it is *simple_lines*."""
    if text is None or not simple_lines:
        held = [text]
        del text
        yield held.pop()
        return
    for line in text.split(b"\n")[:-1]:
        yield line + b"\n"


def _too_long(max_record_bytes: int) -> ChangeRecord:
    raise ParseError(
        f"the record is longer than {max_record_bytes:,} bytes, the limit that max_record_bytes sets",
        hint="if production has such rows, set max_record_bytes in the configuration to more than the line's"
        " length (the daemon needs some five times as much memory) and start the daemon anew; if not, replace"
        " the file in the archive by a good copy",
    )


def _corrupt(error: Exception, name: str) -> ParseError:
    if "too much memory" in str(error):
        return ParseError(
            "its compression needs more memory than any change file should (a window above 128 MiB)",
            hint="compress the file again without --long, or replace it by a good copy",
            file=name,
        )
    return ParseError("the compressed data is corrupt", hint=REFETCH_HINT, file=name)


# The lines of a file

# A line that may hold a record: its number, its bytes (None when they are more than the limit), how many
# those are, the catalog that was announced since the line before, and 0. Or so many lines, all simple.
_Line = tuple[int, bytes | bytearray | None, int, Announcement | None, int]

_SKIPPED_LINES = re.compile(rb"(?:#[^\n]*+\n|[ \t\r\f\v]*+\n)*+")
_SKIPPED_STARTS = frozenset(b"# \t\r\n\f\v")
# Each byte's kind: a newline, the sign of a comment, a space, or any other. To look for the kinds of two
# neighbours in a block takes a tenth of the time of a regular expression.
_KINDS = bytes(
    byte if byte in b"\n#" else ord(" ") if byte in b" \t\r\f\v" else ord("x") for byte in range(256)
)
_COMMENT = ord("#")
_SPACE = ord(" ")


def _number_lines(stream: BinaryIO, name: str, limit: int) -> Iterator[_Line | LocatedCheck]:
    try:
        yield from _lines(decompress(stream, name), limit)
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        # `inspect` found the file whole, so somebody has changed it since.
        raise _corrupt(error, name) from None


def _lines(stream: BinaryIO, limit: int) -> Iterator[_Line | LocatedCheck]:
    """Yield the lines of *stream* but for blank ones and comments, however many of these there are; of those,
    the checks."""
    announced: Announcement | None = None
    block = stream.read(BLOCK_BYTES).removeprefix(BYTE_ORDER_MARK)
    at = block.find(b"\n") + 1 if block.startswith(HEADER_PREFIX) else 0
    number = 2 if at else 1
    one_by_one = 0
    kinds = b""  # those of the block's bytes, once a comment is met in it
    while block:
        if at == len(block):
            block, kinds, at, one_by_one = stream.read(BLOCK_BYTES), b"", 0, 0
            continue
        if block[at] in _SKIPPED_STARTS:
            kinds = kinds or block.translate(_KINDS)
            end = _skip(block, kinds, at)
        else:
            end = at
        if end > at:
            skipped = block[at:end]
            number += skipped.count(b"\n")
            if VERIFY_PREFIX in skipped:
                yield from _checks(skipped, announced)
            announced = _last_announced(skipped) or announced
            at = end
            continue
        if at >= one_by_one:
            # Up to the next comment, or to the last whole line. Few blocks have a comment: it is looked for
            # once one was met, or where the lines turn out not to be simple.
            end = (block.find(b"\n#", at) + 1 if kinds else 0) or block.rfind(b"\n", at) + 1
            text, simple_lines = _simple_lines(block[at:end])
            end = at + len(text)
            if simple_lines and end - at <= limit:
                yield number, text, end - at, announced, simple_lines
                announced = None
                number += simple_lines
                at = end
                continue
            one_by_one = end
        end = block.find(b"\n", at) + 1
        if end:
            yield number, block[at:end] if end - at <= limit else None, end - at, announced, 0
            announced = None
            at = end
        elif at and block[at] not in _SKIPPED_STARTS and (more := stream.read(BLOCK_BYTES)):
            # The line that the block's end has cut in two is one of many, as a rule.
            block, kinds, at, one_by_one = block[at:] + more, b"", 0, 0
            continue
        else:
            kinds, one_by_one = b"", 0
            line, size_bytes, block, at = _read_long_line(stream, block[at:], limit)
            if line is not None and line[0] == _COMMENT:
                yield from _checks(line, announced)
                announced = parse_announcement(line) or announced
            elif line is None or not line.isspace():
                # The line is left to whoever takes it: it may be large.
                held = [line]
                del line
                yield number, held.pop(), size_bytes, announced, 0
                announced = None
        number += 1


def _simple_lines(text: bytes) -> tuple[bytes, int]:
    """Return *text*, or what stands before a comment in it, and how many lines that is; 0 unless all of them
    are simple."""
    if lines := count_simple(text):
        return text, lines
    # Most comments are a footer, behind all other lines.
    last = text.rfind(b"\n", 0, len(text) - 1) + 1
    if text[last:].startswith(b"#") and (lines := count_simple(text[:last])):
        return text[:last], lines
    if comment := text.find(b"\n#") + 1:
        return text[:comment], count_simple(text[:comment])
    return text, 0


def _skip(block: bytes, kinds: bytes, at: int) -> int:
    """Return where the comments and blank lines end that begin at *at*, as far as they are whole."""
    end = kinds.find(b"\nx", at) + 1 or block.rfind(b"\n", at) + 1
    # Lines that begin with a space may hold records: each is looked at, which takes longer.
    if kinds[at] == _SPACE or kinds.find(b"\n ", at, end) >= 0:
        skipped = _SKIPPED_LINES.match(block, at)
        return skipped.end() if skipped else at
    return end


def _read_long_line(stream: BinaryIO, start: bytes, limit: int) -> tuple[bytearray | None, int, bytes, int]:
    """Read on to the end of the line that begins with *start*, the end of a block.

    Return the line, None where it is longer than *limit*; its size; the block in which it ends, and where
    in that block the next line begins. Of a comment no more is kept than can mean something.
    """
    is_comment = start[0] == _COMMENT
    kept = MAX_COMMENT_BYTES if is_comment else limit
    line = bytearray(start)
    size_bytes = len(start)
    end = 0
    while block := stream.read(BLOCK_BYTES):
        end = block.find(b"\n") + 1
        piece = block[:end] if end else block
        size_bytes += len(piece)
        if size_bytes <= kept:
            line += piece
        elif not is_comment:
            line.clear()
        if end:
            break
    if size_bytes <= kept:
        return line, size_bytes, block, end
    return (bytearray(b"#") if is_comment else None), size_bytes, block, end


# A whole file


class _LastLine:
    """Cuts a stream's blocks into whole lines and the last line, of which it keeps at most so many bytes."""

    def __init__(self, kept_bytes: int) -> None:
        self.line = bytearray()
        self.is_too_long = False
        self._is_ended = False
        self._kept_bytes = kept_bytes

    def add(self, block: bytes) -> Iterator[bytes | bytearray]:
        """Yield all bytes that are no part of the last line any more, in order: whole lines each time, but
        for a line that is too long."""
        if self._is_ended:
            yield self._take()
            self.is_too_long = False
        self._is_ended = block.endswith(b"\n")
        # The last line begins behind the newline before the last one, unless the stream goes on.
        start = block.rfind(b"\n", 0, len(block) - 1) + 1
        if start:
            first = block.find(b"\n") + 1
            yield from self._keep(block[:first])
            yield self._take()
            if first < start:
                yield block[first:start]
            block = block[start:]
            self.is_too_long = False
        yield from self._keep(block)

    def _keep(self, piece: bytes) -> Iterator[bytes | bytearray]:
        if self.is_too_long:
            yield piece
            return
        self.line += piece
        if len(self.line) > self._kept_bytes:
            self.is_too_long = True
            yield self._take()

    def _take(self) -> bytearray:
        taken, self.line = self.line, bytearray()
        return taken


def _inspect(stream: BinaryIO, name: str, max_record_bytes: int) -> Inspection:
    """Hash everything before the last line; the last line decides whether the file is finished."""
    head = stream.read(CHUNK_BYTES)
    header = _read_header(head, name)
    digest = hashlib.sha256()
    announced: list[Announcement] = []
    announcements = text_bytes = 0
    is_beginning, has_inner_frame = True, False
    last = _LastLine(max_record_bytes if header is None else MAX_COMMENT_BYTES)
    block = head
    while block:
        text_bytes += len(block)
        for lines in last.add(block):
            # To look for one byte costs a tenth of what each look for a comment does.
            if _COMMENT in lines:
                announcements += lines.count(_CATALOG_LINE) + lines.startswith(COMMENT_PREFIX)
                if announcements > MAX_ANNOUNCED:
                    raise ParseError("it announces too many catalogs", hint=REFETCH_HINT, file=name)
                has_inner_frame |= has_frame(lines, is_beginning=is_beginning)
                if header is not None:
                    announced += _announcements(lines)
            is_beginning = False
            if header is not None:
                digest.update(lines)
            del lines  # It may be large, and the next one is in the making.
        block = stream.read(CHUNK_BYTES)
    ends_in_footer = last.line.startswith(FOOTER_PREFIX)
    require_frame(header, has_inner=has_inner_frame, ends_in_footer=ends_in_footer, name=name)
    if header is None and head and HEADER_PREFIX.startswith(head):
        return Inspection(header=None, footer=None, unfinished="its header is incomplete")
    if header is None:
        # A line beyond the limit is an error of its own, which the reader tells with its number.
        unfinished = "" if last.is_too_long else _why_plain_is_unfinished(last.line, head)
        return Inspection(header=None, footer=None, unfinished=unfinished, text_bytes=text_bytes)
    footer = parse_footer(bytes(last.line))
    if footer is None:
        return Inspection(header=header, footer=None, unfinished="it has no footer yet")
    if footer.sha256 != digest.hexdigest():
        raise ParseError("the SHA-256 in the footer is not that of the file", hint=REFETCH_HINT, file=name)
    require_sound(header, footer, name)
    if header.catalog is not None and not is_digest(header.catalog):
        raise ParseError("the catalog in the header has no digest's form", hint=REFETCH_HINT, file=name)
    return Inspection(header=header, footer=footer, text_bytes=text_bytes, announced=tuple(announced))


def _read_header(head: bytes, name: str) -> Header | None:
    line = head[:MAX_COMMENT_BYTES]
    if head.startswith(HEADER_PREFIX) and b"\n" not in line and len(head) > len(line):
        raise ParseError(
            f"broken header: it is longer than {MAX_COMMENT_BYTES:,} bytes",
            hint=REFETCH_HINT,
            file=name,
            line=1,
        )
    return parse_header(line, name)


_CATALOG_LINE = b"\n" + COMMENT_PREFIX


def _announcements(lines: bytes | bytearray) -> Iterator[Announcement]:
    """Yield what comment lines among *lines*, which are whole, announce."""
    at = 0 if lines.startswith(COMMENT_PREFIX) else lines.find(_CATALOG_LINE)
    while at >= 0:
        line = lines[at : lines.find(b"\n", at + 1) + 1].lstrip(b"\n")
        if announcement := parse_announcement(line):
            yield announcement
        at = lines.find(_CATALOG_LINE, at + 1)


def _last_announced(lines: bytes) -> Announcement | None:
    """Return the last of what comment lines among *lines* announce."""
    last = None
    if COMMENT_PREFIX in lines:
        for announcement in _announcements(lines):
            last = announcement
    return last


def _checks(lines: bytes | bytearray, announced: Announcement | None) -> Iterator[LocatedCheck]:
    """Yield the checks among comment *lines*, each under what was *announced* before it."""
    for line in lines.split(b"\n"):
        announced = parse_announcement(line) or announced
        if (check := parse_check(line)) is not None:
            yield LocatedCheck(check, len(line), announced)


def _why_plain_is_unfinished(last_line: bytes | bytearray, head: bytes) -> str:
    marks_transactions = _marks_transactions(head)
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
