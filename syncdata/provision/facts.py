"""The facts about a source that decide whether it is ready, as values, and simple conclusions from them.

Knows no connection: database.py reads the facts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from psycopg import sql

from syncdata.capture.slot import PLUGIN, Slot
from syncdata.changes.names import TableName


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The server and its settings. ``keep_mib`` is max_slot_wal_keep_size, -1 without limit;
    ``idle_timeout`` is idle_replication_slot_timeout, 0 when it is off."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The role that is logged in. A superuser may do everything."""

    name: str
    is_superuser: bool
    may_replicate: bool
    may_create: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePart:
    """A table itself, or one of its leaf partitions: an UPDATE of its rows needs its replica identity.
    ``identity`` as in pg_class.relreplident."""

    name: TableName
    kind: str
    persistence: str
    identity: str
    is_owned: bool
    has_key: bool
    has_deferrable_key: bool
    has_identity_index: bool

    @property
    def is_locatable(self) -> bool:
        """True when an UPDATE or DELETE in the WAL says which row it changed."""
        usable = {"d": self.has_key, "i": self.has_identity_index, "f": True}
        return usable.get(self.identity, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """A table that is to be published. ``parts``: the table itself, then its leaf partitions."""

    name: TableName
    kind: str | None
    persistence: str | None
    is_owned: bool
    has_usage: bool
    may_select: bool
    hides_rows: bool
    has_children: bool
    parts: tuple[TablePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The publication that exists. ``partial``: its tables with a row filter or a column list."""

    is_owned: bool
    is_for_all_tables: bool
    has_our_options: bool
    tables: frozenset[TableName]
    partial: frozenset[TableName]
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
    """The changes that make the publication as configured. ``made_whole``: tables now published in part."""

    is_new: bool = False
    added: tuple[TableName, ...] = ()
    dropped: tuple[TableName, ...] = ()
    made_whole: tuple[TableName, ...] = ()
    dropped_schemas: tuple[str, ...] = ()
    corrects_options: bool = False

    @property
    def changes_tables(self) -> bool:
        return bool(self.added or self.dropped or self.made_whole or self.dropped_schemas)

    @property
    def is_empty(self) -> bool:
        return not (self.is_new or self.changes_tables or self.corrects_options)


def plan_publication(publication: Publication | None, wanted: Collection[TableName]) -> PublicationPlan:
    """Compare the publication that is there with the tables that are *wanted* in it."""
    if publication is None:
        return PublicationPlan(is_new=True, added=tuple(wanted))
    return PublicationPlan(
        added=tuple(table for table in wanted if table not in publication.tables),
        dropped=tuple(sorted(publication.tables - set(wanted))),
        made_whole=tuple(sorted(publication.partial & set(wanted))),
        dropped_schemas=tuple(sorted(publication.schemas)),
        corrects_options=not publication.has_our_options,
    )


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
