"""SQL on the source: reads the facts, and makes the few changes that logical replication needs.

Knows PostgreSQL's catalogs and psycopg; decides nothing, which preflight.py and provision.py do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from syncdata.capture.refusals import setup_error, setup_login_error
from syncdata.capture.slot import PLUGIN, read_slot
from syncdata.changes.names import TableName
from syncdata.errors import SlotError
from syncdata.provision.facts import (
    Publication,
    Role,
    Server,
    SourceFacts,
    TableFacts,
    TablePart,
)
from syncdata.provision.statements import Account, SetupStep
from syncdata.runtime.session_settings import SESSION_SETTINGS, pin_statement

_SERVER = """
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS version_num,
       current_database()::text AS database,
       current_setting('server_encoding') AS encoding,
       pg_is_in_recovery() AS is_in_recovery,
       current_setting('wal_level') AS wal_level,
       current_setting('max_replication_slots')::int AS max_slots,
       (SELECT count(*) FROM pg_replication_slots) AS used_slots,
       current_setting('max_wal_senders')::int AS max_senders,
       (SELECT count(*) FROM pg_stat_replication) AS used_senders,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_mib,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_wal_size') AS max_wal_mib,
       coalesce((SELECT setting::bigint FROM pg_settings WHERE name = 'idle_replication_slot_timeout'), 0)
           AS idle_timeout
"""

_ROLE = """
SELECT rolname::text AS name, rolsuper AS is_superuser, rolreplication AS may_replicate,
       has_database_privilege(current_database(), 'CREATE') AS may_create
FROM pg_roles WHERE rolname = current_user
"""

# Read from the catalogs, not through to_regclass: the role may have no right to the schema.
_TABLES = """
SELECT wanted.schema, wanted.name, c.oid::bigint AS oid, c.relkind::text AS kind,
       c.relpersistence::text AS persistence,
       coalesce(pg_has_role(c.relowner, 'USAGE'), false) AS is_owned,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS has_usage,
       coalesce(has_table_privilege(c.oid, 'SELECT'), false) AS may_select,
       coalesce(row_security_active(c.oid), false) AS hides_rows,
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) AS has_children
FROM unnest(%(schemas)s::text[], %(names)s::text[]) WITH ORDINALITY AS wanted (schema, name, position)
LEFT JOIN pg_namespace n ON n.nspname = wanted.schema
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
ORDER BY position
"""

# The table itself first, then its leaf partitions; partitioned tables between them hold no rows of their own,
# and their replica identity plays no part.
_PARTS = """
SELECT member.root::bigint AS root, n.nspname::text AS schema, c.relname::text AS name,
       c.relkind::text AS kind, c.relpersistence::text AS persistence, c.relreplident::text AS identity,
       pg_has_role(c.relowner, 'USAGE') AS is_owned,
       coalesce(bool_or(i.indisprimary AND i.indisvalid AND i.indimmediate), false) AS has_key,
       coalesce(bool_or(i.indisprimary AND NOT i.indimmediate), false) AS has_deferrable_key,
       coalesce(bool_or(i.indisreplident AND i.indisvalid AND i.indimmediate), false) AS has_identity_index
FROM (
    SELECT root, root AS oid FROM unnest(%(oids)s::oid[]) AS root
    UNION
    SELECT root, tree.relid FROM unnest(%(oids)s::oid[]) AS root, pg_partition_tree(root) AS tree
    WHERE tree.isleaf
) AS member
JOIN pg_class c ON c.oid = member.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indrelid = c.oid
GROUP BY member.root, c.oid, n.nspname
ORDER BY member.root, c.oid <> member.root, n.nspname, c.relname
"""

_PUBLICATION = """
SELECT oid::bigint, pg_has_role(pubowner, 'USAGE') AS is_owned, puballtables AS is_for_all_tables,
       pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot AS has_our_options
FROM pg_publication WHERE pubname = %(name)s
"""

# As JSON, since PostgreSQL 14 has no row filters and column lists.
_PUBLISHED = """
SELECT n.nspname::text AS schema, c.relname::text AS name,
       coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') IS NOT NULL AS is_partial
FROM pg_publication_rel r
JOIN pg_class c ON c.oid = r.prrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.prpubid = %(oid)s
"""

_PUBLISHED_SCHEMAS = """
SELECT n.nspname::text AS schema
FROM pg_publication_namespace p JOIN pg_namespace n ON n.oid = p.pnnspid
WHERE p.pnpubid = %(oid)s
"""

_ACCOUNT = """
SELECT rolsuper AS is_superuser, rolcanlogin AS may_login, rolreplication AS may_replicate,
       has_database_privilege(oid, current_database(), 'CONNECT') AS may_connect
FROM pg_roles WHERE rolname = %(name)s
"""

_UNUSABLE_SCHEMAS = """
SELECT nspname::text AS schema FROM pg_namespace
WHERE nspname = ANY(%(schemas)s) AND NOT has_schema_privilege(%(name)s::name, oid, 'USAGE')
ORDER BY nspname
"""

_UNREADABLE_TABLES = """
SELECT wanted.schema, wanted.name
FROM unnest(%(schemas)s::text[], %(names)s::text[]) WITH ORDINALITY AS wanted (schema, name, position)
JOIN pg_namespace n ON n.nspname = wanted.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
WHERE NOT has_table_privilege(%(name)s::name, c.oid, 'SELECT')
ORDER BY position
"""

# While our ALTER TABLE waits for a lock, all later statements on that table wait behind it.
_LOCK_TIMEOUT = "10s"


@contextmanager
def open_source(params: Mapping[str, Any]) -> Iterator[SourceDatabase]:
    """Connect to the source, and close when the block is left.

    Raises SourceConnectionError when it cannot be reached or goes away, SourceSetupError when it refuses
    a statement.
    """
    try:
        connection = psycopg.connect(**params, autocommit=True, client_encoding="UTF8", row_factory=dict_row)
    except psycopg.Error as error:
        raise setup_login_error(error) from error
    with connection:
        try:
            yield SourceDatabase(connection)
        except psycopg.Error as error:
            raise setup_error(error, is_lost=connection.broken) from error


class SourceDatabase:
    """An open connection to the source. Its methods raise psycopg.Error; `open_source` translates."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self._connection = connection
        # The role may have settings for an application that do not suit this. Setup reads no rows, so row
        # security can keep none from it.
        pinned = SESSION_SETTINGS | {"search_path": "pg_catalog", "row_security": "on"}
        connection.execute(pin_statement(pinned))

    def read(self, *, tables: Sequence[TableName], publication: str, slot: str) -> SourceFacts:
        """Return the facts that decide whether the source is ready. Read-only."""
        server = Server(**self._one(_SERVER))
        return SourceFacts(
            server=server,
            role=Role(**self._one(_ROLE)),
            tables=self._read_tables(tables),
            publication_name=publication,
            publication=self._read_publication(publication, server.version_num),
            slot_name=slot,
            slot=read_slot(self._connection, slot),
        )

    def read_account(self, name: str, tables: Sequence[TableName]) -> Account:
        """Return the rights of the role *name*, which need not exist."""
        schemas, names = [table.schema for table in tables], [table.name for table in tables]
        rows = self._rows(_ACCOUNT, name=name)
        if not rows:
            # Rights that PUBLIC has on schemas and tables show once the role exists; it is read again then.
            return Account(
                name=name,
                exists=False,
                is_superuser=False,
                may_login=False,
                may_replicate=False,
                may_connect=True,
                unusable_schemas=(),
                unreadable_tables=(),
            )
        unusable = self._rows(_UNUSABLE_SCHEMAS, name=name, schemas=schemas)
        unreadable = self._rows(_UNREADABLE_TABLES, name=name, schemas=schemas, names=names)
        return Account(
            name=name,
            exists=True,
            **rows[0],
            unusable_schemas=tuple(row["schema"] for row in unusable),
            unreadable_tables=tuple(TableName(row["schema"], row["name"]) for row in unreadable),
        )

    def hash_password(self, role: str, password: str) -> str:
        """Return *password* as the server stores it: the password itself is neither sent nor logged."""
        hashed = self._connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
        return hashed.decode()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes of the block or none, and give up soon when a table is in use."""
        with self._connection.transaction():
            self._connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            yield

    def make(self, steps: Iterable[SetupStep]) -> list[str]:
        """Execute *steps*; return a line for each change made."""
        done = []
        for step in steps:
            self._connection.execute(step.statement)
            done += step.done.split("\n")
        return done

    def create_slot(self, name: str) -> str:
        """Create the slot and return the LSN it begins at; waits for the transactions that run now."""
        query = "SELECT lsn::text FROM pg_create_logical_replication_slot(%(name)s, %(plugin)s)"
        return str(self._one(query, name=name, plugin=PLUGIN)["lsn"])

    def drop_slot(self, name: str) -> None:
        """Drop the slot. Raises SlotError when a session reads it."""
        try:
            self._one("SELECT pg_drop_replication_slot(%(name)s)", name=name)
        except psycopg.errors.ObjectInUse as error:
            raise SlotError(f"slot {name} is in use", hint="stop its reader first") from error

    def drop_publication(self, name: str) -> None:
        self._connection.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))

    def _read_tables(self, tables: Sequence[TableName]) -> tuple[TableFacts, ...]:
        schemas, names = [table.schema for table in tables], [table.name for table in tables]
        rows = self._rows(_TABLES, schemas=schemas, names=names)
        oids = [row["oid"] for row in rows if row["kind"] in ("r", "p")]
        parts: dict[int, list[TablePart]] = {oid: [] for oid in oids}
        for row in self._rows(_PARTS, oids=oids):
            name = TableName(row.pop("schema"), row.pop("name"))
            parts[row.pop("root")].append(TablePart(name=name, **row))
        return tuple(
            TableFacts(
                name=TableName(row.pop("schema"), row.pop("name")),
                parts=tuple(parts.get(row.pop("oid"), ())),
                **row,
            )
            for row in rows
        )

    def _read_publication(self, name: str, version_num: int) -> Publication | None:
        rows = self._rows(_PUBLICATION, name=name)
        if not rows:
            return None
        oid = rows[0].pop("oid")
        published = [
            (TableName(row["schema"], row["name"]), row["is_partial"])
            for row in self._rows(_PUBLISHED, oid=oid)
        ]
        # Publications of whole schemas came with PostgreSQL 15.
        schemas = self._rows(_PUBLISHED_SCHEMAS, oid=oid) if version_num >= 150_000 else []
        return Publication(
            **rows[0],
            tables=frozenset(table for table, _ in published),
            partial=frozenset(table for table, is_partial in published if is_partial),
            schemas=frozenset(row["schema"] for row in schemas),
        )

    def _rows(self, query: str, **parameters: object) -> list[dict[str, Any]]:
        return self._connection.execute(query, parameters).fetchall()

    def _one(self, query: str, **parameters: object) -> dict[str, Any]:
        (row,) = self._rows(query, **parameters)
        return row
