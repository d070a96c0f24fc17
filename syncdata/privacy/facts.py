"""What a policy must know of a table to judge its columns. Made by whoever reads a catalog; pure values."""

from __future__ import annotations

import re

import msgspec

from syncdata.changes.names import TableName

_TYPE = re.compile(
    r"(?P<base>.+?)(?:\((?P<modifier>[-\d,]+)\))?(?P<zone> with(?:out)? time zone)?(?P<array>(?:\[\])*)"
)


class ColumnFacts(msgspec.Struct, frozen=True):
    """A column. ``type`` is ``format_type``'s text; for a domain, that of what it is made of.

    ``derives_from``: the columns that a generated one is made of; None where that is not known, and then it
    counts as made of all others.
    """

    name: str
    type: str
    not_null: bool = False
    is_generated: bool = False
    derives_from: tuple[str, ...] | None = None


class Reference(msgspec.Struct, frozen=True):
    """A foreign key: *columns* of one table hold values of *to*, the columns of *table*, pair by pair."""

    columns: tuple[str, ...]
    table: TableName
    to: tuple[str, ...]


class TableFacts(msgspec.Struct, frozen=True):
    """A table. ``identity``: its replica identity, which must travel and tells rows apart; ``primary_key``.

    ``uniques``: the columns of each unique constraint, unique index and exclusion constraint, the primary
    key's among them. ``checked``: columns that CHECK constraints name.
    """

    table: TableName
    columns: tuple[ColumnFacts, ...]
    identity: tuple[str, ...] = ()
    uniques: tuple[tuple[str, ...], ...] = ()
    references: tuple[Reference, ...] = ()
    checked: tuple[str, ...] = ()
    primary_key: tuple[str, ...] = ()


class ValueType(msgspec.Struct, frozen=True):
    """A type as masks see it: its name without modifier, its length where it has one, and if it is an array,
    whose elements are masked one by one."""

    name: str
    length: int | None = None
    is_array: bool = False


def parse_type(text: str) -> ValueType:
    """Read ``format_type``'s text, such as ``character varying(20)[]``."""
    match = _TYPE.fullmatch(text)
    if match is None:
        return ValueType(text)
    base, modifier = match["base"] + (match["zone"] or ""), match["modifier"] or ""
    if base == "citext" or base.endswith(".citext"):
        base = "citext"
    length = int(modifier) if modifier.isdigit() and not match["zone"] else None
    if base == "character" and not modifier:
        length = 1
    return ValueType(base, length, bool(match["array"]))
