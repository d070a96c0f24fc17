"""What is there at the source, as values, and what directly follows from them. Pure; source.py reads them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from psycopg import sql

from syncdata.changes.names import TableName

PLUGIN = "pgoutput"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """``keep_mib``: max_slot_wal_keep_size, -1 without limit; ``idle_timeout``: in force unless 0."""

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
    """Who is logged in. A superuser may do everything."""

    name: str
    is_superuser: bool
    may_replicate: bool
    may_create: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """What holds rows: a table itself, or a leaf partition. ``identity`` as in pg_class.relreplident."""

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
        """Whether the source can tell which row an UPDATE or DELETE was about."""
        usable = {"d": self.has_key, "i": self.has_identity_index, "f": True}
        return usable.get(self.identity, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """A table that is to be published. ``relations``: the table, then its leaf partitions."""

    name: TableName
    kind: str | None
    persistence: str | None
    is_owned: bool
    has_usage: bool
    may_select: bool
    hides_rows: bool
    has_children: bool
    relations: tuple[Relation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """``partial``: the published tables with a row filter or a column list."""

    is_owned: bool
    is_for_all_tables: bool
    has_our_options: bool
    tables: frozenset[TableName]
    partial: frozenset[TableName]
    schemas: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingSlot:
    """``user``: who reads it now, as ``role, application, address, pid``; None when nobody does."""

    plugin: str | None
    database: str | None
    is_temporary: bool
    wal_status: str | None
    user: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """All that the source says, and the names that are configured."""

    server: Server
    role: Role
    tables: tuple[SourceTable, ...]
    publication_name: str
    publication: Publication | None
    slot_name: str
    slot: ExistingSlot | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationPlan:
    """What has to change so that the publication is as configured."""

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


def without_identity(source: SourceFacts) -> tuple[Relation, ...]:
    """Return the tables and partitions whose updates and deletes cannot be followed as they are."""
    relations = (relation for table in source.tables for relation in table.relations)
    return tuple(dict.fromkeys(relation for relation in relations if not relation.is_locatable))


def foreign_slot(slot: ExistingSlot, database: str) -> str | None:
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
