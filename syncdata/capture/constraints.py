"""A table's constraints: what tells its rows apart, and what binds their values.

Knows PostgreSQL's catalogs, four set queries of them; judges nothing. Read only for a privacy policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from syncdata.changes.names import TableName
from syncdata.privacy.facts import Reference

# Rows by the table's oid.
ByOid = Callable[..., dict[int, list[dict[str, Any]]]]

# The columns of an expression are in no list; its tree names them (varattno). The predicate of a partial
# index tells no rows apart, so its columns do not count, and neither do included ones.
_UNIQUES = """
SELECT i.indrelid::bigint AS oid,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = i.indrelid AND a.attnum > 0 AND (
                 a.attnum IN (SELECT part.number FROM unnest(i.indkey::int2[]) WITH ORDINALITY
                                  AS part (number, position) WHERE part.position <= i.indnkeyatts)
                 OR a.attnum::text IN (
                     SELECT named[1] FROM regexp_matches(i.indexprs::text, ':varattno (\\d+)', 'g') AS named))
             ORDER BY a.attnum) AS columns
FROM pg_index i
WHERE i.indrelid = ANY({oids}::oid[]) AND (i.indisunique OR i.indisexclusion)
ORDER BY 1, i.indexrelid
"""

# A reference to a partitioned table has a constraint for each partition, too, below its own.
_REFERENCES = """
SELECT k.conrelid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS part (number, position)
             JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = part.number
             ORDER BY part.position) AS columns,
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS part (number, position)
             JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = part.number
             ORDER BY part.position) AS referred
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.confrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.conrelid = ANY({oids}::oid[]) AND k.contype = 'f' AND NOT EXISTS (
    SELECT FROM pg_constraint p WHERE p.oid = k.conparentid AND p.conrelid = k.conrelid)
ORDER BY 1, k.conname
"""

_CHECKED = """
SELECT DISTINCT k.conrelid::bigint AS oid, a.attname::text AS name
FROM pg_constraint k JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)
WHERE k.conrelid = ANY({oids}::oid[]) AND k.contype = 'c'
ORDER BY 1, 2
"""

# A generated column is made of the columns that the tree of its expression names; 0 is the whole row.
_SOURCES = """
SELECT a.attrelid::bigint AS oid, a.attname::text AS name,
       ARRAY(SELECT s.attname::text FROM pg_attribute s
             WHERE s.attrelid = a.attrelid AND s.attnum > 0 AND s.attnum::text IN (
                 SELECT named[1] FROM regexp_matches(d.adbin::text, ':varattno (-?\\d+)', 'g') AS named)
             ORDER BY s.attnum) AS columns,
       d.adbin::text ~ ':varattno 0' AS is_of_whole_row
FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY({oids}::oid[]) AND a.attgenerated <> ''
ORDER BY 1, 2
"""


class Constraints(msgspec.Struct, frozen=True):
    """A table's constraints. ``uniques``: the columns of each unique or exclusion constraint and index.
    ``checked``: columns of CHECK constraints. ``sources``: what each generated column is made of, None where
    that may be anything."""

    uniques: tuple[tuple[str, ...], ...] = ()
    references: tuple[Reference, ...] = ()
    checked: tuple[str, ...] = ()
    sources: dict[str, tuple[str, ...] | None] = {}


def read_constraints(by_oid: ByOid, oids: str) -> dict[int, Constraints]:
    """Return the constraints of the tables *oids* that have any. Raises psycopg.Error."""
    uniques, references = by_oid(_UNIQUES, oids), by_oid(_REFERENCES, oids)
    checked, sources = by_oid(_CHECKED, oids), by_oid(_SOURCES, oids)
    return {
        oid: Constraints(
            uniques=tuple(tuple(row["columns"]) for row in uniques.get(oid, ())),
            references=tuple(map(_reference, references.get(oid, ()))),
            checked=tuple(row["name"] for row in checked.get(oid, ())),
            sources={row["name"]: _sources(row) for row in sources.get(oid, ())},
        )
        for oid in {*uniques, *references, *checked, *sources}
    }


def _reference(row: dict[str, Any]) -> Reference:
    table = TableName(row["schema"], row["name"])
    return Reference(tuple(row["columns"]), table, tuple(row["referred"]))


def _sources(row: dict[str, Any]) -> tuple[str, ...] | None:
    return None if row["is_of_whole_row"] else tuple(row["columns"])
