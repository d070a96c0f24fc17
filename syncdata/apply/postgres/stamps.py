"""Tells cheaply whether tables are still defined as they were when their schemas were read.

A stamp is made of the row versions of PostgreSQL's catalog that a `TableSchema` is made from. Whatever DDL
does to a table writes one of them anew, and its xmin, the transaction that wrote it, shows that. A stamp that
differs without a change of the definition (after GRANT, say) costs a needless look; none that is equal hides
a change. Test: test_whatever_changes_a_table_changes_its_stamp. Source: "System Catalogs" and "System
Columns" of the PostgreSQL documentation. What no row version of the table's own tells, such as the name of a
type or whether row-level security holds for this role, is part of the stamp by its value.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from psycopg import Connection, Cursor

from syncdata.changes.names import TableName

# Nothing here is read but by the table's oid, through an index: pg_depend leads to the keys of other tables
# that refer to it. Types below 16384 are PostgreSQL's own, and stay as they are.
_STAMPS = """
WITH RECURSIVE wanted AS (
    SELECT n.nspname, c.relname, c.oid, c.relkind,
        concat_ws(' ', c.oid, c.xmin, n.xmin, row_security_active(c.oid)) AS own
    FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS wanted (schema, name)
    JOIN pg_namespace n ON n.nspname = wanted.schema
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name AND c.relkind IN ('r', 'p')
), part (root, oid) AS (
    SELECT oid, oid FROM wanted
    UNION ALL
    SELECT part.root, i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid
    WHERE part.root IN (SELECT oid FROM wanted WHERE relkind = 'p')
), used (root, oid) AS (
    SELECT w.oid, a.atttypid FROM wanted w JOIN pg_attribute a ON a.attrelid = w.oid AND a.attnum > 0
    WHERE a.atttypid >= 16384
    UNION
    SELECT used.root, next.oid FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL (
        SELECT t.typbasetype AS oid UNION ALL SELECT t.typelem
        UNION ALL SELECT a.atttypid FROM pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
    ) AS next WHERE next.oid >= 16384
), piece (root, version) AS (
    SELECT w.oid, 'a' || a.attnum || ' ' || a.xmin
    FROM wanted w JOIN pg_attribute a ON a.attrelid = w.oid AND a.attnum > 0
    UNION ALL
    SELECT w.oid, 'i' || i.indexrelid || ' ' || i.xmin FROM wanted w JOIN pg_index i ON i.indrelid = w.oid
    UNION ALL
    SELECT w.oid, 'f' || f.oid || ' ' || f.xmin || ' ' || f.confrelid::regclass
    FROM wanted w JOIN pg_constraint f ON f.conrelid = w.oid AND f.contype = 'f'
    UNION ALL
    SELECT w.oid, 'd' || d.classid || ' ' || d.objid || ' ' || d.objsubid || ' ' || coalesce(f.xmin::text, '')
    FROM wanted w JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = w.oid
    LEFT JOIN pg_constraint f ON d.classid = 'pg_constraint'::regclass AND f.oid = d.objid
    UNION ALL
    SELECT w.oid, 'r' || r.oid || ' ' || r.xmin FROM wanted w JOIN pg_rewrite r ON r.ev_class = w.oid
    UNION ALL
    SELECT part.root, 'p' || part.oid FROM part
    UNION ALL
    SELECT part.root, 't' || t.oid || ' ' || t.xmin FROM part JOIN pg_trigger t ON t.tgrelid = part.oid
    UNION ALL
    SELECT used.root, 'y' || t.oid || ' ' || t.xmin || ' ' || format_type(t.oid, NULL)
        || ' ' || coalesce((SELECT string_agg(a.xmin::text, ' ' ORDER BY a.attnum) FROM pg_attribute a
                            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid), '')
    FROM used JOIN pg_type t ON t.oid = used.oid
)
SELECT w.nspname, w.relname, concat_ws(' ', w.own, p.sum)
FROM wanted w LEFT JOIN (
    SELECT root, sum(hashtextextended(version, 0)) FROM piece GROUP BY root
) AS p ON p.root = w.oid
"""


def read_stamps(connection: Connection[Any], tables: Collection[TableName]) -> dict[TableName, str]:
    """Return the stamp of each of *tables* that exists as an ordinary or partitioned table."""
    return stamps_of(send_stamps(connection, tables))


def send_stamps(connection: Connection[Any], tables: Collection[TableName]) -> Cursor[Any]:
    """Ask for the stamps of *tables*; `stamps_of` reads the answer."""
    return connection.execute(
        _STAMPS, {"schemas": [table.schema for table in tables], "names": [table.name for table in tables]}
    )


def stamps_of(answer: Cursor[Any]) -> dict[TableName, str]:
    return {TableName(schema, name): stamp for schema, name, stamp in answer.fetchall()}
