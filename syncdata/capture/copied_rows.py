"""Rows in the text form of COPY, made into lines of a snapshot, many at a time. Pure.

Source: "COPY", File Formats, Text Format, of the PostgreSQL documentation. A row is a line, its columns are
parted by tabs, and where these stand in a value, or a backslash does, a backslash comes first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from syncdata.privacy.row_mask import RowMask

_BLOCK_BYTES = 64 * 1024
_NAMED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_replace_escapes = re.compile(r"\\(.)").sub
_encode_lines = msgspec.json.Encoder().encode_lines


def blocks_of(rows: Iterable[bytes | bytearray | memoryview]) -> Iterator[bytes]:
    """Join *rows*, each whole, to blocks; a large row is one by itself."""
    block: list[bytes | bytearray | memoryview] = []
    size_bytes = 0
    for row in rows:
        if block and size_bytes + len(row) > _BLOCK_BYTES:
            yield b"".join(block)
            block, size_bytes = [], 0
        block.append(row)
        size_bytes += len(row)
    if block:
        yield b"".join(block)


def values_of(block: bytes, width: int) -> list[list[str | None]]:
    """Return the values of the rows of *block*, which have *width* columns: the text form, or None.

    Test: test_values_are_those_that_were_copied.
    """
    lines = block.decode().split("\n")[:-1]
    if not width:
        return [[] for _ in lines]
    if b"\\" not in block:
        return [line.split("\t") for line in lines]  # type: ignore[misc]
    return [
        [_value(text) for text in line.split("\t")] if "\\" in line else line.split("\t")  # type: ignore[misc]
        for line in lines
    ]


def _value(text: str) -> str | None:
    if "\\" not in text:
        return text
    return None if text == "\\N" else _replace_escapes(lambda found: _NAMED.get(found[1], found[1]), text)


class LineMaker:
    """Makes the lines of a table's rows: each *start*, the row as an object, and the end of the record.

    *mask*, where there is one, is for rows of all *columns*, and withholds none of them: what is withheld is
    not copied in the first place.
    """

    def __init__(self, start: bytes, columns: Sequence[str], mask: RowMask | None = None) -> None:
        if mask is not None and mask.sent != tuple(columns):
            raise ValueError("a column that is withheld was copied")
        self._start = start
        self._mask = mask
        self._end = b"}\n"
        self._width = len(columns)
        self._object = _object_of(columns)

    def lines(self, block: bytes) -> tuple[bytes, int]:
        """Return the lines of the rows of *block*, and how many they are."""
        values: Sequence[list[Any]] = values_of(block, self._width)
        if self._mask is not None:
            values = self._mask.rows(values)
        rows = list(map(self._object, values))
        del values
        count = len(rows)
        text = _encode_lines(rows)
        del rows  # a row by itself may be large, and is not to be held once more
        if count > 1:  # Within a line, JSON has no line break.
            text = text[:-1].replace(b"\n", self._end + self._start) + b"\n"
        return b"".join((self._start, memoryview(text)[:-1], self._end)), count


def _object_of(columns: Sequence[str]) -> Callable[[list[Any]], Any]:
    """Return what makes an object of a row's values: a struct, which becomes JSON faster than a dict does,
    unless a name would have to be escaped, which msgspec does not do there."""
    fields = [(f"c{number}", object) for number in range(len(columns))]
    names = {field: column for (field, _), column in zip(fields, columns, strict=True)}
    try:
        row_type = msgspec.defstruct("Row", fields, rename=names, gc=False)
    except ValueError:
        return lambda values: dict(zip(columns, values, strict=True))
    return lambda values: row_type(*values)
