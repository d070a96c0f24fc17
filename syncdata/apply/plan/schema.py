"""A table's definition as values. Pure; postgres/catalog.py reads it from PostgreSQL's catalog."""

from __future__ import annotations

import graphlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from syncdata.changes.names import TableName


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnType:
    """A type, as far as it decides how a value becomes text. ``element``: the type of an array's elements;
    ``fields``: the names and types of a composite's fields."""

    kind: Literal["plain", "json", "bytea", "array", "composite"] = "plain"
    element: ColumnType | None = None
    fields: tuple[tuple[str, ColumnType], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column. ``sql_type``: its type as SQL spells it; for a domain, the one that it is made of.
    ``declared_type``: the domain itself then."""

    name: str
    sql_type: str
    type: ColumnType
    is_generated: bool = False
    is_always_identity: bool = False
    declared_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """A table as the local database defines it.

    ``key``: the columns of the primary key, else of the replica identity index, else empty.
    ``has_inbound_keys``: other tables refer to it. ``has_cascades``: deleting a row here deletes or changes
    rows of other tables, or is forbidden by them at once. ``parents``: the tables that it refers to.
    ``sequences``: (column, oid) of the sequences that columns own or default to. ``shadow``: the table that
    is written in this one's place while it is rebuilt.
    """

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
        """The columns that rows may give values for: all but the generated ones."""
        return tuple(column for column in self.columns if not column.is_generated)


def parents_first(parents: Mapping[TableName, Collection[TableName]]) -> list[TableName]:
    """Return the tables so that each comes after those that it refers to; by name where they form a ring."""
    graph = {
        table: [parent for parent in sorted(parents[table]) if parent in parents] for table in sorted(parents)
    }
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError:
        return list(graph)
