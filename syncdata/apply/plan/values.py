"""A JSON value as PostgreSQL's text form for a column. Pure.

A JSON string already is that text, whatever the type. Array and row literals follow "Array Input and
Output Syntax" and "Composite Type Input and Output Syntax" of the PostgreSQL documentation.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import msgspec

from syncdata.apply.plan.schema import ColumnType
from syncdata.changes.record import Json, exact_value
from syncdata.errors import ApplyError, SchemaError

_HEX_DIGITS = frozenset(string.hexdigits)
_MOST_DIMENSIONS = 6  # PostgreSQL's MAXDIM

_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_raw_dict = msgspec.json.Decoder(dict[str, msgspec.Raw])


def to_text(value: Any, column_type: ColumnType, *, is_plain_file: bool = False) -> str | None:
    """Return the text that the input function of the column's type reads, or None for NULL.

    In a plain file a ``bytea`` string of an even number of hex digits without ``\\x`` is hex, as
    wal2json writes it.
    """
    if value is None:
        return None
    if isinstance(value, Json):
        return _nested_to_text(value, column_type, is_plain_file=is_plain_file)
    if isinstance(value, str):
        is_bare_hex = is_plain_file and column_type.kind == "bytea" and _is_bare_hex(value)
        return "\\x" + value if is_bare_hex else value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def converter(column_type: ColumnType, *, is_plain_file: bool) -> Callable[[Any], Any] | None:
    """Return the conversion that a column's values need, or None where they can go as they are.

    The conversion returns a value that needs none itself, not a copy.
    """
    if column_type.kind == "plain" or (column_type.kind == "bytea" and not is_plain_file):
        return None
    if column_type.kind == "bytea":
        return lambda value: to_text(value, column_type, is_plain_file=True)
    if column_type.kind == "byte":
        return _require_byte
    # Other text stands for itself, whatever the type.
    return lambda value: (
        value if type(value) is str else to_text(value, column_type, is_plain_file=is_plain_file)
    )


def _require_byte(value: Any) -> Any:
    """Return *value*, of the type "char". PostgreSQL 15 and later write those above 127 as ``\\200``."""
    if value is not None and len(str(value).encode()) > 1:
        raise SchemaError(
            'PostgreSQL 14 cannot hold a "char" above 127, which production has',
            hint="use PostgreSQL 15 or later here, or another type for the column on both sides",
        )
    return value


def _is_bare_hex(text: str) -> bool:
    return len(text) % 2 == 0 and _HEX_DIGITS.issuperset(text)


def _nested_to_text(value: Json, column_type: ColumnType, *, is_plain_file: bool, dimension: int = 1) -> str:
    if column_type.kind == "array" and value.startswith("["):
        # Each dimension reads all that is in it, so a text in a thousand brackets would be read as often.
        if dimension > _MOST_DIMENSIONS:
            raise ApplyError("a value is nested too deeply", hint="compare the record with the column's type")
        element = column_type.element or ColumnType()
        items = (_decode(raw) for raw in _raw_list.decode(value.encode()))
        # A nested list is the next dimension; its braces must stay unquoted.
        texts = (
            _nested_to_text(item, column_type, is_plain_file=is_plain_file, dimension=dimension + 1)
            if isinstance(item, Json) and item.startswith("[") and element.kind not in ("json", "composite")
            else _quote_element(to_text(item, element, is_plain_file=is_plain_file))
            for item in items
        )
        return "{" + ",".join(texts) + "}"
    if column_type.kind == "composite":
        if value.startswith("{"):
            by_name = {name: _decode(raw) for name, raw in _raw_dict.decode(value.encode()).items()}
            items_in_order = [by_name.get(name) for name, _ in column_type.fields]
        else:
            items_in_order = [_decode(raw) for raw in _raw_list.decode(value.encode())]
        pairs = zip(items_in_order, column_type.fields, strict=False)
        return (
            "("
            + ",".join(
                _quote_field(to_text(item, field_type, is_plain_file=is_plain_file))
                for item, (_, field_type) in pairs
            )
            + ")"
        )
    return str(value)


def _decode(raw: msgspec.Raw) -> Any:
    return exact_value(bytes(raw))


def _quote_element(text: str | None) -> str:
    return "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quote_field(text: str | None) -> str:
    return "" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '""') + '"'
