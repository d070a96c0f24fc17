"""The names and pieces of SQL that the statements of one table share. Executes nothing."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import LiteralString

from psycopg import sql

from syncdata.apply.plan.schema import TableSchema

SHAPE = sql.Identifier("syncdata_shape")
EXPECTED = sql.Identifier("syncdata_expected")
COUNT = sql.Identifier("syncdata_count")


class TargetNames:
    """The names that the statements of one table use."""

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self.relation = relation_of(schema)
        self.columns = tuple(column.name for column in schema.writable)
        self.key = [sql.Identifier(name) for name in schema.key]
        self.old_key = [sql.Identifier(f"syncdata_old_{number}") for number in range(len(schema.key))]
        types = {column.name: sql.SQL(column.sql_type) for column in schema.columns}
        self._types = types
        key_types = [types[name] for name in schema.key]
        shape = sql.SQL("{} integer").format(SHAPE)
        old_key = [sql.SQL("{} {}").format(*pair) for pair in zip(self.old_key, key_types, strict=True)]
        columns = [sql.SQL("{} {}").format(sql.Identifier(name), types[name]) for name in self.columns]
        new_key = [sql.SQL("{} {}").format(*pair) for pair in zip(self.key, key_types, strict=True)]
        self.staging_columns = sql.SQL(", ").join([shape, *old_key, *columns])
        self.rekeyed_columns = sql.SQL(", ").join([*old_key, *new_key])
        self.gone_columns = sql.SQL(", ").join([sql.SQL("{} boolean").format(EXPECTED), *new_key])
        # A table that is altered between two files gets another staging table: the old one still exists,
        # with the columns as they were.
        signature = repr([(column.name, column.sql_type, column.is_generated) for column in schema.columns])
        self.suffix = f"{schema.oid}_{zlib.crc32((signature + repr(schema.key)).encode()):08x}"
        self.staging = f"syncdata_rows_{self.suffix}"
        self.gone = f"syncdata_gone_{self.suffix}"
        self.rekeyed = f"syncdata_keys_{self.suffix}"

    def settable(self, columns: Iterable[str]) -> list[str]:
        """Return those of *columns* that an UPDATE may set and that can differ: neither key nor identity."""
        fixed = {column.name for column in self.schema.columns if column.is_always_identity}
        fixed.update(self.schema.key)
        return [name for name in columns if name not in fixed]

    def bag_columns(self, columns: Sequence[str]) -> sql.Composed:
        typed = [sql.SQL("{} {}").format(sql.Identifier(name), self._types[name]) for name in columns]
        return sql.SQL(", ").join([sql.SQL("{} bigint").format(COUNT), *typed])


def relation_of(schema: TableSchema) -> sql.Identifier:
    return sql.Identifier(schema.written_to.schema, schema.written_to.name)


def names_of(columns: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def assignments(columns: Iterable[str], source: str) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier(source, name)) for name in columns
    )


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
