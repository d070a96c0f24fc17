"""Reads what PostgreSQL's catalog says of tables. Knows psycopg; knows nothing of files or rows.

However many tables and columns there are, it takes four queries, one for each list: tables, columns, types,
sequences. Source: "System Catalogs" of the PostgreSQL documentation (pg_attribute, pg_index, pg_type,
pg_depend).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from syncdata.apply.plan.schema import Column, ColumnSequence, ColumnType, Guard, TableSchema
from syncdata.changes.names import TableName
from syncdata.runtime.catalog_queries import BLIND_COLLATION

# The keys: that of the records first, then those that records of another identity may locate rows by. A
# WITHOUT OVERLAPS key is an exclusion constraint underneath, which ON CONFLICT cannot use; nor can it be used
# where there are rules, even such that are silent. Blind: the index takes texts for equal that its columns
# tell apart; ON CONFLICT would take it for the key's, too, and merge rows. JSON comes as text, since hosts
# differ in how they decode it. Guards: see `Guard`; ev_type and tgtype are PostgreSQL's.
_TABLES = """
SELECT n.nspname AS schema, c.relname AS name, c.oid::bigint AS oid, c.relkind = 'p' AS is_partitioned,
       coalesce(key.indexes, '[]')::text AS keys, c.relhasrules AS has_rules,
       coalesce(row_security_active(c.oid), false) AS hides_rows,
       coalesce(inbound.are_of_others, false) AS has_inbound_keys,
       coalesce(inbound.are_of_consequence, false) AS has_cascades,
       coalesce((SELECT jsonb_agg(DISTINCT jsonb_build_array(pn.nspname, pc.relname)) FROM pg_constraint f
                 JOIN pg_class pc ON pc.oid = f.confrelid JOIN pg_namespace pn ON pn.oid = pc.relnamespace
                 WHERE f.contype = 'f' AND f.conrelid = c.oid AND f.confrelid <> c.oid), '[]')::text
           AS parents,
       CASE WHEN c.relhasrules OR c.relhastriggers OR c.relkind = 'p' THEN coalesce((
           SELECT jsonb_agg(to_jsonb(g)) FROM (
               SELECT 'rule' AS kind, r.rulename AS name, r.ev_enabled AS fires,
                      r.is_instead AND r.ev_qual::text = '<>' AS diverts,
                      ARRAY[(ARRAY['UPDATE', 'INSERT', 'DELETE'])[r.ev_type::text::int - 1]] AS events
               FROM pg_rewrite r
               WHERE r.ev_class = c.oid AND r.ev_type IN ('2', '3', '4') AND r.ev_enabled <> 'D'
               UNION ALL
               SELECT 'trigger', t.tgname, t.tgenabled, false,
                      array_remove(ARRAY[CASE WHEN t.tgtype & 4 <> 0 THEN 'INSERT' END,
                                         CASE WHEN t.tgtype & 8 <> 0 THEN 'DELETE' END,
                                         CASE WHEN t.tgtype & 16 <> 0 THEN 'UPDATE' END], NULL)
               FROM pg_trigger t
               WHERE t.tgrelid IN (
                   -- pg_partition_tree() would wait for whoever holds a partition.
                   WITH RECURSIVE part (oid) AS (
                       SELECT c.oid
                       UNION ALL
                       SELECT i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid
                       WHERE c.relkind = 'p'
                   ) SELECT oid FROM part)
                 AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 1 <> 0
           ) g), '[]') ELSE '[]' END::text AS guards
FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS wanted (schema, name)
JOIN pg_namespace n ON n.nspname = wanted.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name AND c.relkind IN ('r', 'p')
LEFT JOIN (
    -- No index leads from a table to the keys that refer to it: all are looked at, once.
    SELECT f.confrelid AS oid, bool_or(f.conrelid <> f.confrelid) AS are_of_others,
           bool_or(f.confdeltype IN ('c', 'n', 'd') OR NOT f.condeferrable) AS are_of_consequence
    FROM pg_constraint f WHERE f.contype = 'f' GROUP BY f.confrelid
) AS inbound ON inbound.oid = c.oid
LEFT JOIN LATERAL (
    SELECT jsonb_agg(to_jsonb(k) ORDER BY k.is_identity DESC, k.is_primary DESC, k.oid) AS indexes FROM (
        SELECT i.indexrelid AS oid, i.indisreplident AS is_identity, i.indisprimary AS is_primary,
               i.indimmediate AS is_immediate, i.indisexclusion AS is_exclusion,
               bool_and(a.attnotnull) AS is_not_null,
               bool_or(EXISTS (
                   SELECT FROM pg_collation l WHERE l.oid = i.indcollation[p.position - 1]
                   AND l.oid <> a.attcollation AND NOT l.collisdeterministic)) AS is_blind,
               array_agg(a.attname::text ORDER BY p.position) AS columns
        FROM pg_index i
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS p (attnum, position)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.attnum
        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indisunique AND p.position <= i.indnkeyatts
          AND i.indpred IS NULL AND i.indexprs IS NULL
        GROUP BY i.indexrelid, i.indisreplident, i.indisprimary, i.indimmediate, i.indisexclusion
    ) k WHERE k.is_identity OR k.is_primary OR k.is_not_null AND k.is_immediate AND NOT k.is_exclusion
) AS key ON true
"""

# The tables that a person may choose from. Before the first ANALYZE, reltuples is -1; the server's own count
# of live rows may give an estimate then.
_CHOICE = """
SELECT n.nspname AS schema, c.relname AS name,
       CASE WHEN c.relkind = 'p' THEN
           (SELECT sum(greatest(leaf.reltuples, 0))::bigint FROM pg_partition_tree(c.oid) t
            JOIN pg_class leaf ON leaf.oid = t.relid WHERE t.isleaf)
       ELSE coalesce(nullif(c.reltuples, -1)::bigint, nullif(pg_stat_get_live_tuples(c.oid), 0))
       END AS row_estimate,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid
               AND (i.indisprimary OR i.indisreplident)) AS has_key
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY n.nspname <> 'public', n.nspname, c.relname
"""

_COLUMNS = f"""
SELECT attrelid::bigint AS oid, attname AS name, atttypid::bigint AS type_oid,
       attgenerated <> '' AS is_generated, attidentity = 'a' AS is_always_identity,
       format_type(atttypid, atttypmod) AS declared_type,
       coalesce(encode(sha256(convert_to(attmissingval::text, 'UTF8')), 'hex'), '') AS older,
       coalesce(({BLIND_COLLATION}), '') AS collation,
       NOT atthasdef AND attidentity = '' AND EXISTS (
           SELECT FROM pg_type t
           WHERE t.oid = a.atttypid AND (attnotnull OR t.typnotnull) AND t.typdefault IS NULL
       ) AS is_required
FROM pg_attribute a
WHERE attrelid = ANY(%(oids)s::oid[]) AND attnum > 0 AND NOT attisdropped
ORDER BY attrelid, attnum
"""

# A sequence that a column owns (serial, identity), or that a column's default draws from. Indexed: the end of
# one index has the column's highest value; with partitions it would be that of each.
_SEQUENCES = """
SELECT drawn.*, EXISTS (
    SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = drawn.oid AND a.attname = drawn.name AND m.amname = 'btree'
      AND c.relkind = 'i' AND i.indisvalid AND i.indpred IS NULL
) AS is_indexed FROM (
SELECT a.attrelid::bigint AS oid, a.attname AS name, s.oid::bigint AS sequence
FROM pg_depend d
JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
  AND d.deptype IN ('a', 'i') AND d.refobjid = ANY(%(oids)s::oid[])
UNION
SELECT ad.adrelid::bigint, a.attname, s.oid::bigint
FROM pg_attrdef ad
JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid
JOIN pg_class s ON d.refclassid = 'pg_class'::regclass AND s.oid = d.refobjid AND s.relkind = 'S'
JOIN pg_attribute a ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum
WHERE ad.adrelid = ANY(%(oids)s::oid[])
  AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype)
) AS drawn
"""

# The types of the columns, and those that they are made of. A domain over another has no modifier of its own,
# so ``base_type``, of the innermost one, is the whole truth.
_TYPES = """
WITH RECURSIVE used (oid) AS (
    SELECT DISTINCT atttypid FROM pg_attribute
    WHERE attrelid = ANY(%(oids)s::oid[]) AND attnum > 0 AND NOT attisdropped
    UNION
    SELECT part.oid FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL (
        SELECT t.typbasetype AS oid WHERE t.typtype = 'd'
        UNION ALL SELECT t.typelem WHERE t.typcategory = 'A' AND t.typelem <> 0
        UNION ALL SELECT a.atttypid FROM pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS part
)
SELECT t.oid::bigint AS oid, t.typtype, t.typbasetype::bigint AS base,
       format_type(nullif(t.typbasetype, 0), t.typtypmod) AS base_type, t.typcategory,
       t.typelem::bigint AS element,
       CASE WHEN t.typtype = 'c' THEN (
           SELECT jsonb_agg(jsonb_build_array(a.attname, a.atttypid::bigint) ORDER BY a.attnum)
           FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
       ) END::text AS fields
FROM used JOIN pg_type t ON t.oid = used.oid
"""

_JSON_OIDS = frozenset({114, 3802})
_BYTEA_OID = 17
_CHAR_OID = 18  # the type "char", with quotes


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTable:
    """A table of the local database. ``row_estimate``: the planner's, None before it has one."""

    name: TableName
    row_estimate: int | None
    has_key: bool


def local_tables(connection: Connection[Any]) -> list[LocalTable]:
    """Return all ordinary and partitioned tables outside the system schemas, those of ``public`` first."""
    rows = connection.cursor(row_factory=dict_row).execute(_CHOICE).fetchall()
    return [
        LocalTable(
            name=TableName(row["schema"], row["name"]),
            row_estimate=row["row_estimate"],
            has_key=row["has_key"],
        )
        for row in rows
    ]


def read_schemas(connection: Connection[Any], names: Collection[TableName]) -> dict[TableName, TableSchema]:
    """Return the schema of each of *names* that exists as an ordinary or partitioned table."""
    return _Reader(connection).read(names)


class _Reader:
    def __init__(self, connection: Connection[Any]) -> None:
        self._cursor = connection.cursor(row_factory=dict_row)
        self._types: dict[int, dict[str, Any]] = {}
        self._column_types: dict[int, ColumnType] = {}

    def read(self, names: Collection[TableName]) -> dict[TableName, TableSchema]:
        tables = self._rows(
            _TABLES, schemas=[name.schema for name in names], names=[name.name for name in names]
        )
        oids = [table["oid"] for table in tables]
        self._types = {row["oid"]: row for row in self._rows(_TYPES, oids=oids)}
        columns: dict[int, list[Column]] = {oid: [] for oid in oids}
        for row in self._rows(_COLUMNS, oids=oids):
            columns[row["oid"]].append(self._column(row))
        sequences: dict[int, list[ColumnSequence]] = {oid: [] for oid in oids}
        for row in self._rows(_SEQUENCES, oids=oids):
            sequences[row["oid"]].append(
                ColumnSequence(column=row["name"], oid=row["sequence"], is_indexed=row["is_indexed"])
            )
        return {
            (name := TableName(table["schema"], table["name"])): TableSchema(
                name=name,
                oid=table["oid"],
                columns=tuple(columns[table["oid"]]),
                **_keys(table),
                is_partitioned=table["is_partitioned"],
                has_inbound_keys=table["has_inbound_keys"],
                has_cascades=table["has_cascades"],
                parents=frozenset(TableName(*parent) for parent in json.loads(table["parents"])),
                sequences=tuple(sequences[table["oid"]]),
                guards=tuple(
                    Guard(**guard | {"events": frozenset(guard["events"])})
                    for guard in json.loads(table["guards"])
                ),
                hides_rows=table["hides_rows"],
            )
            for table in tables
        }

    def _rows(self, query: str, **parameters: object) -> list[dict[str, Any]]:
        return self._cursor.execute(query, parameters).fetchall()

    def _column(self, row: dict[str, Any]) -> Column:
        oid, sql_type = row["type_oid"], row["declared_type"]
        while (type_row := self._types[oid])["typtype"] == "d":
            # Not the domain itself: one with NOT NULL would refuse the NULLs that stand for "absent".
            oid, sql_type = type_row["base"], type_row["base_type"]
        return Column(
            name=row["name"],
            sql_type=sql_type,
            type=self._type(oid),
            is_generated=row["is_generated"],
            is_always_identity=row["is_always_identity"],
            declared_type=row["declared_type"],
            older=row["older"],
            collation=row["collation"],
            is_enum=type_row["typtype"] == "e",
            is_required=row["is_required"],
        )

    def _type(self, oid: int) -> ColumnType:
        if oid not in self._column_types:
            self._column_types[oid] = self._make_type(oid)
        return self._column_types[oid]

    def _make_type(self, oid: int) -> ColumnType:
        if oid in _JSON_OIDS:
            return ColumnType(kind="json")
        if oid == _CHAR_OID and self._cursor.connection.info.server_version < 150_000:
            return ColumnType(kind="byte")
        if oid == _BYTEA_OID:
            return ColumnType(kind="bytea")
        row = self._types[oid]
        if row["typtype"] == "d":
            return self._type(row["base"])
        if row["typcategory"] == "A" and row["element"]:
            return ColumnType(kind="array", element=self._type(row["element"]))
        if row["typtype"] == "c":
            fields = json.loads(row["fields"] or "[]")
            return ColumnType(
                kind="composite", fields=tuple((name, self._type(type_oid)) for name, type_oid in fields)
            )
        return ColumnType()


def _keys(table: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a TableSchema that are about its keys."""
    indexes = json.loads(table["keys"])
    if not indexes or not (indexes[0]["is_identity"] or indexes[0]["is_primary"]):
        return {"key": ()}
    key, *others = indexes
    columns = tuple(key["columns"])
    has_blind_index = any(index["is_blind"] and set(index["columns"]) == set(columns) for index in indexes)
    return {
        "key": columns,
        "other_keys": tuple(
            dict.fromkeys(
                tuple(o["columns"]) for o in others if tuple(o["columns"]) != columns and not o["is_blind"]
            )
        ),
        "is_key_deferrable": not key["is_immediate"],
        "has_arbiter": key["is_immediate"]
        and not (key["is_exclusion"] or table["has_rules"] or has_blind_index),
    }
