"""Finds the tables whose rows are also another table's. Knows PostgreSQL's catalog; takes no lock on them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from syncdata.changes.names import TableName

# Downwards: partitions, tables that inherit, and the tables that a view shows. Upwards: of a partition, the
# whole table, for rows that are written to that arrive in the partition. A parent that is not partitioned
# stays out, since all our statements say ONLY.
_KIN = """
WITH RECURSIVE original (name, oid) AS (
    SELECT name, to_regclass(name)::oid FROM unnest(%(originals)s::text[]) AS name
), below (name, oid) AS (
    SELECT name, oid FROM original WHERE oid IS NOT NULL
    UNION
    SELECT below.name, next.oid FROM below CROSS JOIN LATERAL (
        SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = below.oid
        UNION ALL
        SELECT d.refobjid FROM pg_rewrite r
        JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                        AND d.refclassid = 'pg_class'::regclass
        WHERE r.ev_class = below.oid AND r.ev_type = '1'
    ) AS next (oid)
), kin (name, oid) AS (
    SELECT name, oid FROM below
    UNION
    SELECT kin.name, i.inhparent FROM kin
    JOIN pg_inherits i ON i.inhrelid = kin.oid
    JOIN pg_class c ON c.oid = kin.oid AND c.relispartition
)
SELECT wanted.schema, wanted.name, (SELECT min(kin.name) FROM kin WHERE kin.oid = c.oid), c.oid IS NULL
FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS wanted (schema, name)
LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace)
       ON n.nspname = wanted.schema AND c.relname = wanted.name
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kin:
    """``related``: tables, each with the original that it is, or shares rows with. ``absent``: names under
    which nothing stands."""

    related: dict[TableName, str]
    absent: frozenset[TableName]


def find_kin(connection: Connection[Any], originals: Sequence[str], tables: Collection[TableName]) -> Kin:
    """Hold *tables* against *originals*, which are names as SQL has them, found by the search path."""
    rows = connection.execute(
        _KIN,
        {
            "originals": list(originals),
            "schemas": [table.schema for table in tables],
            "names": [table.name for table in tables],
        },
    ).fetchall()
    return Kin(
        related={TableName(schema, name): original for schema, name, original, _ in rows if original},
        absent=frozenset(TableName(schema, name) for schema, name, _, is_absent in rows if is_absent),
    )
