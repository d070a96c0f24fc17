"""Tells whether a type here can hold what a type in production sends, without a silent change. Pure.

PostgreSQL refuses most values that do not fit: a number out of range, a text that is too long. Those stop at
their record. But it also rounds (``1.2345`` into ``numeric(10,2)``), cuts off (a time zone, the time of a
date), drops (spaces at the end of a text that is too long) and respells (the keys of ``jsonb``, the letters
of a ``uuid``) without a word. Only that is looked for here. Types are their texts by ``format_type``; of a
domain, that of the type that it is made of. An enum has its labels' texts, and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(
    r"(?:(?:\"[^\"]+\"|\w+)\.)?(?P<name>\"?[^()\[\]\"]+\"?)(?:\((?P<modifier>-?\d+(?:,-?\d+)?)\))?(?P<rest>[^()\[\]]*)(?P<array>(?:\[\])*)"
)

# What ``format_type`` may return, and nothing that says more: a name with its modifier.
_IDENTIFIER = r'(?:[a-z_][a-z0-9_]*|"(?:[^"]|"")+")'
_MODIFIER = r"(?:\(-?\w+(?:,-?\w+)*\))?"
_FIELD = r"(?:year|month|day|hour|minute|second)"
_is_type = re.compile(
    rf"(?:double precision|(?:character|bit) varying{_MODIFIER}"
    rf"|time(?:stamp)?{_MODIFIER} with(?:out)? time zone"
    rf"|interval(?: {_FIELD}(?: to {_FIELD})?)?{_MODIFIER}"
    rf"|(?:{_IDENTIFIER}\.)?{_IDENTIFIER}{_MODIFIER})(?:\[\])*",
    re.ASCII,
).fullmatch

# The decimal digits that a binary float keeps of any number, and those that an integer type may have.
_FLOAT_DIGITS = {"real": 6, "double precision": 15}
_INTEGER_DIGITS = {"smallint": 5, "integer": 10, "bigint": 19, "oid": 10}
_NUMBERS = frozenset({*_FLOAT_DIGITS, *_INTEGER_DIGITS, "numeric", "money"})
_WITH_ZONE = frozenset({"timestamp with time zone", "time with time zone"})
_CLOCKS = frozenset({*_WITH_ZONE, "timestamp without time zone", "time without time zone", "interval"})
_TIMES = frozenset({*_CLOCKS, "date"})
_TEXTS = frozenset({"text", "character varying", "character", "name", '"char"', "citext"})
# Types that give a value back in their own spelling, whatever it was sent in; and those of them that have the
# spelling of another one.
_RESPELLING = frozenset({
    "uuid", "inet", "cidr", "macaddr", "macaddr8", "bit", "bit varying", "xml", "tsvector", "tsquery",
    "jsonpath", "point", "line", "lseg", "box", "path", "polygon", "circle", "pg_lsn", "xid", "xid8", "tid",
    "pg_snapshot", "txid_snapshot", "regclass", "regtype", "regproc", "regprocedure", "regoper",
    "regoperator", "regrole", "regnamespace", "regcollation", "regconfig", "regdictionary",
    *(f"{name}range" for name in ("int4", "int8", "num", "ts", "tstz", "date")),
    *(f"{name}multirange" for name in ("int4", "int8", "num", "ts", "tstz", "date")),
})  # fmt: skip
_ALIKE = {
    "bit varying": {"bit"},
    "int8range": {"int4range"},
    "numrange": {"int4range", "int8range"},
    "int8multirange": {"int4multirange"},
    "nummultirange": {"int4multirange", "int8multirange"},
    "xid8": {"xid"},
}
_INTERVAL_FIELDS = ("year", "month", "day", "hour", "minute", "second")


@dataclass(frozen=True, slots=True)
class SqlType:
    """A type as ``format_type`` spells it, in parts: ``numeric(10,2)[]`` has the modifier (10, 2).
    ``fields``: an interval's, such as ``day to second``."""

    name: str
    modifier: tuple[int, ...] = ()
    fields: str = ""
    is_array: bool = False


def parse_type(text: str) -> SqlType:
    """Read ``format_type``'s *text*; a text that is none is a name.

    Its schema is left out, and its quotes: whether they are there depends on the session.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        return SqlType(text)
    name = f"{found['name'].strip()} {found['rest'].strip()}".strip()
    if name != '"char"':  # The quotes tell it from char, which is character.
        name = name.strip('"')
    modifier = tuple(int(part) for part in (found["modifier"] or "").split(",") if part)
    fields = ""
    if name.startswith("interval "):
        name, _, fields = name.partition(" ")
    return SqlType(
        "character" if name == "bpchar" else name,
        (1,) if name == "character" and not modifier else modifier,
        fields,
        bool(found["array"]),
    )


def is_type_text(text: str) -> bool:
    """Tell whether *text* is surely a type's, as ``format_type`` spells it, and can stand in a statement."""
    return text.isprintable() and _is_type(text) is not None


def is_held(there: str, here: str, *, is_enum: bool = False) -> bool:
    """Tell whether a column of type *here* holds every value of type *there* that the database lets in, as it
    was spelled. *is_enum*: the type here is an enum."""
    source, target = parse_type(there), parse_type(here)
    if source == target:
        return True
    if source.is_array != target.is_array:
        # Of the plain values only a text may be spelled like an array, or the other way round.
        return not target.is_array or source.name not in _TEXTS
    return is_enum or _holds(source, target)


def merges_texts(there: str, here: str) -> bool:
    """Tell whether values that differ in type *there* may be equal in type *here*, by the type alone."""
    source, target = parse_type(there), parse_type(here)
    return target.name == "citext" and source.name != "citext"


def _holds(source: SqlType, target: SqlType) -> bool:
    there, here = source.name, target.name
    if here in _NUMBERS:
        return there in _NUMBERS and _holds_number(source, target)
    if here in _TIMES:
        return there in _TIMES and _holds_time(source, target)
    if here in _TEXTS:
        return _holds_text(source, target)
    if here in _RESPELLING:
        return there == here or there in _ALIKE.get(here, ())
    if here == "jsonb":
        # Of {"a":1, "a":2} jsonb keeps the last; it keeps no order of keys either.
        return False
    if here in ("boolean", "bytea"):
        return there == here
    if here == "json":
        return True  # the text as it is
    # Another kind of type. A text may be another spelling of one of its values.
    return there == here or there not in _TEXTS


def _holds_number(source: SqlType, target: SqlType) -> bool:
    there, here = source.name, target.name
    if "money" in (there, here):
        return there == here
    if here in _FLOAT_DIGITS:
        return _digits(source) <= _FLOAT_DIGITS[here] or (there, here) == ("real", "double precision")
    if here == "numeric" and target.modifier:
        return _scale(source) is not None and (_scale(source) or 0) <= (_scale(target) or 0)
    return True  # numeric holds all; a fraction is refused by integers.


def _digits(source: SqlType) -> float:
    """Return how many decimal digits a value may have; infinity where there is no limit."""
    if source.name in _INTEGER_DIGITS:
        return _INTEGER_DIGITS[source.name]
    if source.name == "numeric" and source.modifier:
        return max(source.modifier[0], _scale(source) or 0)
    return float("inf")


def _scale(number: SqlType) -> int | None:
    """Return the digits after the point; None where there is no limit."""
    if number.name in _INTEGER_DIGITS:
        return 0
    if number.name == "numeric" and number.modifier:
        return number.modifier[1] if len(number.modifier) > 1 else 0
    return None


def _holds_time(source: SqlType, target: SqlType) -> bool:
    if source.name != target.name:
        return (source.name, target.name) == ("date", "timestamp without time zone")
    if target.name == "date":
        return True
    return _precision(source) <= _precision(target) and _holds_fields(source.fields, target.fields)


def _precision(time: SqlType) -> int:
    return time.modifier[0] if time.modifier else 6


def _holds_fields(there: str, here: str) -> bool:
    """Tell whether an interval with the fields *here* keeps all fields of *there*: it drops smaller ones."""
    if not here:
        return True
    return bool(there) and _last_field(there) <= _last_field(here)


def _last_field(fields: str) -> int:
    last = fields.rpartition(" ")[2]
    return _INTERVAL_FIELDS.index(last) if last in _INTERVAL_FIELDS else len(_INTERVAL_FIELDS)


def _holds_text(source: SqlType, target: SqlType) -> bool:
    if target.name == "character":
        return source.name not in _TEXTS - {"character"}  # padded with spaces
    if target.name == '"char"':
        return source.name == '"char"'  # cut to a byte
    if target.name == "name":
        return source.name in ("name", '"char"')  # cut to 63 bytes
    # Of a text that is too long, spaces at its end are dropped, and the rest is taken.
    return source.name not in _TEXTS or not target.modifier or _length(source) <= target.modifier[0]


def _length(text: SqlType) -> float:
    """Return how many characters a text may have; infinity where there is no limit."""
    if text.modifier:
        return text.modifier[0]
    return {"name": 63, '"char"': 4}.get(text.name, float("inf"))


def is_widened(before: str, after: str) -> bool:
    """Tell whether ALTER … TYPE from *before* to *after* leaves every value what it was."""
    old, new = parse_type(before), parse_type(after)
    if old == new:
        return True
    if old.is_array != new.is_array:
        return False
    family = next((f for f in (_NUMBERS, _TIMES, _TEXTS) if old.name in f and new.name in f), None)
    if family is None:
        return old.name == new.name and not new.modifier
    if new.name in _INTEGER_DIGITS and (_scale(old) != 0 or _digits(old) > _INTEGER_DIGITS[new.name]):
        return False  # rounded, where it has a fraction
    return _holds(old, new) and _is_no_shorter(old, new)


def _is_no_shorter(old: SqlType, new: SqlType) -> bool:
    """Tell whether a text's length is no less: where a value would be cut, ALTER … USING may have cut it."""
    if new.name not in _TEXTS or not new.modifier:
        return True
    return bool(old.modifier) and old.modifier[0] <= new.modifier[0]
