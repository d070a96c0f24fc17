"""Values as PostgreSQL spells them: whether a text is one of a type, and a harmless one of each. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from syncdata.privacy.facts import ValueType
from syncdata.privacy.mask import DATES, DOCUMENTS, TEXTS

_BITS = {"smallint": 15, "integer": 31, "bigint": 63}
_SHAPES = {
    "boolean": re.compile(r"t|f|true|false"),
    "uuid": re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
    "bytea": re.compile(r"\\x([0-9a-fA-F]{2})*"),
    "numeric": re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|-?infinity|nan", re.IGNORECASE),
    "array": re.compile(r"(\[.+\]=)?\{.*\}", re.DOTALL),
    "date": re.compile(r"\d{4,}-\d\d-\d\d( BC)?|-?infinity"),
    "timestamp": re.compile(r"\d{4,}-\d\d-\d\d([ T].+)?( BC)?|-?infinity"),
}
_SHAPES |= dict.fromkeys(("inet", "cidr"), re.compile(r"[0-9a-fA-F.:]+(/\d+)?"))
_SHAPES |= {"real": _SHAPES["numeric"], "double precision": _SHAPES["numeric"]}
_HARMLESS: Mapping[str, str] = {
    **dict.fromkeys(TEXTS, ""),
    **dict.fromkeys(DATES, "1970-01-01"),
    **dict.fromkeys(DOCUMENTS, "null"),
    **dict.fromkeys((*_BITS, "numeric", "real", "double precision"), "0"),
    "boolean": "f",
    "bytea": "\\x",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "time without time zone": "00:00:00",
    "interval": "00:00:00",
    "inet": "0.0.0.0",  # noqa: S104 - a value, nothing listens there
}


def check_value(text: str, kind: ValueType) -> None:
    """Raise ValueError when *text* is surely no value of *kind*, without repeating it. What this does not
    know is taken."""
    if "\0" in text:
        raise ValueError("a text with the character NUL is no value")
    if not kind.is_array and kind.name in TEXTS:
        if kind.length is not None and len(text) > kind.length:
            raise ValueError(f"the value is longer than the column's {kind.length} characters")
    elif not kind.is_array and kind.name in DOCUMENTS:
        _check_document(text)
    elif not kind.is_array and kind.name in _BITS:
        if not re.fullmatch(r"-?\d+", text, re.ASCII) or not -1 <= int(text) >> _BITS[kind.name] <= 0:
            raise ValueError(f"the value is none of the type {kind.name}")
    else:
        name = "array" if kind.is_array else "timestamp" if kind.name in DATES - {"date"} else kind.name
        shape = _SHAPES.get(name)
        if shape is not None and not shape.fullmatch(text):
            raise ValueError(f"the value is none of the type {name}")


def _check_document(text: str) -> None:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        raise ValueError("the value is no JSON") from None


def harmless_value(kind: ValueType) -> str | None:
    """Return a value of *kind* that says nothing; None where this knows of none."""
    return "{}" if kind.is_array else _HARMLESS.get(kind.name)
