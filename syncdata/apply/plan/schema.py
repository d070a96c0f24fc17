"""What the catalog says of a table, as values. Pure; read from PostgreSQL by target.py."""

from __future__ import annotations

import graphlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from syncdata.changes.names import TableName


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnType:
    """How a value's text is made: ``element`` for arrays, ``fields`` (name, type) for composites."""

    kind: Literal["plain", "json", "bytea", "array", "composite"] = "plain"
    element: ColumnType | None = None
    fields: tuple[tuple[str, ColumnType], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """``sql_type``: the type as SQL spells it, domains resolved to what they stand on."""

    name: str
    sql_type: str
    type: ColumnType
    is_generated: bool = False
    is_always_identity: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """``key``: the columns of the primary key, else of the replica identity index, else empty.
    ``has_cascades``: a delete changes, or is refused at once for, rows that refer to it. ``sequences``:
    (column, oid) of the sequences that columns own or default to. ``shadow``: the table that is written in
    this one's place while it is rebuilt."""

    name: TableName
    oid: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    is_key_deferrable: bool = False
    has_inbound_keys: bool = False
    has_cascades: bool = False
    parents: frozenset[TableName] = frozenset()
    sequences: tuple[tuple[str, int], ...] = ()
    shadow: TableName | None = None

    @property
    def written_to(self) -> TableName:
        return self.shadow or self.name

    @property
    def writable(self) -> tuple[Column, ...]:
        """The columns that rows are written to: all but the generated ones."""
        return tuple(column for column in self.columns if not column.is_generated)


def parents_first(parents: Mapping[TableName, Collection[TableName]]) -> list[TableName]:
    """Order tables so that foreign keys point backwards; where they form a ring, by name."""
    graph = {
        table: [parent for parent in sorted(parents[table]) if parent in parents] for table in sorted(parents)
    }
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError:
        return list(graph)
