"""A table's definition as values. Pure; postgres/catalog.py reads it from PostgreSQL's catalog."""

from __future__ import annotations

import graphlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from syncdata.apply.plan.local_rules import LocalRules
from syncdata.changes.names import TableName


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnType:
    """A type, as far as it decides how a value becomes text. ``element``: the type of an array's elements;
    ``fields``: the names and types of a composite's fields. The kind ``byte`` is the type "char" of servers
    that read only the first byte of its text."""

    kind: Literal["plain", "json", "bytea", "byte", "array", "composite"] = "plain"
    element: ColumnType | None = None
    fields: tuple[tuple[str, ColumnType], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column. ``sql_type``: its type as SQL spells it; for a domain, the one that it is made of.
    ``declared_type``: the domain itself then. ``older``: a digest of the value that rows had got when the
    column was added with a constant as default; empty for NULL. ``collation``: its collation where texts that
    differ may be equal in it (nondeterministic); else empty. ``is_required``: a row without a value for it is
    refused, for it is NOT NULL and has no default."""

    name: str
    sql_type: str
    type: ColumnType
    is_generated: bool = False
    is_always_identity: bool = False
    declared_type: str = ""
    older: str = ""
    collation: str = ""
    is_enum: bool = False
    is_required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A rule, or a trigger for each row, that may keep statements from doing what they say.

    ``events``: the kinds of statements it is about (``INSERT``, ``UPDATE``, ``DELETE``). ``fires``: as
    PostgreSQL's catalog has it: ``O`` for ordinary sessions, ``R`` where triggers are silenced
    (``session_replication_role = replica``), ``A`` always. ``diverts``: a rule that puts something else in
    the place of every such statement.
    """

    kind: Literal["rule", "trigger"]
    name: str
    events: frozenset[str]
    fires: Literal["O", "R", "A"]
    diverts: bool = False

    def is_awake(self, *, is_silent: bool) -> bool:
        return self.fires == "A" or self.fires == ("R" if is_silent else "O")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSequence:
    """A sequence that ``column`` owns or defaults to. ``is_indexed``: the end of one index has the column's
    highest value."""

    column: str
    oid: int
    is_indexed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """A table as the local database defines it.

    ``key``: the columns of the replica identity index, else of the primary key, else empty. ``other_keys``:
    the columns of its other unique indexes that could locate a row. ``has_arbiter``: ON CONFLICT can use the
    key; ``is_key_deferrable``: a duplicate is reported later only. ``is_partitioned``: its rows are those of
    its partitions; all other tables have rows of their own, whatever inherits from them.
    ``has_inbound_keys``: other tables refer to it. ``has_cascades``: deleting a row here deletes or changes
    rows of other tables, or is forbidden by them at once. ``parents``: the tables that it refers to.
    ``sequences``: those that columns own or default to. ``guards``: what may keep statements from doing what
    they say; ``hides_rows``: so does row-level security, for this session's role.
    ``shadow``: the table that is written in this one's place while it is rebuilt. ``rules``: this side's own
    privacy rules for it, if any.
    """

    name: TableName
    oid: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    other_keys: tuple[tuple[str, ...], ...] = ()
    has_arbiter: bool = True
    is_key_deferrable: bool = False
    is_partitioned: bool = False
    has_inbound_keys: bool = False
    has_cascades: bool = False
    parents: frozenset[TableName] = frozenset()
    sequences: tuple[ColumnSequence, ...] = ()
    guards: tuple[Guard, ...] = ()
    hides_rows: bool = False
    shadow: TableName | None = None
    rules: LocalRules | None = None

    @property
    def written_to(self) -> TableName:
        return self.shadow or self.name

    @property
    def writable(self) -> tuple[Column, ...]:
        """The columns that rows may give values for: all but the generated ones."""
        return tuple(column for column in self.columns if not column.is_generated)

    @property
    def fixed(self) -> tuple[str, ...]:
        """The columns outside the key that no UPDATE may set: GENERATED ALWAYS AS IDENTITY."""
        return tuple(c.name for c in self.columns if c.is_always_identity and c.name not in self.key)

    def located_by(self, key: tuple[str, ...]) -> TableSchema:
        """Return the schema with *key*, one of its ``other_keys``, in the key's place."""
        others = tuple(other for other in (self.key, *self.other_keys) if other != key)
        # ON CONFLICT is for the table's own key: nothing is known here of this one's index.
        return replace(self, key=key, other_keys=others, has_arbiter=False, is_key_deferrable=False)

    def awake_guards(self, *, is_silent: bool) -> tuple[Guard, ...]:
        """Return the guards that act on a session; none on a shadow, which has none."""
        if self.shadow is not None:
            return ()
        return tuple(guard for guard in self.guards if guard.is_awake(is_silent=is_silent))


def parents_first(parents: Mapping[TableName, Collection[TableName]]) -> list[TableName]:
    """Return the tables so that each comes after those that it refers to; by name where they form a ring."""
    graph = {
        table: [parent for parent in sorted(parents[table]) if parent in parents] for table in sorted(parents)
    }
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError:
        return list(graph)
