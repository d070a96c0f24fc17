"""The statements that read rows for a check, all under one snapshot. Knows SQL; decides nothing.

The table is locked (ACCESS SHARE) before the snapshot is taken: a TRUNCATE or a rewrite that committed
between the two would show an older snapshot an empty table. Test:
test_a_truncate_between_the_snapshot_and_the_rows_makes_no_false_check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from syncdata.capture.pgoutput import MARK_PREFIX
from syncdata.capture.proof_of_reads import Snapshot
from syncdata.capture.published import SeenTable
from syncdata.changes.verification import hash_of_rows
from syncdata.privacy.policy import TableVerdict
from syncdata.privacy.row_mask import RowMask

Key = tuple[str, ...]

# Their text names something of one server, or is of its language.
_LOCAL_TYPES = (
    *("money", "aclitem", "regproc", "regprocedure", "regoper", "regoperator", "regclass", "regtype"),
    *("regrole", "regnamespace", "regconfig", "regdictionary", "regcollation"),
)
_SAME_ORDER = (
    *("int2", "int4", "int8", "oid", "numeric", "uuid", "date", "timestamp", "timestamptz", "bytea"),
    *("text", "varchar"),
)

# By column: whether a type in it (in a domain, an array, a composite, a range) is a local one; the type that
# it is made of; whether its values have the same order everywhere: texts, that of their bytes; and whether >
# is that of its indexes with our search_path. A type of an extension, as citext, would be compared as what it
# can be cast to. Test: test_keys_of_a_type_with_operators_of_its_own_are_no_bounds.
_COLUMNS = """
WITH RECURSIVE inside AS (
    SELECT a.attnum AS number, a.atttypid AS oid
    FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT i.number, part.oid
    FROM inside i JOIN pg_type t ON t.oid = i.oid CROSS JOIN LATERAL (
        SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT t.typelem WHERE t.typelem <> 0
        UNION ALL SELECT c.atttypid FROM pg_attribute c
            WHERE t.typtype = 'c' AND c.attrelid = t.typrelid AND c.attnum > 0 AND NOT c.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
    ) AS part (oid)
), base AS (
    SELECT a.attnum AS number, a.atttypid AS oid
    FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.number, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.oid AND t.typtype = 'd'
)
SELECT a.attname::text,
       EXISTS (SELECT FROM inside i JOIN pg_type t ON t.oid = i.oid
               WHERE i.number = a.attnum AND t.typnamespace = 'pg_catalog'::regnamespace
               AND t.typname::text = ANY(%(local_types)s)) AS is_local,
       n.nspname::text, t.typname::text,
       t.typnamespace = 'pg_catalog'::regnamespace AND t.typname::text = ANY(%(same_order)s)
       AND (a.attcollation = 0 OR current_setting('server_encoding') = 'UTF8' AND (
           a.attcollation IN ('pg_catalog."C"'::regcollation, 'pg_catalog."POSIX"'::regcollation)
           OR a.attcollation = 'pg_catalog."default"'::regcollation AND (
               SELECT coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') = 'c' AND d.datcollate IN ('C', 'POSIX')
               FROM pg_database d WHERE d.datname = current_database()))) AS has_same_order,
       t.typnamespace = 'pg_catalog'::regnamespace OR t.typtype = 'e' AS is_compared_here
FROM pg_attribute a
JOIN base b ON b.number = a.attnum
JOIN pg_type t ON t.oid = b.oid AND t.typtype <> 'd'
JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyColumn:
    """A column of a key, and the type (schema, name) that its texts are read as."""

    name: str
    type: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """How a table, as it was *seen*, is read: the ``columns`` that are hashed, those that are ``left_out``,
    of which some are ``masked``, and the key, () where there is none. ``has_same_order``: its keys have the
    same order on every server. ``key_mask``, where the key travels masked: rows are found here by their own
    keys, and a check names the masked ones, whose order is another."""

    seen: SeenTable
    columns: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    key: tuple[KeyColumn, ...] = ()
    has_same_order: bool = False
    key_mask: RowMask | None = None

    def written(self, keys: Sequence[Key]) -> tuple[Key, ...]:
        """Return *keys* of rows as a check may name them."""
        if self.key_mask is None:
            return tuple(keys)
        names = [column.name for column in self.key]
        masked = (self.key_mask.keys(dict(zip(names, key, strict=True))) for key in keys)
        # A mask for keys makes no NULL; a row that had one would be found nowhere.
        return tuple(tuple(values[name] or "" for name in names) for values in masked)

    @property
    def remarks(self) -> list[str]:
        """Say what is not in the checks, and why."""
        local = [name for name in self.left_out if name not in self.masked]
        parts = (
            (local, "whose text means something here only"),
            (self.masked, "whose values travel masked"),
        )
        return [f"without {', '.join(names)}, {why}" for names, why in parts if names]


# What a read relies on: the table of this name, its place in the publication, and its columns.
_AS_IT_IS = """
SELECT c.oid::bigint,
       coalesce((SELECT r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                 WHERE r.prrelid = c.oid AND p.pubname = %(publication)s), 0)::bigint,
       ARRAY(SELECT concat_ws(' ', a.attnum, a.atttypid, a.atttypmod, a.attname) FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
"""


def plan_table(
    connection: psycopg.Connection[Any], seen: SeenTable, verdict: TableVerdict | None = None
) -> TablePlan:
    """Return how to read *seen*, of which a privacy policy says *verdict*. Raises psycopg.Error.

    Masked values are in no hash: readers have no others, and the source none of theirs.
    """
    values = {"oid": seen.oid, "local_types": list(_LOCAL_TYPES), "same_order": list(_SAME_ORDER)}
    found = {row[0]: row[1:] for row in connection.execute(_COLUMNS, values)}
    sent = [column.name for column in seen.columns if column.is_sent and not column.generated]
    is_local = {name for name in sent if name not in found or found[name][0]}
    is_masked = {column.name for column in seen.columns if column.privacy}
    rules = {} if verdict is None else {rule.column: rule for rule in verdict.columns}
    # Of two rows that may have one masked key, a list of keys would find one.
    are_one = {name for name, rule in rules.items() if rule.allows_collisions and name in is_masked}
    key = _key_of(seen, [name for name in sent if name not in is_local | are_one and found[name][4]])
    hides_key = verdict is not None and not is_masked.isdisjoint(key)
    return TablePlan(
        seen=seen,
        columns=tuple(name for name in sent if name not in is_local | is_masked),
        left_out=tuple(name for name in sent if name in is_local | is_masked),
        masked=tuple(name for name in sent if name in is_masked),
        key=tuple(KeyColumn(name=name, type=(found[name][1], found[name][2])) for name in key),
        has_same_order=bool(key) and not hides_key and all(found[name][3] for name in key),
        key_mask=verdict.row_mask(key) if verdict is not None and hides_key else None,
    )


def _key_of(seen: SeenTable, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that tell rows apart, and of which none is NULL: the primary key's, or those of the
    index that is the replica identity; () where they do not travel."""
    candidates = [seen.key]
    if seen.identity == "i":
        candidates.append(seen.identity_columns)
    return next((key for key in candidates if key and set(key) <= set(columns)), ())


# In the list of an aggregate's results it is worked out when all rows have been read.
_TOOK_MS = sql.SQL("ceil(extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000)::int")


class Reads:
    """The statements of one transaction on the rows of *plan*. Every method raises psycopg.Error.

    ``longest_ms``: how long the longest one took that went through rows, by the server's clock. By ours it
    would be longer: this thread waits for its turn while the archiver is busy.
    """

    def __init__(self, connection: psycopg.Connection[Any], plan: TablePlan) -> None:
        self.plan = plan
        self.longest_ms = 0
        self._connection = connection
        only = sql.SQL("" if plan.seen.kind == "p" else "ONLY ")
        self._table = sql.SQL("{}{}").format(only, sql.Identifier(plan.seen.schema, plan.seen.name))
        self._keys = [sql.SQL("r.{}").format(sql.Identifier(column.name)) for column in plan.key]
        # It is the publication's own text, as the source spells it.
        row_filter = (plan.seen.row_filter or "true").replace("%", "%%")
        self._filter = sql.SQL("({})").format(sql.SQL(row_filter))

    def lock(self) -> None:
        self._connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(self._table))

    def is_as_seen(self, publication: str) -> bool:
        """Tell whether the table is still the one that was seen; it stays so while it is locked.

        The stream says nothing of an ALTER until a row changes. Say a column became numeric(10,4): a check of
        the new texts would stand under a catalog that has numeric(10,2). Test:
        test_checks_are_under_the_catalog_that_they_were_read_under.
        """
        seen = self.plan.seen
        values = {"publication": publication, "schema": seen.schema, "name": seen.name}
        columns = [
            f"{column.number} {column.type_oid} {column.modifier} {column.name}" for column in seen.columns
        ]
        return self._connection.execute(_AS_IT_IS, values).fetchone() == (seen.oid, seen.membership, columns)

    def end_of(self, after: Key | None, rows: int) -> Key | None:
        """Return the key of the last of so many *rows* above *after*; None where there are fewer."""
        query = sql.SQL(
            "SELECT {texts} FROM {table} AS r WHERE {filter} AND {bounds}"
            " ORDER BY {keys} LIMIT 1 OFFSET {skip}"
        ).format(**self._parts(after, None), skip=sql.Literal(rows - 1))
        row = self._connection.execute(query, _values(after, None)).fetchone()
        return None if row is None else tuple(row)

    def keys(self, after: Key | None, rows: int) -> list[Key]:
        """Return the keys of so many *rows* above *after*, in production's own order."""
        query = sql.SQL(
            "SELECT {texts} FROM {table} AS r WHERE {filter} AND {bounds} ORDER BY {keys} LIMIT {rows}"
        ).format(**self._parts(after, None), rows=sql.Literal(rows))
        return [tuple(row) for row in self._connection.execute(query, _values(after, None))]

    def rows(self, after: Key | None, upto: Key | None) -> tuple[int, str | None]:
        """Return the number of the rows above *after* and not above *upto*, and their hash; None for it where
        no column is hashed."""
        columns = [sql.SQL("r.{}").format(sql.Identifier(name)) for name in self.plan.columns]
        quoted = [column.as_string(None).replace("%", "%%") for column in columns]
        query = sql.SQL(
            "SELECT {took_ms}, count(*), {hash} FROM {table} AS r WHERE {filter} AND {bounds}"
        ).format(
            **self._parts(after, upto),
            took_ms=_TOOK_MS,
            hash=sql.SQL(hash_of_rows(quoted) if quoted else "NULL"),
        )
        count, digest = self._timed(query, _values(after, upto))
        return count, digest

    def has_more_than(self, rows: int) -> bool:
        query = sql.SQL("SELECT count(*) FROM (SELECT FROM {table} AS r WHERE {filter} LIMIT {rows}) AS part")
        row = self._connection.execute(
            query.format(table=self._table, filter=self._filter, rows=sql.Literal(rows + 1)), {}
        ).fetchone()
        assert row is not None
        return bool(row[0] > rows)

    def count(self) -> int:
        """Return the number of all rows."""
        query = sql.SQL("SELECT {took_ms}, count(*) FROM {table} AS r WHERE {filter}")
        counting = query.format(took_ms=_TOOK_MS, table=self._table, filter=self._filter)
        return int(self._timed(counting, {})[0])

    def _timed(self, query: sql.Composed, values: dict[str, str]) -> tuple[Any, ...]:
        row = self._connection.execute(query, values).fetchone()
        assert row is not None
        self.longest_ms = max(self.longest_ms, row[0])
        return tuple(row[1:])

    def _parts(self, after: Key | None, upto: Key | None) -> dict[str, sql.Composable]:
        bounds: list[sql.Composable] = [sql.SQL("true")]
        if after is not None:
            bounds.append(self._compared(">", "after"))
        if upto is not None:
            bounds.append(self._compared("<=", "upto"))
        return {
            "table": self._table,
            "filter": self._filter,
            "bounds": sql.SQL(" AND ").join(bounds),
            # The table's own columns, not the texts, which would have the same names.
            "keys": sql.SQL(", ").join(self._keys),
            # What a record has of it; a cast gives other texts of char(n), inet and others.
            "texts": sql.SQL(", ").join(sql.SQL("concat({})").format(key) for key in self._keys),
        }

    def _compared(self, operator: str, name: str) -> sql.Composed:
        values = [
            sql.SQL("CAST({} AS {})").format(sql.Placeholder(f"{name}{number}"), sql.Identifier(*column.type))
            for number, column in enumerate(self.plan.key)
        ]
        if len(values) == 1:
            return sql.SQL("{} {} {}").format(self._keys[0], sql.SQL(operator), values[0])
        return sql.SQL("ROW({}) {} ROW({})").format(
            sql.SQL(", ").join(self._keys),
            sql.SQL(operator),
            sql.SQL(", ").join(values),
        )


def take_snapshot(connection: psycopg.Connection[Any], mark: str | None) -> Snapshot:
    """Take the transaction's snapshot and, in the same statement, write *mark* into the WAL.

    The mark is no part of the transaction: it stands between two of them. Raises psycopg.Error.
    """
    query = "SELECT pg_current_snapshot()::text"
    if mark is not None:
        query += ", pg_logical_emit_message(false, %(prefix)s, CAST(%(mark)s AS text))"
    row = connection.execute(query, {"prefix": MARK_PREFIX, "mark": mark}).fetchone()
    assert row is not None
    return Snapshot.parse(row[0])


def take_xid(connection: psycopg.Connection[Any]) -> int:
    """Return an xid that is given out now. Raises psycopg.Error."""
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    return int(row[0])


def _values(after: Key | None, upto: Key | None) -> dict[str, str]:
    values = {f"after{number}": value for number, value in enumerate(after or ())}
    return values | {f"upto{number}": value for number, value in enumerate(upto or ())}
