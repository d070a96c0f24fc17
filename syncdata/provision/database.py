"""SQL on the source: reads the facts, and makes the few changes that logical replication needs.

Knows PostgreSQL's catalogs and psycopg; decides nothing, which preflight.py and provision.py do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from syncdata.capture.described import Described, read_described
from syncdata.capture.publication import Part
from syncdata.capture.refusals import setup_error, setup_login_error
from syncdata.capture.slot import PLUGIN, read_slot
from syncdata.capture.source import connect_for_replication
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
from syncdata.provision.statements import Account, SetupStep, drop_account, role_mark
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
           AS idle_timeout,
       (SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%(markers)s) ORDER BY 1 LIMIT 1) AS marker,
       ARRAY(SELECT slot_name::text FROM pg_replication_slots
             WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1) AS standby_slots,
       coalesce(current_setting('synchronized_standby_slots', true), '') <> '' AS waits_for_standbys
"""

# Managed services give their customers no superuser. These roles are theirs, and tell which service it is.
_MARKERS = ["rds_superuser", "cloudsqlsuperuser", "azure_pg_admin"]
# On Amazon RDS the members of this role may replicate; the attribute REPLICATION cannot be set there.
_REPLICATORS = ["rds_replication"]

_ROLE = """
SELECT r.rolname::text AS name, r.rolsuper AS is_superuser,
       r.rolreplication OR EXISTS (
           SELECT FROM pg_roles g WHERE g.rolname = ANY(%(replicators)s) AND pg_has_role(r.oid, g.oid,
           'MEMBER')
       ) AS may_replicate,
       has_database_privilege(current_database(), 'CREATE') AS may_create
FROM pg_roles r WHERE r.rolname = current_user
"""

# Read from the catalogs, not through to_regclass: the role may have no right to the schema.
_TABLES = """
SELECT wanted.schema, wanted.name, c.oid::bigint AS oid, c.relkind::text AS kind,
       c.relpersistence::text AS persistence,
       coalesce(pg_has_role(c.relowner, 'USAGE'), false) AS is_owned,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS has_usage,
       coalesce(has_table_privilege(c.oid, 'SELECT'), false) AS may_select,
       coalesce(row_security_active(c.oid), false) AS hides_rows,
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) AS has_children,
       ARRAY(
           SELECT ARRAY[rn.nspname::text, root.relname::text]
           FROM pg_partition_ancestors(c.oid) AS ancestor (oid)
           JOIN pg_class root ON root.oid = ancestor.oid AND root.oid <> c.oid
           JOIN pg_namespace rn ON rn.oid = root.relnamespace
       ) AS roots
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
       coalesce(bool_or(i.indisreplident AND i.indisvalid AND i.indimmediate), false) AS has_identity_index,
       ARRAY(
           SELECT a.attname::text FROM pg_attribute a JOIN pg_index k ON k.indrelid = a.attrelid
           WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND a.attnum = ANY(k.indkey)
           AND CASE WHEN c.relreplident = 'i' THEN k.indisreplident ELSE k.indisprimary END
           ORDER BY a.attnum
       ) AS generated_keys,
       (SELECT quote_ident(a.attname) || ' = '
               || CASE WHEN a.attgenerated = '' AND a.attidentity <> 'a' THEN quote_ident(a.attname)
                  ELSE 'DEFAULT' END
        FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attgenerated <> '' OR a.attidentity = 'a', a.attnum LIMIT 1) AS assignment
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
       array_remove(ARRAY[CASE WHEN NOT pubinsert THEN 'insert' END, CASE WHEN NOT pubupdate THEN 'update'
       END,
                          CASE WHEN NOT pubdelete THEN 'delete' END,
                          CASE WHEN NOT pubtruncate THEN 'truncate' END], NULL) AS lacks,
       pubviaroot AS is_via_root
FROM pg_publication WHERE pubname = %(name)s
"""

_PUBLISHED = sql.SQL("""
SELECT n.nspname::text AS schema, c.relname::text AS name, {part}
FROM pg_publication_rel r
JOIN pg_class c ON c.oid = r.prrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.prpubid = %(oid)s
""")
_PART = sql.SQL("""
       pg_get_expr(r.prqual, r.prrelid) AS row_filter,
       CASE WHEN r.prattrs IS NOT NULL THEN ARRAY(
           SELECT attname::text FROM pg_attribute
           WHERE attrelid = r.prrelid AND attnum = ANY(r.prattrs) ORDER BY attnum
       ) END AS columns
""")
# PostgreSQL 14 has no row filters and column lists.
_NO_PART = sql.SQL("NULL::text AS row_filter, NULL::text[] AS columns")

_PUBLISHED_SCHEMAS = """
SELECT n.nspname::text AS schema
FROM pg_publication_namespace p JOIN pg_namespace n ON n.oid = p.pnnspid
WHERE p.pnpubid = %(oid)s
"""

_CONDITION = """
SELECT pg_get_expr(conbin, conrelid) AS spelled FROM pg_constraint
WHERE conrelid = 'pg_temp.syncdata_condition'::regclass AND contype = 'c'
"""

_ACCOUNT = """
SELECT r.rolsuper AS is_superuser, r.rolcanlogin AS may_login,
       r.rolreplication OR EXISTS (
           SELECT FROM pg_roles g WHERE g.rolname = ANY(%(replicators)s) AND pg_has_role(r.oid, g.oid,
           'MEMBER')
       ) AS may_replicate,
       has_database_privilege(r.oid, current_database(), 'CONNECT') AS may_connect
FROM pg_roles r WHERE r.rolname = %(name)s
"""

_MEMBERSHIP = "SELECT rolname::text AS name FROM pg_roles WHERE rolname = ANY(%(replicators)s)"

# The roles with our mark, with the number of things that they own in any database.
_MADE_ROLES = """
SELECT r.rolname::text AS name,
       (SELECT count(*) FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid
        AND d.deptype = 'o') AS owned,
       ARRAY(SELECT DISTINCT b.datname::text FROM pg_shdepend d JOIN pg_database b ON b.oid = d.dbid
             WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid
             AND b.datname <> current_database() ORDER BY 1) AS elsewhere
FROM pg_roles r
WHERE shobj_description(r.oid, 'pg_authid') = %(mark)s AND r.rolname <> current_user
ORDER BY 1
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedWrite:
    """An UPDATE or DELETE (``verb``) that the server refuses for a table or partition, and its ``reason``."""

    part: TableName
    verb: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeRole:
    """A role that a setup has made. ``owns``: it owns things; ``elsewhere``: databases where it has
    rights."""

    name: str
    owns: bool
    elsewhere: tuple[str, ...]


@contextmanager
def open_source(params: Mapping[str, Any]) -> Iterator[SourceDatabase]:
    """Connect to the source, and close when the block is left.

    Raises SourceConnectionError when it cannot be reached or goes away, SourceSetupError when it refuses
    a statement.
    """
    try:
        connection = psycopg.connect(**params, autocommit=True, client_encoding="UTF8", row_factory=dict_row)
    except psycopg.Error as error:
        raise setup_login_error(error) from None
    with connection:
        try:
            yield SourceDatabase(connection, params)
        except psycopg.Error as error:
            raise setup_error(error, is_lost=connection.broken) from None


class SourceDatabase:
    """An open connection to the source. Its methods raise psycopg.Error; `open_source` translates."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]], params: Mapping[str, Any]) -> None:
        self._connection = connection
        self._params = params
        # The role may have settings for an application that do not suit this. Setup reads no rows, so row
        # security can keep none from it.
        pinned = SESSION_SETTINGS | {"search_path": "pg_catalog", "row_security": "on"}
        connection.execute(pin_statement(pinned))

    @property
    def is_lost(self) -> bool:
        """True once the connection is gone."""
        return self._connection.broken

    def read(self, *, tables: Sequence[TableName], publication: str, slot: str) -> SourceFacts:
        """Return the facts that decide whether the source is ready. Read-only."""
        row = self._one(_SERVER, markers=_MARKERS)
        server = Server(**row | {"standby_slots": tuple(row["standby_slots"])})
        return SourceFacts(
            server=server,
            role=self._read_role(),
            tables=self._read_tables(tables),
            publication_name=publication,
            publication=self._read_publication(publication, server.version_num),
            slot_name=slot,
            slot=read_slot(self._connection, slot),
        )

    @contextmanager
    def reading(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """Give the connection in a transaction that can only read."""
        with self._connection.transaction(force_rollback=True):
            self._connection.execute("SET TRANSACTION READ ONLY")
            yield self._connection

    def read_described(self, tables: Sequence[TableName]) -> dict[TableName, Described]:
        """Return what a privacy policy must know of those of *tables* that exist. Read-only."""
        return read_described(self._connection, tables)

    def spell_filter(self, table: TableName, condition: str) -> str:
        """Return *condition* on rows of *table* as the server spells it, which is how it shows a row filter.

        Nothing of it stays. Raises psycopg.Error where the server takes it for no condition.
        """
        probe = sql.Identifier("pg_temp", "syncdata_condition")
        like = sql.Identifier(table.schema, table.name)
        with self._connection.transaction(force_rollback=True):
            self._connection.execute(sql.SQL("CREATE TEMP TABLE {} (LIKE {})").format(probe, like))
            add = sql.SQL("ALTER TABLE {} ADD CHECK ({})").format(probe, sql.SQL(condition))
            # Prepared, since that takes one statement only.
            self._connection.execute(add, prepare=True)
            return str(self._one(_CONDITION)["spelled"])

    def read_account(self, name: str, tables: Sequence[TableName]) -> Account:
        """Return the rights of the role *name*, which need not exist."""
        schemas, names = [table.schema for table in tables], [table.name for table in tables]
        rows = self._rows(_ACCOUNT, name=name, replicators=_REPLICATORS)
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
            done += step.done.splitlines()
        return done

    def read_membership(self) -> str | None:
        """Return the role whose members may replicate here; None where the attribute REPLICATION says it."""
        rows = self._rows(_MEMBERSHIP, replicators=_REPLICATORS)
        return str(rows[0]["name"]) if rows else None

    def read_made_roles(self, database: str) -> list[MadeRole]:
        """Return the roles that a setup has made for *database*, which is ours."""
        return [
            MadeRole(name=row["name"], owns=row["owned"] > 0, elsewhere=tuple(row["elsewhere"]))
            for row in self._rows(_MADE_ROLES, mark=role_mark(database))
        ]

    def refused_writes(self, parts: Collection[TablePart]) -> list[RefusedWrite]:
        """Return the UPDATEs and DELETEs that the server refuses on *parts* as they are published now.

        EXPLAIN prepares the statement, and that is where the server looks at publications and replica
        identity; nothing is executed, so no trigger fires, not even one for each statement. A table that the
        role may not write, or that others lock, tells nothing; what our transaction has altered, it locks.
        """
        found = []
        for part in parts:
            for verb, statement in _writes(part):
                try:
                    # Undone in any case, so that the limit ends with it. Test:
                    # test_the_proof_of_writes_leaves_the_limits_of_its_transaction.
                    with self._connection.transaction(force_rollback=True):
                        self._connection.execute("SET LOCAL lock_timeout = '2s'")
                        self._connection.execute(statement)
                except (psycopg.errors.InsufficientPrivilege, psycopg.errors.LockNotAvailable):
                    continue
                except (
                    psycopg.errors.ObjectNotInPrerequisiteState,
                    psycopg.errors.InvalidColumnReference,
                ) as e:
                    # The detail speaks of columns and the identity; there are no values in the statement.
                    reason = ". ".join(filter(None, [e.diag.message_primary, e.diag.message_detail]))
                    found.append(RefusedWrite(part=part.name, verb=verb, reason=reason.rstrip(".")))
        return found

    def create_slot(self, name: str, *, is_failover: bool = False) -> str:
        """Create the slot and return the LSN it begins at; waits for the transactions that run now."""
        # Servers before 17 do not know the argument.
        query = "SELECT lsn::text FROM pg_create_logical_replication_slot(%(name)s, %(plugin)s{})".format(
            ", failover => true" if is_failover else ""
        )
        return str(self._one(query, name=name, plugin=PLUGIN)["lsn"])

    def make_failover_slot(self, name: str) -> None:
        """Let standbys keep a copy of the slot from now on. Only the replication protocol has a command for
        it.

        Raises SlotError while a session reads the slot.
        """
        command = sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)").format(sql.Identifier(name))
        with connect_for_replication(self._params) as replication:
            try:
                replication.execute(command)
            except psycopg.errors.ObjectInUse as error:
                raise SlotError(f"slot {name} is in use", hint="stop its reader first") from error

    def drop_slot(self, name: str) -> None:
        """Drop the slot. Raises SlotError when a session reads it."""
        try:
            self._one("SELECT pg_drop_replication_slot(%(name)s)", name=name)
        except psycopg.errors.ObjectInUse as error:
            raise SlotError(f"slot {name} is in use", hint="stop its reader first") from error

    def drop_role(self, name: str) -> list[str]:
        """Drop the role with its rights; return a line that tells so, or why it stays."""
        try:
            with self.transaction():
                return self.make(drop_account(name))
        except psycopg.errors.InsufficientPrivilege as error:
            return [f"role {name} stays: {error.diag.message_primary}: drop it as a superuser"]

    def drop_publication(self, name: str) -> None:
        self._connection.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))

    def _read_role(self) -> Role:
        """Return the role. What the catalog does not know a try tells: a replication connection, closed at
        once."""
        row = self._one(_ROLE, replicators=_REPLICATORS)
        if not (row["is_superuser"] or row["may_replicate"]):
            try:
                connect_for_replication(self._params).close()
                row["may_replicate"] = True
            except psycopg.Error:
                pass  # It may not, or no sender is free: then the catalog's answer stands.
        return Role(**row)

    def _read_tables(self, tables: Sequence[TableName]) -> tuple[TableFacts, ...]:
        schemas, names = [table.schema for table in tables], [table.name for table in tables]
        rows = self._rows(_TABLES, schemas=schemas, names=names)
        oids = [row["oid"] for row in rows if row["kind"] in ("r", "p")]
        parts: dict[int, list[TablePart]] = {oid: [] for oid in oids}
        for row in self._rows(_PARTS, oids=oids):
            name = TableName(row.pop("schema"), row.pop("name"))
            row["generated_keys"] = tuple(row["generated_keys"])
            parts[row.pop("root")].append(TablePart(name=name, **row))
        return tuple(
            TableFacts(
                name=TableName(row.pop("schema"), row.pop("name")),
                parts=tuple(parts.get(row.pop("oid"), ())),
                roots=tuple(TableName(*root) for root in row.pop("roots")),
                **row,
            )
            for row in rows
        )

    def _read_publication(self, name: str, version_num: int) -> Publication | None:
        rows = self._rows(_PUBLICATION, name=name)
        if not rows:
            return None
        oid, lacks = rows[0].pop("oid"), rows[0].pop("lacks")
        query = _PUBLISHED.format(part=_PART if version_num >= 150_000 else _NO_PART)
        published = {TableName(row["schema"], row["name"]): _part(row) for row in self._rows(query, oid=oid)}
        # Publications of whole schemas came with PostgreSQL 15.
        schemas = self._rows(_PUBLISHED_SCHEMAS, oid=oid) if version_num >= 150_000 else []
        return Publication(
            **rows[0],
            lacks=tuple(lacks),
            tables=frozenset(published),
            partial={table: part for table, part in published.items() if part is not None},
            schemas=frozenset(row["schema"] for row in schemas),
        )

    def _rows(self, query: str | sql.Composed, **parameters: object) -> list[dict[str, Any]]:
        return self._connection.execute(query, parameters).fetchall()

    def _one(self, query: str, **parameters: object) -> dict[str, Any]:
        (row,) = self._rows(query, **parameters)
        return row


def _part(row: Mapping[str, Any]) -> Part | None:
    """Return the part of a published table; None when all of it is published."""
    if row["row_filter"] is None and row["columns"] is None:
        return None
    columns = None if row["columns"] is None else tuple(row["columns"])
    return Part(columns=columns, row_filter=row["row_filter"])


def _writes(part: TablePart) -> Iterator[tuple[str, sql.Composed]]:
    """Yield an UPDATE and a DELETE of no row of *part*, each as EXPLAIN."""
    table = sql.Identifier(part.name.schema, part.name.name)
    if part.assignment is not None:
        update = sql.SQL("EXPLAIN UPDATE ONLY {} SET {} WHERE false")
        yield "UPDATE", update.format(table, sql.SQL(part.assignment))
    yield "DELETE", sql.SQL("EXPLAIN DELETE FROM ONLY {} WHERE false").format(table)
