"""Reads what a privacy policy must know of the source's tables, whether or not they are published yet.

Knows PostgreSQL's catalogs; judges nothing. Reads no row of any table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from psycopg import Connection, sql

from syncdata.capture.constraints import Constraints, read_constraints
from syncdata.changes.names import TableName
from syncdata.privacy.facts import ColumnFacts, TableFacts

_WANTED = """
WITH wanted AS (
    SELECT c.oid, c.relreplident::text AS identity
    FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS w (schema, name)
    JOIN pg_namespace n ON n.nspname = w.schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p')
)
"""

# A domain is masked as what it is made of, and may be made of another one.
_COLUMNS = (
    _WANTED
    + """
SELECT a.attrelid::bigint AS oid, a.attname::text AS name, a.attnotnull AS not_null,
       a.attgenerated <> '' AS is_generated, format_type(a.atttypid, a.atttypmod) AS declared,
       coalesce((
           WITH RECURSIVE beneath AS (
               SELECT t.typbasetype AS oid, t.typtypmod AS modifier FROM pg_type t
               WHERE t.oid = a.atttypid AND t.typtype = 'd'
               UNION ALL
               SELECT d.typbasetype, CASE b.modifier WHEN -1 THEN d.typtypmod ELSE b.modifier END
               FROM beneath b JOIN pg_type d ON d.oid = b.oid AND d.typtype = 'd'
           ) SELECT format_type(b.oid, b.modifier)
             FROM beneath b JOIN pg_type d ON d.oid = b.oid AND d.typtype <> 'd'
       ), format_type(a.atttypid, a.atttypmod)) AS type,
       col_description(a.attrelid, a.attnum) AS comment,
       (SELECT l.label FROM pg_seclabel l WHERE l.classoid = 'pg_class'::regclass AND l.objoid = a.attrelid
        AND l.objsubid = a.attnum AND l.provider = 'anon') AS label
FROM wanted JOIN pg_attribute a ON a.attrelid = wanted.oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""
)

# What tells rows apart: of partitions, too, for an UPDATE in the stream is of the partition's identity.
_KEYS = (
    _WANTED
    + """
, member AS (
    SELECT oid AS root, oid, identity FROM wanted
    UNION
    SELECT w.oid, m.oid, m.relreplident::text
    FROM wanted w JOIN LATERAL pg_partition_tree(w.oid) AS tree ON tree.isleaf
    JOIN pg_class m ON m.oid = tree.relid
)
SELECT member.root::bigint AS oid, i.indisprimary AND member.oid = member.root AS is_primary,
       CASE member.identity WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
           AS is_identity,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = i.indrelid AND a.attnum > 0 AND a.attnum = ANY(i.indkey::int2[])
             ORDER BY a.attnum) AS columns
FROM member JOIN pg_index i ON i.indrelid = member.oid AND (i.indisprimary OR i.indisreplident)
ORDER BY 1, 2 DESC
"""
)

_CHECKS = (
    _WANTED
    + """
SELECT k.conrelid::bigint AS oid, k.conname::text AS name, pg_get_expr(k.conbin, k.conrelid) AS condition,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey) ORDER BY a.attnum) AS columns
FROM wanted JOIN pg_constraint k ON k.conrelid = wanted.oid AND k.contype = 'c'
ORDER BY k.conrelid, k.conname
"""
)

_OIDS = (
    _WANTED
    + """
SELECT c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name
FROM wanted JOIN pg_class c ON c.oid = wanted.oid JOIN pg_namespace n ON n.oid = c.relnamespace
"""
)


class Check(msgspec.Struct, frozen=True):
    """A CHECK constraint: its ``condition`` as SQL, and the columns that it names."""

    name: str
    condition: str
    columns: tuple[str, ...]


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A table as the tools of privacy see it: ``facts`` for the policy, and what the policy does not need.

    By column: ``types`` as declared, a domain by its own name; ``comments``; ``labels``, those of PostgreSQL
    Anonymizer.
    """

    facts: TableFacts
    types: Mapping[str, str]
    checks: tuple[Check, ...] = ()
    comments: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}


def read_described(
    connection: Connection[dict[str, Any]], tables: Sequence[TableName]
) -> dict[TableName, Described]:
    """Return those of *tables* that exist, in their order. Raises psycopg.Error."""
    names = {"schemas": [table.schema for table in tables], "names": [table.name for table in tables]}

    def rows(query: str) -> list[dict[str, Any]]:
        return connection.execute(query, names).fetchall()

    def by_oid(query: str, oids: str) -> dict[int, list[dict[str, Any]]]:
        statement = sql.SQL(query).format(oids=sql.Literal(oids))
        return _by_table(connection.execute(statement).fetchall())

    oids = {TableName(row["schema"], row["name"]): row["oid"] for row in rows(_OIDS)}
    columns, keys, checks = (_by_table(rows(query)) for query in (_COLUMNS, _KEYS, _CHECKS))
    constraints = read_constraints(by_oid, f"{{{','.join(map(str, oids.values()))}}}")
    return {
        table: _described(
            table,
            columns.get(oid, []),
            keys.get(oid, []),
            checks.get(oid, []),
            constraints.get(oid, Constraints()),
        )
        for table in tables
        if (oid := oids.get(table)) is not None
    }


def _by_table(rows: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["oid"], []).append(row)
    return found


def _described(
    table: TableName,
    columns: Sequence[Mapping[str, Any]],
    keys: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    constraints: Constraints,
) -> Described:
    facts = TableFacts(
        table=table,
        columns=tuple(
            ColumnFacts(
                name=row["name"],
                type=row["type"],
                not_null=row["not_null"],
                is_generated=row["is_generated"],
                derives_from=constraints.sources.get(row["name"]),
            )
            for row in columns
        ),
        identity=_together(row["columns"] for row in keys if row["is_identity"]),
        primary_key=_together(row["columns"] for row in keys if row["is_primary"]),
        uniques=constraints.uniques,
        references=constraints.references,
        checked=constraints.checked,
    )
    return Described(
        facts=facts,
        types={row["name"]: row["declared"] for row in columns},
        checks=tuple(Check(row["name"], row["condition"], tuple(row["columns"])) for row in checks),
        comments={row["name"]: row["comment"] for row in columns if row["comment"]},
        labels={row["name"]: row["label"] for row in columns if row["label"]},
    )


def _together(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in names for name in group))
