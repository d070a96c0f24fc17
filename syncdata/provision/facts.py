"""The facts about a source that decide whether it is ready, as values, and simple conclusions from them.

Knows no connection: database.py reads the facts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from psycopg import sql

from syncdata.capture.publication import Part
from syncdata.capture.slot import PLUGIN, Slot
from syncdata.changes.names import TableName


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server and its settings. ``keep_mib`` is max_slot_wal_keep_size, -1 without limit;
    ``idle_timeout`` is idle_replication_slot_timeout, 0 when it is off. ``marker``: the role by which a
    managed service shows, say ``rds_superuser``. ``standby_slots``: the physical slots, which standbys read;
    ``waits_for_standbys``: synchronized_standby_slots names some."""

    version: str
    version_num: int
    database: str
    encoding: str
    is_in_recovery: bool
    wal_level: str
    max_slots: int
    used_slots: int
    max_senders: int
    used_senders: int
    keep_mib: int
    max_wal_mib: int
    idle_timeout: int
    marker: str | None = None
    standby_slots: tuple[str, ...] = ()
    waits_for_standbys: bool = False

    @property
    def has_failover_slots(self) -> bool:
        return self.version_num >= 170_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The role that is logged in. A superuser may do everything. ``may_replicate``: by its attribute, by
    membership in a role of its managed service, or because a try went well."""

    name: str
    is_superuser: bool
    may_replicate: bool
    may_create: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePart:
    """A table itself, or one of its leaf partitions: an UPDATE of its rows needs its replica identity.
    ``identity`` as in pg_class.relreplident; ``generated_keys``: the generated columns of its key;
    ``assignment``: what an UPDATE may SET, as SQL; None for a table without columns."""

    name: TableName
    kind: str
    persistence: str
    identity: str
    is_owned: bool
    has_key: bool
    has_deferrable_key: bool
    has_identity_index: bool
    generated_keys: tuple[str, ...] = ()
    assignment: str | None = None

    @property
    def is_locatable(self) -> bool:
        """True when an UPDATE or DELETE in the WAL says which row it changed."""
        usable = {"d": self.has_key, "i": self.has_identity_index, "f": True}
        return usable.get(self.identity, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """A table that is to be published. ``parts``: the table itself, then its leaf partitions. ``roots``: the
    partitioned tables that it is a partition of."""

    name: TableName
    kind: str | None
    persistence: str | None
    is_owned: bool
    has_usage: bool
    may_select: bool
    hides_rows: bool
    has_children: bool
    parts: tuple[TablePart, ...]
    roots: tuple[TableName, ...] = ()


Action = Literal["insert", "update", "delete", "truncate"]
Failover = Literal["auto", "true", "false"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The publication that exists. ``partial``: its tables with a row filter or a column list. ``lacks``: the
    kinds of changes that it does not publish. ``is_via_root``: partitions are published as their root."""

    is_owned: bool
    is_for_all_tables: bool
    lacks: tuple[Action, ...] = ()
    is_via_root: bool = True
    tables: frozenset[TableName]
    partial: Mapping[TableName, Part] = field(default_factory=dict)
    schemas: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """All facts of one source, beside the configured names of publication and slot."""

    server: Server
    role: Role
    tables: tuple[TableFacts, ...]
    publication_name: str
    publication: Publication | None
    slot_name: str
    slot: Slot | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationPlan:
    """The changes that make the publication as configured.

    What somebody has narrowed stays narrow unless the plan *widens*: then tables published in part are
    ``made_whole``, and all kinds of changes are published, partitions as their root (``corrects_options``).
    A privacy policy gives ``parts``: a table's columns and rows, where not all of it; whole is then as much
    as the policy lets go. Tables of which more is published than that are ``narrowed`` in any case.
    """

    is_new: bool = False
    added: tuple[TableName, ...] = ()
    dropped: tuple[TableName, ...] = ()
    made_whole: tuple[TableName, ...] = ()
    narrowed: tuple[TableName, ...] = ()
    parts: Mapping[TableName, Part] = field(default_factory=dict)
    dropped_schemas: tuple[str, ...] = ()
    corrects_options: bool = False

    @property
    def changes_tables(self) -> bool:
        return bool(self.added or self.dropped or self.made_whole or self.narrowed or self.dropped_schemas)

    @property
    def is_empty(self) -> bool:
        return not (self.is_new or self.changes_tables or self.corrects_options)


WHOLE = Part()
NO_PARTS: Mapping[TableName, Part] = {}


def plan_publication(
    publication: Publication | None,
    wanted: Collection[TableName],
    *,
    parts: Mapping[TableName, Part] = NO_PARTS,
    widens: bool = False,
) -> PublicationPlan:
    """Compare the publication that is there with the tables that are *wanted* in it, some only in *parts*."""
    if publication is None:
        return PublicationPlan(is_new=True, added=tuple(wanted), parts=_only(parts, wanted))
    added = tuple(table for table in wanted if table not in publication.tables)
    made_whole: list[TableName] = []
    narrowed: list[TableName] = []
    changed: dict[TableName, Part] = {}
    for table in sorted(publication.tables & set(wanted)):
        there, allowed = publication.partial.get(table, WHOLE), parts.get(table, WHOLE)
        part = allowed if widens else narrower(there, allowed)
        if part != there:
            (narrowed if part == narrower(there, part) else made_whole).append(table)
            changed[table] = part
    has_our_options = publication.is_via_root and not publication.lacks
    return PublicationPlan(
        added=added,
        dropped=tuple(sorted(publication.tables - set(wanted))),
        made_whole=tuple(made_whole),
        narrowed=tuple(narrowed),
        parts=_only(parts, added) | {table: part for table, part in changed.items() if part != WHOLE},
        dropped_schemas=tuple(sorted(publication.schemas)),
        corrects_options=widens and not has_our_options,
    )


def narrower(there: Part, allowed: Part) -> Part:
    """Return as much of *allowed* as is *there*. Of two row filters, the one that is there stays."""
    columns = there.columns
    if columns is None or allowed.columns is None:
        columns = allowed.columns if columns is None else columns
    else:
        columns = tuple(column for column in columns if column in allowed.columns)
    return Part(columns=columns, row_filter=there.row_filter or allowed.row_filter)


def _only(parts: Mapping[TableName, Part], tables: Collection[TableName]) -> dict[TableName, Part]:
    return {table: parts[table] for table in tables if table in parts}


def wants_failover(server: Server, failover: Failover) -> bool:
    """Tell whether standbys are to keep a copy of the slot: ``auto`` does where there are standbys."""
    if not server.has_failover_slots or failover == "false":
        return False
    return failover == "true" or bool(server.standby_slots)


def without_identity(source: SourceFacts) -> tuple[TablePart, ...]:
    """Return the tables and partitions whose updates and deletes cannot be followed as they are."""
    parts = (part for table in source.tables for part in table.parts)
    return tuple(dict.fromkeys(part for part in parts if not part.is_locatable))


def foreign_slot(slot: Slot, database: str) -> str | None:
    """Return why the slot cannot be ours, or None."""
    if slot.plugin is None:
        return "is a physical slot of something else"
    if slot.plugin != PLUGIN:
        return f"belongs to something else: its plugin is {slot.plugin}"
    if slot.database != database:
        return f"belongs to the database {slot.database}"
    return "is a temporary slot of something else" if slot.is_temporary else None


def quote(name: str) -> str:
    """Return *name* as SQL spells it, quoted."""
    return sql.Identifier(name).as_string(None)


def quote_table(table: TableName) -> str:
    return sql.Identifier(table.schema, table.name).as_string(None)
