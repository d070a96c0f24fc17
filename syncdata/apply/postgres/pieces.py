"""The names and pieces of SQL that the statements of one table share. Executes nothing."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import LiteralString

from psycopg import sql

from syncdata.apply.plan.schema import TableSchema

# What PostgreSQL allows a table to have.
MAX_COLUMNS = 1600


class TargetNames:
    """The names that the statements of one table use.

    ``relation`` is the table where rows are put in, ``rows`` its own rows where they are read, changed or
    removed: without ONLY, those of tables that inherit from it would be taken for its own.
    """

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self.relation = relation_of(schema)
        self.rows = rows_of(schema)
        self.columns = tuple(column.name for column in schema.writable)
        self.key = [sql.Identifier(name) for name in schema.key]
        # Columns of ours beside the table's: no two may have one name.
        # Test: test_columns_may_be_named_like_those_of_the_staging_tables.
        taken = {column.name for column in schema.columns}
        self.shape = sql.Identifier(_free_name("syncdata_shape", taken))
        self.expected = sql.Identifier(_free_name("syncdata_expected", taken))
        self.old_key = [
            sql.Identifier(_free_name(f"syncdata_old_{number}", taken)) for number in range(len(schema.key))
        ]
        self._types = {column.name: sql.SQL(column.sql_type) for column in schema.columns}
        self._typed_old_key = [
            sql.SQL("{} {}").format(old, self._types[name])
            for old, name in zip(self.old_key, schema.key, strict=True)
        ]
        # A table that is altered between two files gets another staging table: the old one still exists,
        # with the columns as they were.
        signature = repr([(column.name, column.sql_type, column.is_generated) for column in schema.columns])
        self.suffix = f"{schema.oid}_{zlib.crc32((signature + repr(schema.key)).encode()):08x}"
        self.staging = f"syncdata_rows_{self.suffix}"
        self.gone = f"syncdata_gone_{self.suffix}"
        self.rekeyed = f"syncdata_keys_{self.suffix}"
        self.aside = f"syncdata_aside_{self.suffix}"
        # The rows of all shapes lie in one staging table, unless its own columns, the number and the key that
        # moves leave are too many: then there is one for each shape, without a number. Test:
        # test_a_table_may_have_as_many_columns_as_postgresql_allows.
        self.is_wide = 1 + len(self.key) + len(self.columns) > MAX_COLUMNS

    @property
    def staging_columns(self) -> sql.Composed:
        number = sql.SQL("{} integer").format(self.shape)
        return sql.SQL(", ").join([number, *self._typed_old_key, self.typed(self.columns)])

    @property
    def gone_columns(self) -> sql.Composed:
        return sql.SQL("{} boolean, {}").format(self.expected, self.typed(self.schema.key))

    @property
    def rekeyed_columns(self) -> sql.Composed:
        return sql.SQL(", ").join([*self._typed_old_key, self.typed(self.schema.key)])

    def wide_columns(self, columns: Sequence[str], *, has_old_key: bool) -> sql.Composed:
        return sql.SQL(", ").join([*(self._typed_old_key if has_old_key else ()), self.typed(columns)])

    def typed(self, columns: Iterable[str]) -> sql.Composed:
        """Return *columns* with their types, as CREATE TABLE takes them."""
        return sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), self._types[name]) for name in columns
        )

    def staged(self, number: int) -> sql.Identifier:
        """Return the staging table that holds the rows of the shape of that *number*."""
        return sql.Identifier(f"{self.staging}_{number}" if self.is_wide else self.staging)

    def of_shape(self, number: int) -> sql.Composable:
        """Return the condition that a row ``r`` of `staged` is of the shape of that *number*."""
        if self.is_wide:
            return sql.SQL("true")
        return sql.SQL("r.{} = {}").format(self.shape, sql.Literal(number))

    def settable(self, columns: Iterable[str]) -> list[str]:
        """Return those of *columns* that an UPDATE may set and that can differ: neither key nor identity."""
        fixed = {column.name for column in self.schema.columns if column.is_always_identity}
        fixed.update(self.schema.key)
        return [name for name in columns if name not in fixed]


def _free_name(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_"
    return name


def relation_of(schema: TableSchema) -> sql.Identifier:
    return sql.Identifier(schema.written_to.schema, schema.written_to.name)


def rows_of(schema: TableSchema) -> sql.Composable:
    """Return the table for FROM, UPDATE, DELETE and TRUNCATE: its own rows, or those of its partitions.

    Test: test_what_happens_to_a_parent_leaves_the_tables_that_inherit_from_it_alone.
    """
    return sql.SQL("{}" if schema.is_partitioned else "ONLY {}").format(relation_of(schema))


def names_of(columns: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def assignments(columns: Iterable[str], source: str) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier(source, name)) for name in columns
    )


def on_conflict(settable: Sequence[str]) -> sql.Composable:
    """Return what an upsert does with a row that is there, of which *settable* columns can change."""
    if not settable:
        return sql.SQL("NOTHING")
    return sql.SQL("UPDATE SET {}").format(assignments(settable, "excluded"))


def equalities(
    left: Sequence[sql.Identifier],
    left_alias: LiteralString,
    right: Sequence[sql.Identifier],
    right_alias: LiteralString,
) -> sql.Composed:
    pairs = (
        sql.SQL("{}.{} = {}.{}").format(sql.SQL(left_alias), a, sql.SQL(right_alias), b)
        for a, b in zip(left, right, strict=True)
    )
    return sql.SQL(" AND ").join(pairs)
