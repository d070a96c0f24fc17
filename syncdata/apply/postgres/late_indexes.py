"""The indexes of a table, made for a copy of it once that has its rows: to sort all of them costs far less
than to find each one's place. Knows the catalog; knows nothing of where the rows come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection, sql

from syncdata.changes.names import TableName

# As CREATE TABLE … (LIKE … INCLUDING INDEXES) would make them, but for invalid ones, which nothing holds to.
# Of an index without a constraint the server gives the whole statement; its beginning is replaced.
_INDEXES = """
SELECT i.indisunique OR i.indisexclusion AS is_unique,
       'ALTER TABLE ' || %(copy)s || ' ADD ' || pg_get_constraintdef(k.oid) AS of_constraint,
       format('CREATE %%sINDEX ON ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END) || %(copy)s
       || substr(pg_get_indexdef(i.indexrelid), 1 + length(format(
           'CREATE %%sINDEX %%I ON %%s%%I.%%I', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, x.relname,
           CASE WHEN x.relkind = 'I' THEN 'ONLY ' ELSE '' END, n.nspname, c.relname))) AS of_index
FROM pg_index i
JOIN pg_class x ON x.oid = i.indexrelid
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = c.oid AND k.contype IN ('p', 'u', 'x')
WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND i.indisvalid
ORDER BY i.indisprimary DESC, i.indexrelid
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LateIndexes:
    """The statements that make a table's indexes on a copy of it: ``unique`` ones, which rows can break
    (exclusion constraints, too), and ``others``."""

    unique: tuple[sql.SQL, ...]
    others: tuple[sql.SQL, ...]


def read_late_indexes(connection: Connection[Any], table: TableName, copy: TableName) -> LateIndexes:
    """Return the indexes of *table*, to be made on *copy*. Raises psycopg.Error."""
    parameters = {
        "schema": table.schema,
        "name": table.name,
        "copy": sql.Identifier(copy.schema, copy.name).as_string(None),
    }
    found: dict[bool, list[sql.SQL]] = {True: [], False: []}
    for is_unique, of_constraint, of_index in connection.execute(_INDEXES, parameters):
        # The server's own text.
        found[is_unique].append(sql.SQL(of_constraint or of_index))
    return LateIndexes(unique=tuple(found[True]), others=tuple(found[False]))
