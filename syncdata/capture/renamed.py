"""Columns that the privacy policy held back, and that have another name now. Pure.

A rule names a column, and a migration can give that name to another one. Say ``email`` is masked and ``city``
is kept; then ``city`` is dropped and ``email`` renamed to ``city``. By its name the column may travel as it
is, but its values are the addresses. So a column that was masked or withheld under one name does not travel
as it is under another, until somebody has looked: any change of the policy says so.

Columns are known by their numbers (``attnum``), which a rename leaves as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from syncdata.capture.published import Look
from syncdata.changes.catalog import Catalog, Column
from syncdata.changes.names import TableName
from syncdata.privacy.policy import ColumnVerdict, TableVerdict
from syncdata.privacy.row_mask import Treatment

# Of these, a value may show, or a part of it.
_SHOWING = frozenset(("", "partial", "json", "shift", "custom"))


class HeldColumn(msgspec.Struct, frozen=True):
    """A column, by its table's oid and its number, that had a rule under another name, ``was``."""

    oid: int
    number: int
    was: str


def held_columns(before: Catalog, held: Collection[HeldColumn], look: Look) -> tuple[HeldColumn, ...]:
    """Return the columns of *look* that have another name than in the catalog *before*, in which they were
    masked or withheld; and those of *held* that are still there. All of it under one policy."""
    known = {
        (table.oid, column.number): column.name
        for table in before.tables
        for column in table.columns
        if column.privacy
    }
    known = {place: name for place, name in known.items() if place[1]}
    renamed = known | {(one.oid, one.number): one.was for one in held}
    return tuple(
        HeldColumn(seen.oid, column.number, was)
        for seen in look.tables
        for column in seen.columns
        if (was := renamed.get((seen.oid, column.number))) is not None
        and (was != column.name or any((one.oid, one.number) == (seen.oid, column.number) for one in held))
    )


def hold(verdict: TableVerdict, renamed: Mapping[str, str], identity: Collection[str]) -> TableVerdict:
    """Return *verdict* without the values of the columns *renamed*, by name with the name that each had,
    where its rule would show any of them. *identity*: columns without which the table cannot travel."""
    columns = tuple(
        _held(one, renamed[one.column]) if one.column in renamed and one.privacy in _SHOWING else one
        for one in verdict.columns
    )
    changed = [new for old, new in zip(verdict.columns, columns, strict=True) if new is not old]
    return msgspec.structs.replace(
        verdict,
        columns=columns,
        is_withheld=verdict.is_withheld or any(one.column in identity for one in changed),
        problems=(*verdict.problems, *(f"{one.column}: {one.problem}" for one in changed)),
    )


def _held(verdict: ColumnVerdict, was: str) -> ColumnVerdict:
    problem = (
        f"it was called {was}, which does not travel as it is, so it may have the same values: see that the"
        " policy says of each column what it must; any change of it counts as an answer"
    )
    return msgspec.structs.replace(
        verdict,
        rule="withhold",
        id="",
        why=problem,
        problem=problem,
        treatment=Treatment(verdict.column, None),
    )


def names_of(held: Collection[HeldColumn], oid: int, columns: Sequence[Column]) -> dict[str, str]:
    """Return by name which of *columns*, which the stream describes, may be a held one of that table.

    The stream gives names only, and may be behind: where a name is unknown, or their order is not that of the
    numbers, they may have changed places, and then it may be any of them.
    """
    own = {one.number: one.was for one in held if one.oid == oid}
    numbers = [column.number for column in columns]
    if own and (0 in numbers or numbers != sorted(numbers)):
        return {column.name: ", ".join(own.values()) for column in columns}
    return {column.name: own[column.number] for column in columns if column.number in own}


def held_by_table(held: Collection[HeldColumn], look: Look) -> dict[TableName, dict[str, str]]:
    """Return by table the names of the held columns, each with the name that it had."""
    was = {(one.oid, one.number): one.was for one in held}
    found = {
        seen.table: {
            column.name: was[seen.oid, column.number]
            for column in seen.columns
            if (seen.oid, column.number) in was
        }
        for seen in look.tables
    }
    return {table: names for table, names in found.items() if names}
