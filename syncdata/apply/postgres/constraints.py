"""Checks deferred constraints before COMMIT does; finds the table whose rows break one. Knows SQL only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import psycopg
from psycopg import Connection

from syncdata.changes.names import TableName

# The tables that a constraint of a table is about, those to blame first: the one that refers (or the root of
# its partitions), then the one referred to.
_CONCERNED = """
SELECT n.nspname, c.relname FROM pg_constraint f
JOIN pg_class r ON r.oid = f.conrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
CROSS JOIN LATERAL (VALUES (1, r.oid), (2, pg_partition_root(r.oid)::oid), (3, f.confrelid),
                           (4, pg_partition_root(f.confrelid)::oid)) AS candidate (rank, oid)
JOIN pg_class c ON c.oid = candidate.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE f.conname = %s AND rn.nspname = %s AND r.relname = %s ORDER BY candidate.rank
"""


def check_constraints(
    connection: Connection[Any], tables: Collection[TableName]
) -> tuple[TableName, psycopg.errors.IntegrityError] | None:
    """Check all constraints that wait; return the one of *tables* whose rows break one, with the error.

    In the caller's transaction, which can go on. Raises the error when none of *tables* is to blame. Tests:
    test_a_child_whose_parent_is_not_whitelisted_blocks_alone,
    test_a_foreign_key_that_a_partition_breaks_is_blamed_on_its_root.
    """
    try:
        with connection.transaction():
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    except psycopg.errors.IntegrityError as error:
        diag = error.diag
        where = (diag.constraint_name, diag.schema_name, diag.table_name)
        for row in connection.execute(_CONCERNED, where).fetchall():
            if (table := TableName(*row)) in tables:
                return table, error
        raise
    return None
