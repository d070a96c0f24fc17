"""Rows as the text that COPY reads. Pure.

"Text Format" under COPY in the PostgreSQL documentation: a row is a line, with tabs between its values; NULL
is ``\\N``; a backslash, tab, newline or carriage return in a value is escaped with a backslash.

Python escapes a long text much faster than many short ones, so many rows are joined, and escaped as one. What
stands between values must then be told from what stands in them: between values stands NUL, which no text of
PostgreSQL's may hold, and between rows a byte that UTF-8 does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from types import NoneType
from typing import Any

import msgspec

from syncdata.apply.plan.schema import ColumnType
from syncdata.apply.plan.values import to_text

# The driver copies what is longer than 128 KiB once more, and the server reads 8 KiB at a time anyway.
PIECE_BYTES = 100_000

_FIRST_ROWS = 16

_NUL = "\x00"
_END_OF_ROW = b"\xff"
_NULL = "\\N"
_BOOLEANS = {False: "false", True: "true"}


class NulError(ValueError):
    """A value holds the character NUL, which no text of PostgreSQL's may."""


def copy_text(rows: Iterable[Sequence[Any]], *, prefix: str = "") -> Iterator[bytes]:
    """Yield *rows* as COPY reads them, many at a time, about `PIECE_BYTES` unless a single row is longer.

    All rows have the same number of values, at least one; a value is a str, int, bool or None. *prefix*, as
    COPY reads it, begins every line. Raises NulError.
    """
    source, wanted = iter(rows), _FIRST_ROWS
    while piece := list(islice(source, wanted)):
        text = _text_of(piece, prefix)
        yield text
        # As many as would have filled this piece; the next rows may be longer than these.
        wanted = max(1, min(PIECE_BYTES * len(piece) // len(text), 4 * len(piece)))


def _text_of(rows: Sequence[Sequence[Any]], prefix: str) -> bytes:
    try:
        lines = list(map(_NUL.join, rows))
    except TypeError:  # not all values are texts
        return _text_by_columns(rows, prefix)
    text = _END_OF_ROW.join([line.encode() for line in lines])
    if text.count(b"\x00") != len(rows) * (len(rows[0]) - 1):
        raise NulError
    text = _escaped(text).replace(b"\x00", b"\t").replace(_END_OF_ROW, b"\n" + prefix.encode())
    return prefix.encode() + text + b"\n"


def _text_by_columns(rows: Sequence[Sequence[Any]], prefix: str) -> bytes:
    """The same for values of all kinds, whose columns are mostly of one."""
    columns = [_column_text(column) for column in zip(*rows, strict=True)]
    lines = map("\t".join, zip(*columns, strict=True))
    return (prefix + ("\n" + prefix).join(lines) + "\n").encode()


def _column_text(values: Sequence[Any]) -> Sequence[str]:
    """Return each of *values* as COPY reads it."""
    try:
        text = "".join(values)
    except TypeError:
        return _other_column_text(values)
    if _NUL in text:
        raise NulError
    if not ("\\" in text or "\t" in text or "\n" in text or "\r" in text):
        return values
    return _escaped(_NUL.join(values).encode()).decode().split(_NUL)


def _other_column_text(values: Sequence[Any]) -> Sequence[str]:
    kinds = set(map(type, values))
    if kinds == {int}:
        # Three times as fast as to make each a str.
        return msgspec.json.encode(values)[1:-1].decode().split(",")
    if kinds == {bool}:
        return list(map(_BOOLEANS.__getitem__, values))
    if kinds == {NoneType}:
        return [_NULL] * len(values)
    if NoneType in kinds:
        texts = iter(_column_text([value for value in values if value is not None]))
        return [_NULL if value is None else next(texts) for value in values]
    if kinds <= {int, str}:  # numbers, of which those with a fraction are texts already
        return _column_text(list(map(str, values)))
    return _column_text([to_text(value, ColumnType()) or "" for value in values])


def _escaped(text: bytes) -> bytes:
    text = text.replace(b"\\", b"\\\\")  # the first, or it would escape what the others put in
    return text.replace(b"\t", b"\\t").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
