"""A look at what the source publishes now: its tables, columns, keys and partitions, in a few set queries.

Knows PostgreSQL's catalogs; decides nothing. Uses no function that opens a table, such as those behind
pg_publication_tables and pg_partition_tree: they would wait for an ALTER TABLE that runs for hours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, LiteralString

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from syncdata.capture.constraints import Constraints, read_constraints
from syncdata.capture.refusals import source_error
from syncdata.capture.source import within_limits
from syncdata.changes.names import TableName
from syncdata.changes.position import parse_lsn
from syncdata.errors import SyncError
from syncdata.runtime.catalog_queries import BLIND_COLLATION
from syncdata.runtime.session_settings import SESSION_SETTINGS, pin_statement

_SETTINGS = (
    "SET client_encoding = 'UTF8'; SET search_path = pg_catalog; SET row_security = off;"
    " SET lock_timeout = '1s'"
)
_LOOK_TIMEOUT_S, _PROBE_TIMEOUT_S = 60, 5

# What was committed before `lsn` is in the look; a row that is older than `xmin` was there before it.
_MOMENT = """
SELECT pg_current_wal_lsn()::text AS lsn, pg_snapshot_xmin(pg_current_snapshot())::text AS xmin
"""

_PUBLICATION = """
SELECT oid::bigint AS oid, puballtables AS has_all_tables, pubviaroot AS is_via_root,
       pubinsert AND pubupdate AND pubdelete AND pubtruncate AS has_all_actions,
       to_jsonb(p) ->> 'pubgencols' AS generated
FROM pg_publication p WHERE pubname = {publication}
"""

# TRUNCATE and ALTER TABLE give a table's storage, its TOAST table's and its indexes' anew together, and a
# later ALTER TABLE that only adds a column notes that with the table alone. So the oldest of their rows in
# pg_class is as old as the storage, or newer, and nearest to it.
# Test: test_a_column_that_came_after_a_truncate_and_new_rows_is_like_any_other.
_STORED_BY: LiteralString = """(
    SELECT k.xmin::text
    FROM pg_class k
    WHERE k.oid IN (
        SELECT c.oid UNION ALL SELECT c.reltoastrelid
        UNION ALL SELECT i.indexrelid FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid)
    ORDER BY age(k.xmin) DESC LIMIT 1)"""

# Through the root, a partition counts as published only where none of its ancestors is; else the leaves do.
_TABLES = """
WITH RECURSIVE listed AS (
    SELECT prrelid AS oid FROM pg_publication_rel WHERE prpubid = {publication}
    UNION
    SELECT oid FROM pg_class WHERE relnamespace = ANY({schemas}::oid[]) OR ({has_all_tables} AND oid >= 16384)
), above AS (
    SELECT oid, oid AS ancestor FROM listed
    UNION ALL
    SELECT a.oid, i.inhparent
    FROM above a JOIN pg_class c ON c.oid = a.ancestor AND c.relispartition
    JOIN pg_inherits i ON i.inhrelid = c.oid
), below AS (
    SELECT oid FROM listed
    UNION
    SELECT i.inhrelid
    FROM below b JOIN pg_class c ON c.oid = b.oid AND c.relkind = 'p'
    JOIN pg_inherits i ON i.inhparent = c.oid
), published AS (
    SELECT oid FROM listed WHERE {is_via_root} AND NOT EXISTS (
        SELECT FROM above a JOIN listed l ON l.oid = a.ancestor
        WHERE a.oid = listed.oid AND a.ancestor <> a.oid)
    UNION
    SELECT b.oid FROM below b JOIN pg_class c ON c.oid = b.oid WHERE NOT {is_via_root} AND c.relkind = 'r'
)
SELECT n.nspname::text AS schema, c.relname::text AS name, c.oid::bigint AS oid, c.relkind::text AS kind,
       c.relfilenode::bigint AS storage, {stored_by} AS stored_by, c.relreplident::text AS identity,
       coalesce(r.oid, 0)::bigint AS membership,
       to_jsonb(r) -> 'prattrs' AS column_list, to_jsonb(r) ->> 'prqual' IS NOT NULL AS is_filtered,
       {is_new} AS is_filter_new
FROM published
JOIN pg_class c ON c.oid = published.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_publication_rel r ON r.prrelid = c.oid AND r.prpubid = {publication}
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY 1, 2
"""

# A row of the publication by a transaction that is older than the slot's catalog_xmin is in every state of
# the catalog by which the server still decodes changes for the slot.
_IS_NEW: LiteralString = """coalesce(age(r.xmin) <= (
    SELECT age(s.catalog_xmin) FROM pg_replication_slots s WHERE s.slot_name = {slot}), false)"""

_FILTERS = """
SELECT prrelid::bigint AS oid, pg_get_expr(prqual, prrelid) AS filter,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = prrelid AND a.attnum > 0 AND NOT a.attisdropped AND (
                 prqual::text ~ ':varattno 0' OR a.attnum::text IN (
                     SELECT named[1] FROM regexp_matches(prqual::text, ':varattno (\\d+)', 'g') AS named))
             ORDER BY a.attnum) AS columns
FROM pg_publication_rel WHERE prpubid = {publication} AND prrelid = ANY({oids}::oid[])
"""

# What the domain `t` is made of; a domain may be made of another one.
_BASE: LiteralString = """(
    WITH RECURSIVE beneath AS (
        SELECT t.typbasetype AS oid, t.typtypmod AS modifier
        UNION ALL
        SELECT d.typbasetype, CASE b.modifier WHEN -1 THEN d.typtypmod ELSE b.modifier END
        FROM beneath b JOIN pg_type d ON d.oid = b.oid AND d.typtype = 'd'
    ) SELECT format_type(b.oid, b.modifier)
      FROM beneath b JOIN pg_type d ON d.oid = b.oid AND d.typtype <> 'd')"""

_TYPE: LiteralString = (
    "SELECT format_type(%(oid)s, %(modifier)s), coalesce((SELECT "
    + _BASE
    + " FROM pg_type t WHERE t.oid = %(oid)s AND t.typtype = 'd'), '')"
)

# `default_varies`: where rows got the default as a value that the catalog keeps (atthasmissing), whether its
# expression can give another value elsewhere or at another time. now() can; it is worked out once.
_COLUMNS = """
SELECT a.attrelid::bigint AS oid, a.attname::text AS name, a.attnum::int AS number,
       format_type(a.atttypid, a.atttypmod) AS type, a.atttypid::bigint AS type_oid, a.atttypmod AS modifier,
       coalesce((SELECT {base} FROM pg_type t WHERE t.oid = a.atttypid AND t.typtype = 'd'), '') AS base,
       coalesce(({collation}), '') AS collation,
       a.attnotnull AS not_null, a.attgenerated::text AS generated, a.attidentity::text AS identity,
       a.xmin::text AS changed, a.atthasmissing AS has_missing,
       coalesce(encode(sha256(convert_to(a.attmissingval::text, 'UTF8')), 'hex'), '') AS older,
       a.atthasdef AND a.attgenerated = '' AS has_default,
       a.atthasmissing AND d.adbin IS NOT NULL AND (
           d.adbin::text ~ '[{{](SQLVALUEFUNCTION|NEXTVALUEEXPR|COERCEVIAIO)' OR EXISTS (
               SELECT FROM regexp_matches(d.adbin::text, ':(?:op)?funcid (\\d+)', 'g') AS called
               JOIN pg_proc p ON p.oid = called[1]::oid WHERE p.provolatile <> 'i')
       ) AS default_varies
FROM pg_attribute a
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY({oids}::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

_COLUMNS_AS_THEY_ARE = """
SELECT attnum::int, xmin::text FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""

_KEYS = """
SELECT i.indrelid::bigint AS oid, i.indisprimary AS is_primary, i.indisreplident AS is_identity,
       i.indimmediate AS is_immediate,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS part (number, position)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = part.number
             WHERE part.position <= i.indnkeyatts ORDER BY part.position) AS columns
FROM pg_index i
WHERE i.indrelid = ANY({oids}::oid[]) AND (i.indisprimary OR i.indisreplident) AND i.indisvalid
"""

# Of the steps by which a leaf hangs at its root, the newest counts: that is when its rows became the root's.
_LEAVES = """
WITH RECURSIVE below AS (
    SELECT root, root AS oid, NULL::xid AS attached, NULL::cid AS command
    FROM unnest({oids}::oid[]) AS root
    UNION ALL
    SELECT b.root, i.inhrelid,
           CASE WHEN b.attached IS NULL OR age(i.xmin) <= age(b.attached) THEN i.xmin ELSE b.attached END,
           CASE WHEN b.attached IS NULL OR age(i.xmin) <= age(b.attached) THEN i.cmin ELSE b.command END
    FROM below b JOIN pg_inherits i ON i.inhparent = b.oid AND NOT i.inhdetachpending
)
SELECT below.root::bigint AS root, n.nspname::text AS schema, c.relname::text AS name, c.oid::bigint AS oid,
       c.relfilenode::bigint AS storage, {stored_by} AS stored_by,
       below.attached::text AS attached, below.command::text AS command
FROM below JOIN pg_class c ON c.oid = below.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind <> 'p' AND below.oid <> below.root
ORDER BY 1, 2, 3
"""

# The partition's own condition lets the planner leave out all others. Read through the root, on which the
# role has its right. A row's xmin and cmin stay when VACUUM FULL or CLUSTER writes the table anew.
_OLDER_ROWS = """
SELECT EXISTS (
    SELECT FROM {table} WHERE tableoid = {leaf} AND ({condition})
    AND (age(xmin) > age({xid}::xid) OR (xmin = {xid}::xid AND cmin::text::bigint < {command}))
) AS has_older
"""


class SeenColumn(msgspec.Struct, frozen=True):
    """A column as the source has it now. ``changed``: the transaction that added it, or altered it since.
    ``is_sent``: its values are in the stream. ``privacy`` and ``privacy_id``: as in the catalog, where a
    policy has judged the look."""

    name: str
    number: int
    type: str
    type_oid: int
    modifier: int
    not_null: bool
    generated: str
    identity: str
    changed: str
    has_missing: bool
    older: str
    has_default: bool
    default_varies: bool
    is_sent: bool
    base: str = ""
    collation: str = ""
    privacy: str = ""
    privacy_id: str = ""


class SeenLeaf(msgspec.Struct, frozen=True):
    """A leaf partition. ``attached`` and ``command``: the transaction and its step that attached it.
    ``stored_by``: the transaction that gave it its storage, or one that has altered all of it since."""

    schema: str
    name: str
    oid: int
    storage: int
    attached: str
    command: str
    stored_by: str = "0"


class SeenTable(msgspec.Struct, frozen=True):
    """A published table as the source has it now. ``storage``: its relfilenode, 0 for a partitioned one;
    ``stored_by``: as a leaf's. ``constraints``: read only for a policy; None where they were not.
    ``is_filter_new``: the slot may still hand over changes from before the row filter, unfiltered.
    ``told_filter``: what a catalog says of the row filter, which names the columns ``filtered_by``."""

    schema: str
    name: str
    oid: int
    kind: Literal["r", "p"]
    storage: int
    identity: str
    key: tuple[str, ...]
    identity_columns: tuple[str, ...]
    row_filter: str | None
    column_list: tuple[str, ...] | None
    columns: tuple[SeenColumn, ...]
    leaves: tuple[SeenLeaf, ...]
    membership: int = 0
    stored_by: str = "0"
    constraints: Constraints | None = None
    is_filter_new: bool = False
    told_filter: str | None = None
    filtered_by: tuple[str, ...] = ()

    @property
    def table(self) -> TableName:
        return TableName(self.schema, self.name)


class Look(msgspec.Struct, frozen=True):
    """All published tables at one moment, by name. What was committed before ``lsn`` is in it; rows of
    transactions before ``xmin`` were there already. ``leaves_out_actions``: the publication has not all of
    INSERT, UPDATE, DELETE and TRUNCATE, so no table counts as published."""

    publication: str
    lsn: int
    xmin: str
    tables: tuple[SeenTable, ...]
    leaves_out_actions: bool = False


def look_at(
    connection: psycopg.Connection[Any],
    publication: str,
    *,
    with_constraints: bool = False,
    slot_name: str = "",
) -> Look:
    """Look at the source; a replication connection and its snapshot will do, too. Raises psycopg.Error.

    *with_constraints*: as a privacy policy needs them; see `judge`. *slot_name*: whose
    changes the row filters must be older than; empty where nobody asks.
    """
    return _Looking(connection, publication, with_constraints=with_constraints, slot_name=slot_name).look()


class SourceEye:
    """Looks at the source again and again, on an ordinary connection of its own that stays open."""

    def __init__(
        self,
        params: Mapping[str, Any],
        publication: str,
        *,
        with_constraints: bool = False,
        slot_name: str = "",
    ) -> None:
        """*with_constraints*, *slot_name*: see `look_at`."""
        self._slot_name = slot_name
        self._params = params
        self._publication = publication
        self._with_constraints = with_constraints
        self._connection: psycopg.Connection[Any] | None = None

    def look(self) -> Look:
        """Look at the source. Raises SourceConnectionError."""
        try:
            connection = self._connect()
            self._limit(connection, _LOOK_TIMEOUT_S)
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            look = look_at(
                connection,
                self._publication,
                with_constraints=self._with_constraints,
                slot_name=self._slot_name,
            )
            connection.execute("COMMIT")
        except psycopg.Error as error:
            self.close()
            raise source_error(error) from None
        return look

    def type_texts(self, type_oid: int, modifier: int) -> tuple[str, str]:
        """Return the type as text, as `Look` has it, ``???`` where it was dropped, and what a domain is made
        of. Raises as `look`."""
        try:
            values = {"oid": type_oid, "modifier": modifier}
            row = self._connect().execute(_TYPE, values).fetchone()
        except psycopg.Error as error:
            raise source_error(error) from None
        assert row is not None
        return str(row[0]), str(row[1])

    def has_altered_columns(self, table: SeenTable) -> bool:
        """Tell whether a column of *table* was added, dropped or altered since it was seen; a GRANT on one
        counts, too. Raises as `look`."""
        try:
            connection = self._connect()
            self._limit(connection, _PROBE_TIMEOUT_S)
            rows = connection.execute(_COLUMNS_AS_THEY_ARE, (table.oid,)).fetchall()
        except psycopg.Error as error:
            self.close()
            raise source_error(error) from None
        return rows != [(column.number, column.changed) for column in table.columns]

    def has_older_rows(
        self, table: SeenTable, xid: str, leaf: SeenLeaf | None = None, command: str = "0"
    ) -> bool | None:
        """Tell whether *table* (or its *leaf*) has a row of a transaction before *xid*, or of *xid* itself
        before its step *command*; None when the source does not tell in a few seconds."""
        try:
            connection = self._connect()
            self._limit(connection, _PROBE_TIMEOUT_S)
            query = sql.SQL(_OLDER_ROWS).format(
                table=sql.SQL("{}{}").format(
                    sql.SQL("" if table.kind == "p" else "ONLY "), sql.Identifier(table.schema, table.name)
                ),
                leaf=sql.Literal(leaf.oid if leaf else table.oid),
                condition=sql.SQL(_condition(connection, leaf)),
                xid=sql.Literal(str(int(xid) % (1 << 32))),
                command=sql.Literal(int(command)),
            )
            row = connection.execute(query).fetchone()
        except (psycopg.Error, SyncError):
            return None
        assert row is not None
        return bool(row[0])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(**within_limits(self._params), autocommit=True)
            self._connection.execute(pin_statement(SESSION_SETTINGS))
            self._connection.execute(_SETTINGS)
        return self._connection

    def _limit(self, connection: psycopg.Connection[Any], timeout_s: int) -> None:
        connection.execute(sql.SQL("SET statement_timeout = {}").format(sql.Literal(f"{timeout_s}s")))


def _condition(connection: psycopg.Connection[Any], leaf: SeenLeaf | None) -> str:
    """Return the condition that rows of *leaf* fulfil, as the source spells it; true for any other table."""
    if leaf is None:
        return "true"
    row = connection.execute("SELECT pg_get_partition_constraintdef(%s)", (leaf.oid,)).fetchone()
    assert row is not None
    return row[0] or "true"


class _Looking:
    """One look, and the publication it is at."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        publication: str,
        *,
        with_constraints: bool,
        slot_name: str,
    ) -> None:
        self._slot_name = slot_name
        self._connection = connection
        self._publication = publication
        self._with_constraints = with_constraints
        self._has_schemas = connection.info.server_version >= 150_000

    def look(self) -> Look:
        (moment,) = self._rows(_MOMENT)
        found = self._rows(_PUBLICATION, publication=self._publication)
        tables: tuple[SeenTable, ...] = ()
        if found and found[0]["has_all_actions"]:
            tables = self._tables(found[0])
        return Look(
            publication=self._publication,
            lsn=parse_lsn(moment["lsn"]),
            xmin=moment["xmin"],
            tables=tables,
            leaves_out_actions=bool(found) and not found[0]["has_all_actions"],
        )

    def _tables(self, publication: dict[str, Any]) -> tuple[SeenTable, ...]:
        oid = publication["oid"]
        rows = self._rows(
            _TABLES,
            publication=oid,
            schemas=_array(self._schemas(oid)),
            has_all_tables=publication["has_all_tables"],
            is_via_root=publication["is_via_root"],
            stored_by=sql.SQL(_STORED_BY),
            is_new=sql.SQL(_IS_NEW).format(slot=sql.Literal(self._slot_name)),
        )
        oids = _array(row["oid"] for row in rows)
        filtered = _array(row["oid"] for row in rows if row["is_filtered"])
        filters = self._by_oid(_FILTERS, filtered, publication=oid)
        columns = self._by_oid(_COLUMNS, oids, base=sql.SQL(_BASE), collation=sql.SQL(BLIND_COLLATION))
        keys = self._by_oid(_KEYS, oids)
        parted = _array(row["oid"] for row in rows if row["kind"] == "p")
        leaves = self._by_oid(_LEAVES, parted, by="root", stored_by=sql.SQL(_STORED_BY))
        constraints = read_constraints(self._by_oid, oids) if self._with_constraints else None
        return tuple(
            _table(
                row,
                columns=columns.get(row["oid"], []),
                keys=keys.get(row["oid"], []),
                leaves=leaves.get(row["oid"], []),
                filters=filters.get(row["oid"], []),
                generated=publication["generated"],
                constraints=None if constraints is None else constraints.get(row["oid"], Constraints()),
            )
            for row in rows
        )

    def _schemas(self, publication_oid: int) -> list[int]:
        """Return the schemas that are published as a whole, which came with PostgreSQL 15."""
        if not self._has_schemas:
            return []
        query = "SELECT pnnspid::bigint AS oid FROM pg_publication_namespace WHERE pnpubid = {publication}"
        return [row["oid"] for row in self._rows(query, publication=publication_oid)]

    def _by_oid(
        self, query: str, oids: str, *, by: str = "oid", **values: object
    ) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = {}
        if oids != _array(()):
            for row in self._rows(query, oids=oids, **values):
                found.setdefault(row.pop(by), []).append(row)
        return found

    def _rows(self, query: str, **values: object) -> list[dict[str, Any]]:
        # Literals, since a replication connection takes no parameters.
        literals = {
            name: value if isinstance(value, sql.Composable) else sql.Literal(value)
            for name, value in values.items()
        }
        return (
            self._connection.cursor(row_factory=dict_row)
            .execute(sql.SQL(query).format(**literals))
            .fetchall()
        )


def _table(
    row: dict[str, Any],
    *,
    columns: list[dict[str, Any]],
    keys: list[dict[str, Any]],
    leaves: list[dict[str, Any]],
    filters: list[dict[str, Any]],
    generated: str | None,
    constraints: Constraints | None,
) -> SeenTable:
    listed = None if row["column_list"] is None else set(row["column_list"])
    seen = tuple(
        SeenColumn(**column, is_sent=_is_sent(column, listed, generated=generated)) for column in columns
    )
    key = next((tuple(found["columns"]) for found in keys if found["is_primary"]), ())
    return SeenTable(
        schema=row["schema"],
        name=row["name"],
        oid=row["oid"],
        kind=row["kind"],
        storage=row["storage"],
        identity=row["identity"],
        key=key,
        identity_columns=_identity_columns(row["identity"], seen, keys),
        row_filter=filters[0]["filter"] if filters else None,
        told_filter=filters[0]["filter"] if filters else None,
        filtered_by=tuple(filters[0]["columns"]) if filters else (),
        # Where generated columns are sent, the list tells readers so (publish_generated_columns).
        column_list=None
        if listed is None and not any(column.generated and column.is_sent for column in seen)
        else tuple(column.name for column in seen if column.is_sent),
        columns=seen,
        leaves=tuple(SeenLeaf(**leaf) for leaf in leaves),
        membership=row["membership"],
        stored_by=row["stored_by"],
        constraints=constraints,
        is_filter_new=row["is_filtered"] and row["is_filter_new"],
    )


def _is_sent(column: dict[str, Any], listed: set[int] | None, *, generated: str | None) -> bool:
    """Tell whether the column's values are in the stream. *generated*: the publication's option of that name,
    which came with PostgreSQL 18 together with generated columns in lists of columns."""
    if listed is not None:
        return column["number"] in listed and (column["generated"] == "" or generated is not None)
    return column["generated"] == "" or (column["generated"], generated) == ("s", "s")


def _identity_columns(
    identity: str, columns: Iterable[SeenColumn], keys: list[dict[str, Any]]
) -> tuple[str, ...]:
    """Return the columns that locate a row: those of an index that is not deferrable, or all."""
    if identity == "f":
        return tuple(column.name for column in columns)
    flag = {"d": "is_primary", "i": "is_identity"}.get(identity)
    return next(
        (tuple(found["columns"]) for found in keys if flag and found[flag] and found["is_immediate"]), ()
    )


def _array(oids: Iterable[int]) -> str:
    return "{" + ",".join(map(str, oids)) + "}"
