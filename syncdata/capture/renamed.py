"""Columns that the privacy policy held back, and that go by other rules now. Pure.

A rule names a column, and a migration can give that name to another one. Say ``email`` is masked and ``city``
is kept; then ``city`` is dropped and ``email`` renamed to ``city``. By its name the column may travel as it
is, but its values are the addresses. So a column that was masked or withheld under one name does not travel
as it is under another, until somebody has looked: any change of the policy says so.

The same holds of tables, whose rules go by their names, too: say ``users`` is renamed to ``members``, and
unnamed tables are kept; or it is swapped with a table whose rules keep columns of the same names. It holds of
a partition that is detached and published by itself, and of a generated column, which does not travel when it
is made of masked ones, and becomes a plain column with the same values (DROP EXPRESSION).

Columns are known by their numbers (``attnum``), which a rename leaves as they are, and tables by their oids.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from syncdata.capture.published import Look, SeenColumn, SeenTable
from syncdata.changes.catalog import Catalog, Column, PublishedTable
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


class HiddenTable(msgspec.Struct, frozen=True):
    """A table that is withheld, so that no catalog has it: its name, and by number the names of its columns
    that did not travel as they are, all as they were when it was last said how it travels. Without columns:
    none of them did."""

    oid: int
    table: TableName
    columns: dict[int, str] = {}


def held_columns(
    before: Catalog, held: Collection[HeldColumn], look: Look, hidden: Collection[HiddenTable] = ()
) -> tuple[HeldColumn, ...]:
    """Return the columns of *look* that were masked or withheld in the catalog *before*, or when their table
    was *hidden*, and go by another name now, of theirs or of their table; and those of *held* that are still
    there. All of it under one policy."""
    earlier = _Earlier(before, hidden)
    known = {(one.oid, one.number): one.was for one in held}
    return tuple(
        HeldColumn(seen.oid, column.number, was)
        for seen in look.tables
        for column in seen.columns
        if (was := known.get((seen.oid, column.number)) or earlier.name_of(seen, column))
    )


class _Earlier:
    """What did not travel as it is, and how it was called then."""

    def __init__(self, before: Catalog, hidden: Collection[HiddenTable]) -> None:
        self._tables = {one.oid: one for one in hidden} | {
            table.oid: HiddenTable(table.oid, table.table, _ruled(table)) for table in before.tables
        }
        ruled = {table.oid: table for table in before.tables if _ruled(table)}
        self._generated = {
            (table.oid, column.number): column.name
            for table in ruled.values()
            for column in table.columns
            if column.generated and column.name not in (table.column_list or ())
        }
        self._shown_tables = {table.oid for table in before.tables}
        self._roots = {leaf.oid: table for table in ruled.values() for leaf in table.partitions}

    def name_of(self, seen: SeenTable, column: SeenColumn) -> str:
        """Return how *column* was called when it did not travel as it is; empty where it did, or is called
        so still."""
        root = self._roots.get(seen.oid)
        if root is not None:  # partitions have the names of their root, and numbers of their own
            plain = {one.name for one in root.columns if not one.privacy and not one.generated}
            return "" if column.name in plain else f"{root.table}.{column.name}"
        if not column.generated and (name := self._generated.get((seen.oid, column.number))):
            return f"{name}, a generated column"
        was = self._tables.get(seen.oid)
        if was is None:
            return ""
        is_all = not was.columns and seen.oid not in self._shown_tables
        name = was.columns.get(column.number, column.name if is_all else "")
        if not name or (seen.table == was.table and (is_all or column.name == name)):
            return ""
        return name if seen.table == was.table else f"{was.table}.{name}"


def _ruled(table: PublishedTable) -> dict[int, str]:
    """Return by number the columns that do not travel as they are. One that only the stream has described
    may have none."""
    return {column.number: column.name for column in table.columns if column.privacy and column.number}


def hidden_tables(
    before: Catalog, hidden: Collection[HiddenTable], look: Look, withheld: Collection[TableName]
) -> tuple[HiddenTable, ...]:
    """Return the tables of *look* that are *withheld*, as they were in the catalog *before*, or *hidden*."""
    known = {one.oid: one for one in hidden} | {
        table.oid: HiddenTable(table.oid, table.table, _ruled(table)) for table in before.tables
    }
    return tuple(
        known.get(seen.oid) or HiddenTable(seen.oid, seen.table)
        for seen in look.tables
        if seen.table in withheld
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


def doubtful_names(
    held: Collection[HeldColumn],
    entry: PublishedTable,
    columns: Sequence[Column],
    known: PublishedTable | None,
) -> dict[str, str]:
    """Return by name which of *columns*, which the stream describes as those of *entry*, may be another one
    than its name says, with the name of that: a *held* one, or one of the table as it is *known*.

    Say two columns were swapped by their names, and swapped back: a look after both shows nothing of it, and
    the stream, which is behind, describes the order between. A table, too, may have had another name.
    """
    if known is not None:
        numbers = [column.number for column in columns if column.number]
        if entry.table != known.table or numbers != sorted(numbers):
            ruled = _ruled(known).items()
            held = (*held, *(HeldColumn(entry.oid, number, name) for number, name in ruled))
    return names_of(held, entry.oid, columns)


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
