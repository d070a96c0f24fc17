"""Tells how rows here are held to a check, or why they cannot be. Pure.

The hash of a check is that of the texts that values have in production. A value here surely has the same
text where its column has the same type, or one that keeps the text as it came. Where it may be spelled
otherwise, as 16777216 in ``real`` and ``double precision``, a difference would be a false alarm: then only
the number of rows is compared. Bounds mean the same rows on both sides where the types of the key put their
values in one order; texts are put in the order of their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from syncdata.apply.plan.schema import Column, ColumnType, TableSchema
from syncdata.apply.plan.types import SqlType, parse_type
from syncdata.changes.catalog import WITHHELD, PublishedTable
from syncdata.changes.catalog import Column as PublishedColumn
from syncdata.changes.verification import Check

_INTEGERS = frozenset({"smallint", "integer", "bigint"})
_TEXTS = frozenset({"text", "character varying"})
# Types whose values are in one order on every server and machine.
_ORDERED = frozenset({
    *_INTEGERS, "numeric", "oid", "uuid", "date", "timestamp without time zone", "timestamp with time zone",
    "time without time zone", "bytea", "boolean", "inet", "cidr", "macaddr", "macaddr8", "pg_lsn", "xid8",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedColumn:
    """A column of the hash. ``scale``: where a number is spelled with so many digits behind the point in
    production, and with more here if it has them or not."""

    name: str
    scale: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyColumn:
    """A column that bounds or keys are about. ``sql_type``: the type that their texts are read as;
    ``is_text``: they are in the order of their bytes."""

    name: str
    sql_type: str
    is_text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the rows here are held to a check. ``columns``: those of the hash; none where the number of rows is
    all that can be compared, for the reason ``unhashed`` if the check has more. ``doubt``: why another hash
    says nothing; an equal one is a proof all the same. ``problem``: why nothing can be compared.
    ``left_out``: which columns an equal hash says nothing of, and why.
    """

    columns: tuple[ComparedColumn, ...] = ()
    key: tuple[KeyColumn, ...] = ()
    unhashed: str = ""
    doubt: str = ""
    problem: str = ""
    left_out: str = ""


def plan_comparison(check: Check, published: PublishedTable | None, here: TableSchema | None) -> Comparison:
    """Return how the rows of the table *here* are held to *check*, of the table that is *published*."""
    if here is None:
        return Comparison(problem="there is no such table here")
    if published is None:
        return Comparison(problem="the archive does not say what types its columns have in production")
    if here.hides_rows:
        return Comparison(problem="row-level security hides rows of it from this role")
    there = {column.name: column for column in published.columns}
    local = {column.name: column for column in here.columns}
    ruled = here.rules.names if here.rules else frozenset()
    key, columns = [], []
    if not check.is_of_whole_table:
        for name in check.key:
            if name in ruled:
                return Comparison(
                    problem=f"column {name} of the key is masked by this side's rules: its values are others"
                )
            found = _key_column(name, there.get(name), local.get(name), by_order=check.keys is None)
            if isinstance(found, str):
                return Comparison(problem=found)
            key.append(found)
    if check.hash is None:
        return Comparison(key=tuple(key))
    for name in check.columns:
        if name in ruled:
            return Comparison(key=tuple(key), unhashed=f"column {name} is masked by this side's rules")
        compared = _compared(name, there.get(name), local.get(name))
        if isinstance(compared, str):
            return Comparison(key=tuple(key), unhashed=compared)
        columns.append(compared)
    left_out = _left_out(check, there)
    doubt = next((_doubt(local[name]) for name in check.columns if _is_composite(local[name].type)), "")
    return Comparison(columns=tuple(columns), key=tuple(key), doubt=doubt, left_out=left_out)


def _left_out(check: Check, there: Mapping[str, PublishedColumn]) -> str:
    """Return which columns the hash of *check* is without, by the reason; empty where it has all."""
    reasons: dict[str, list[str]] = {}
    for name in check.left_out:
        match there[name].privacy if name in there else "":
            case "":
                reason = "whose text means something at production only"
            case privacy if privacy == WITHHELD:
                reason = "withheld by production's privacy policy"
            case _:
                reason = "masked by production's privacy policy"
        reasons.setdefault(reason, []).append(name)
    return "; ".join(f"without {', '.join(names)}, {reason}" for reason, names in reasons.items())


def _is_composite(column_type: ColumnType | None) -> bool:
    return column_type is not None and (column_type.kind == "composite" or _is_composite(column_type.element))


def _doubt(here: Column) -> str:
    """Return why rows may be equal that have other texts: the archive does not say what fields a composite
    type has in production, and here they may be of other types."""
    return f"column {here.name} is of a composite type, whose fields may be spelled otherwise here"


def _compared(name: str, there: PublishedColumn | None, here: Column | None) -> ComparedColumn | str:
    """Return how a column is compared, or why it is not."""
    if there is None:
        return f"production's catalog has no column {name}"
    if here is None:
        return f"there is no column {name} here"
    if here.is_generated:
        return f"column {name} is generated here"
    source, target = parse_type(there.value_type), parse_type(here.sql_type)
    if here.type.kind == "byte" or not _is_spelled_alike(source, target, is_enum=here.is_enum):
        scale = _other_scale(source, target)
        if scale is None:
            return (
                f"column {name} is {there.type} in production and {here.declared_type or here.sql_type} here"
            )
        return ComparedColumn(name=name, scale=scale)
    return ComparedColumn(name=name)


def _is_spelled_alike(source: SqlType, target: SqlType, *, is_enum: bool) -> bool:
    """Tell whether a value that came as a text of type *source* is the same text in type *target*."""
    there, here = source.name, target.name
    if not target.is_array and here in _TEXTS:
        return True
    if source.is_array != target.is_array:
        return False
    if there.startswith("reg") or here.startswith("reg"):
        return False  # They name things that each server has its own of.
    if here == "numeric":
        # Without a modifier a number keeps the digits that it came with.
        return there in {"numeric", *_INTEGERS} and target.modifier in ((), source.modifier)
    if here in ("character", "bit"):
        return source == target
    if there == here or is_enum:
        return True
    alike = (_INTEGERS, {*_TEXTS, "citext"})
    return any({there, here} <= types for types in alike) or (there, here) == ("jsonb", "json")


def _other_scale(source: SqlType, target: SqlType) -> int | None:
    """Return the digits behind the point that numbers have in production, where they have another number of
    them here and else the same value; None for other types."""
    if target.name != "numeric" or source.is_array or target.is_array:
        return None
    if source.name in _INTEGERS:
        return 0
    if source.name != "numeric" or not source.modifier:
        return None
    return source.modifier[1] if len(source.modifier) > 1 else 0


def _key_column(
    name: str, there: PublishedColumn | None, here: Column | None, *, by_order: bool
) -> KeyColumn | str:
    """Return how a column of the key is compared, or why its values or their order may be others here."""
    if there is None or here is None:
        return f"column {name} of the key is not on both sides"
    if there.privacy and by_order:
        # What is masked is in no order. Test: test_a_masked_key_is_compared_by_its_values_alone.
        return f"column {name} of the key is masked in production, so no rows here lie between its bounds"
    source, target = parse_type(there.value_type), parse_type(here.sql_type)
    both = {source.name, target.name}
    is_text = both <= _TEXTS
    is_same = is_text or both <= _INTEGERS or len(both) == 1
    is_ordered = is_text or target.name in _ORDERED
    if source.is_array or target.is_array or not is_same or (by_order and not is_ordered):
        return f"column {name} of the key is {_types(there, here)}: their orders may differ"
    if is_text:
        return KeyColumn(name=name, sql_type="text", is_text=True)
    # A bound may be beyond a narrower type of this side.
    return KeyColumn(name=name, sql_type="bigint" if target.name in _INTEGERS else here.sql_type)


def _types(there: PublishedColumn, here: Column) -> str:
    return f"{there.type} in production and {here.declared_type or here.sql_type} here"
