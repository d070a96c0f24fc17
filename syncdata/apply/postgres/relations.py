"""Reads what stands under names in the local database: tables, and what is none. Knows PostgreSQL's catalog.

Takes no lock on what it looks at: a table that somebody holds must not keep the others waiting.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from syncdata.apply.plan.relation import Relation
from syncdata.changes.names import TableName

# pg_partition_tree() would lock the partitions; pg_inherits tells the same.
_RELATIONS = """
WITH RECURSIVE wanted AS (
    SELECT n.nspname, c.relname, c.oid, c.relkind, c.relpersistence, c.relispartition
    FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS wanted (schema, name)
    JOIN pg_namespace n ON n.nspname = wanted.schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
), part (root, oid) AS (
    SELECT w.oid, i.inhrelid FROM wanted w JOIN pg_inherits i ON i.inhparent = w.oid WHERE w.relkind = 'p'
    UNION ALL
    SELECT part.root, i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid
)
SELECT w.nspname AS schema, w.relname AS name, w.oid::bigint AS oid, w.relkind::text AS kind,
       w.relpersistence::text AS persistence, root.nspname AS root_schema, root.relname AS root_name,
       (SELECT min(p.oid::regclass::text) FROM part JOIN pg_class p ON p.oid = part.oid
        WHERE part.root = w.oid AND p.relkind = 'r' AND p.relpersistence = 'u') AS unlogged_part
FROM wanted w
LEFT JOIN LATERAL (
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE w.relispartition AND c.oid = pg_partition_root(w.oid)
) AS root ON true
"""


def read_relations(connection: Connection[Any], names: Collection[TableName]) -> dict[TableName, Relation]:
    """Return what stands under each of *names*; those under which nothing stands are left out."""
    rows = (
        connection.cursor(row_factory=dict_row)
        .execute(
            _RELATIONS,
            {"schemas": [name.schema for name in names], "names": [name.name for name in names]},
        )
        .fetchall()
    )
    return {
        TableName(row["schema"], row["name"]): Relation(
            oid=row["oid"],
            kind=row["kind"],
            persistence=row["persistence"],
            root=TableName(row["root_schema"], row["root_name"]) if row["root_name"] else None,
            unlogged_part=row["unlogged_part"],
        )
        for row in rows
    }
