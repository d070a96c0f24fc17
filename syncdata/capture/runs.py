"""Turns many row changes at once into their lines. Knows what pgoutput and the encoder know; does no I/O.

The lines are those that `Decoder` and `LineWriter` make of one change after the other, to the byte. Only what
is common is taken: whole rows of less than 64 KiB, and the keys of deleted ones. A run of which anything is
not as expected is no run; its messages go one by one then, which also finds the right words for what is
wrong. Law: test_the_lines_of_a_run_are_those_of_its_changes_one_by_one.

All rows of a run are decoded in one call, as an array of the arrays that `pgoutput._read_last_row` decodes
one at a time; why no text is taken for another there holds here, too. No row reaches into the next one: each
begins with 0xDC and the high byte of its number of columns, which is below 0x80. Inside a text, this is not
UTF-8; inside a number, it is neither ``n`` nor ``u``; and an array is no value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import starmap
from operator import itemgetter
from typing import Any

import msgspec

from syncdata.capture.encoder import change_form
from syncdata.capture.pgoutput import (
    NULL,
    PACKED_ROW,
    PACKED_TEXT,
    SHORT_BYTES,
    SHORT_TEXT,
    UNCHANGED,
    Relation,
)
from syncdata.privacy.row_mask import RowMask

# A message as it came: a byte, its LSN, and 16 more bytes; then kind, table, kind of row, and row.
_LSN, _FORM, _ROW = slice(1, 9), slice(25, 31), slice(31, None)
_FORM_KEY = struct.Struct(">cIc").pack

_unpack_texts = msgspec.msgpack.Decoder(list[tuple[str, ...]]).decode
_unpack_values = msgspec.msgpack.Decoder(list[tuple[str | int, ...]]).decode
_pack_count = struct.Struct(">BI").pack
_ROWS = 0xDD  # an array of MessagePack, with four bytes for its length
# What stands for a text that is not there; msgspec leaves out fields that are UNSET.
_NO_TEXT = {NULL: None, UNCHANGED: msgspec.UNSET}

_encode_lines = msgspec.json.Encoder().encode_lines
# What decoding raises for a row that is not as expected: TypeError and ValueError for its number of values.
_UNEXPECTED = (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError)


# What a change is called, how its message begins, and which row is in it.
_KINDS = (
    ("INSERT", b"I", b"N"),
    ("UPDATE", b"U", b"N"),
    ("DELETE", b"D", b"O"),
    ("DELETE", b"D", b"K"),
)


class Form(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What the changes of one kind to one table have in common: their line up to its values, the number of
    columns, what makes the values to be written of the columns' values, and the table's oid. ``mask``: what
    the columns' values become before, where they do not travel as they are."""

    start: bytes
    width: int
    make: Callable[..., Any]
    table: int
    mask: RowMask | None = None


class RunForms:
    """The forms of the changes to the tables that a session has described so far."""

    def __init__(self) -> None:
        self._forms: dict[bytes, Form] = {}

    def describe(self, relation: Relation, mask: RowMask | None = None) -> None:
        """Take in that from now on changes are to *relation* as it is described here, and masked so."""
        self.forget(relation)
        oid, width = relation.oid, len(relation.columns)
        for op, kind, row in _KINDS:
            start, make = change_form(relation, op)
            of_row = mask
            if row == b"K":
                make, of_row = _key_maker(relation, mask), None
            if make is not None:
                self._forms[_FORM_KEY(kind, oid, row)] = Form(start, width, make, oid, of_row)

    def forget(self, relation: Relation) -> None:
        """Take in that changes to *relation* have no form from now on, and are to be taken one by one."""
        for _, kind, row in _KINDS:
            self._forms.pop(_FORM_KEY(kind, relation.oid, row), None)

    def of(self, messages: Sequence[bytes], first: int) -> list[Form]:
        """Return the forms of the changes from *first* on, up to a message that is none or has no form."""
        forms, known = [], self._forms.get
        for number in range(first, len(messages)):
            message = messages[number]
            form = known(message[_FORM])
            if form is None or len(message) >= SHORT_BYTES:
                break
            forms.append(form)
        return forms


def encode_run(messages: Sequence[bytes], forms: Sequence[Form], end: bytes) -> bytes | None:
    """Return the lines of *messages*, which have *forms*; None where they must be taken one by one.

    *end* is what each line ends with, from behind its LSN on. No form may have a mask.
    """
    try:
        rows = _read_rows(messages, forms)
    except _UNEXPECTED:
        return None
    return _lines(messages, forms, rows, end)


def encode_masked_run(messages: Sequence[bytes], forms: Sequence[Form], end: bytes) -> bytes | None:
    """Return the lines of *messages* as `encode_run` does, each row masked as its form says."""
    try:
        rows = _read_masked_rows(messages, forms)
    except _UNEXPECTED:
        return None
    return _lines(messages, forms, rows, end)


def _lines(messages: Sequence[bytes], forms: Sequence[Form], made: list[Any], end: bytes) -> bytes | None:
    try:
        rows = _encode_lines(made).split(b"\n")
    except _UNEXPECTED:
        return None
    lsns = struct.unpack(f">{2 * len(messages)}I", b"".join([message[_LSN] for message in messages]))
    return b"".join(
        [
            b'%b%b,"lsn":"%X/%X%b' % (form.start, row, high, low, end)
            for form, row, high, low in zip(forms, rows, lsns[::2], lsns[1::2], strict=False)
        ]
    )


def _read_rows(messages: Sequence[bytes], forms: Sequence[Form]) -> list[Any]:
    """Return what is to be written of each row. Raises one of `_UNEXPECTED`."""
    array, are_texts = _packed(messages, forms)
    if are_texts:
        return [form.make(*row) for form, row in zip(forms, _unpack_texts(array), strict=True)]
    return [
        form.make(*[value if isinstance(value, str) else _NO_TEXT[value] for value in row])
        for form, row in zip(forms, _unpack_values(array), strict=True)
    ]


def _read_masked_rows(messages: Sequence[bytes], forms: Sequence[Form]) -> list[Any]:
    """Return what is to be written of each row, masked: rows of one form together, which is quicker. Raises
    one of `_UNEXPECTED`."""
    array, are_texts = _packed(messages, forms)
    rows: Sequence[Sequence[Any]] = (
        _unpack_texts(array)
        if are_texts
        else [
            [value if isinstance(value, str) else _NO_TEXT[value] for value in row]
            for row in _unpack_values(array)
        ]
    )
    first = forms[0]
    if first is forms[-1] and forms.count(first) == len(forms):
        return _masked(first, rows)
    together: dict[Form, list[int]] = {}
    for number, form in enumerate(forms):
        together.setdefault(form, []).append(number)
    made: list[Any] = [None] * len(rows)
    for form, numbers in together.items():
        for number, one in zip(numbers, _masked(form, [rows[n] for n in numbers]), strict=True):
            made[number] = one
    return made


def _masked(form: Form, rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Return what is to be written of *rows*, which are all of *form*. Raises TypeError and ValueError where
    they are not as wide."""
    if form.mask is None:
        return list(starmap(form.make, rows))
    return list(map(form.make, *form.mask.whole_columns(list(zip(*rows, strict=True)))))


def _packed(messages: Sequence[bytes], forms: Sequence[Form]) -> tuple[bytes, bool]:
    """Return the rows as an array of MessagePack, and whether all their values are texts."""
    packed = PACKED_ROW + PACKED_ROW.join([message[_ROW] for message in messages])
    packed = packed.replace(SHORT_TEXT, PACKED_TEXT)
    array = _pack_count(_ROWS, len(messages)) + packed
    return array, packed.count(PACKED_TEXT) == sum([form.width for form in forms])


def _key_maker(relation: Relation, mask: RowMask | None) -> Callable[..., Any] | None:
    """Return what makes the old key, masked, of all columns' values; None where the table has no key."""
    width = len(relation.columns)
    places = [place for place, column in enumerate(relation.columns) if column in relation.key]
    if not places:
        return None
    names = [relation.columns[place] for place in places]
    pick = itemgetter(*places) if len(places) > 1 else lambda values: (values[places[0]],)

    def make(*values: Any) -> dict[str, str | None]:
        if len(values) != width or msgspec.UNSET in values:
            raise ValueError("not a key of this table")
        return dict(zip(names, pick(values), strict=True))

    return make if mask is None else lambda *values: mask.keys(make(*values))
