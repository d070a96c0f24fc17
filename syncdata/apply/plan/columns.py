"""Rows and keys out of records, as the text that a table's columns take. Pure."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from syncdata.apply.plan.schema import TableSchema
from syncdata.apply.plan.values import converter, to_text
from syncdata.changes.record import ChangeRecord
from syncdata.errors import SchemaError, shortened

Key = tuple[str, ...]
Values = dict[str, Any]


class OtherKeyError(Exception):
    """The record's old values locate its row by another key than the one in use: ``key``."""

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self.key = key


class RecordReader:
    """Reads rows and keys out of records, as the text the table's columns take."""

    def __init__(self, schema: TableSchema, *, is_plain_file: bool) -> None:
        self.schema = schema
        self.writable = tuple(column.name for column in schema.writable)
        self._columns = {column.name: column for column in schema.columns}
        self._converters = {
            column.name: convert
            for column in schema.writable
            if (convert := converter(column.type, is_plain_file=is_plain_file))
        }
        self._is_plain_file = is_plain_file
        self._read_key = self._choose_key_reader()
        # Two caches by the names of a record's columns, since many records have the same ones. The first
        # holds the functions that convert values (None: no value needs it), the second those that make rows.
        self._works: dict[tuple[str, ...], Callable[[Values], Values] | None] = {}
        self._getters: dict[tuple[str, ...], tuple[tuple[str, ...], Callable[[Values], tuple[Any, ...]]]] = {}

    def read(self, values: Values) -> Values:
        """Return *values* for the writable columns. Raises SchemaError for an unknown column."""
        names = tuple(values)
        try:
            work = self._works[names]
        except KeyError:
            work = self._works[names] = self._choose_work(names)
        return work(values) if work else values

    def _choose_work(self, names: tuple[str, ...]) -> Callable[[Values], Values] | None:
        for name in names:
            if name not in self._columns:
                raise SchemaError(
                    f"the records have a column '{shortened(name)}' that the table lacks",
                    hint="where it is new in production, add it here (migrate) and the table goes on by"
                    " itself; where a migration here dropped or renamed it first, migrate production, then"
                    " take a snapshot there (archive_changes --snapshot) and resync the table",
                )
        if any(self._columns[name].is_generated for name in names):
            return self._convert_all
        if any(name in self._converters for name in names):
            return self._convert_some
        return None

    def _convert_all(self, values: Values) -> Values:
        written = {name: value for name, value in values.items() if not self._columns[name].is_generated}
        return self._convert_some(written)

    def _convert_some(self, values: Values) -> Values:
        """Return *values* converted; usually that is *values* itself, since most come as text already."""
        changed = None
        for name, convert in self._converters.items():
            if name in values and (text := convert(value := values[name])) is not value:
                changed = changed or values.copy()
                changed[name] = text
        return changed or values

    def key(self, *sources: Values | None) -> Key:
        """Return the key that the first of *sources* holds whole. Raises SchemaError when none does."""
        for source in sources:
            if source:
                try:
                    return self._read_key(source)
                except KeyError:
                    continue
        raise _without_key(self.schema.key, sources)

    def old_key(self, old_values: Values | None, values: Values | None) -> Key:
        """Return the key of the row that a record changes, out of its old values, else its new ones.

        Raises OtherKeyError where the old values are those of another key, and SchemaError.
        """
        if old_values:
            try:
                return self._read_key(old_values)
            except KeyError:
                for key in self.schema.other_keys:
                    if old_values.keys() >= set(key):
                        raise OtherKeyError(key) from None
        return self.key(old_values, values)

    def _choose_key_reader(self) -> Callable[[Values], Key]:
        """Return a function that reads the key out of values and raises KeyError where it is not whole.

        The usual key, of one column that needs no conversion, gets a faster one.
        """
        names, key_text = self.schema.key, self._key_text
        if len(names) != 1 or names[0] in self._converters:
            return lambda values: tuple([key_text(name, values[name]) for name in names])
        (name,) = names

        def read_one(values: Values) -> Key:
            value = values[name]
            kind = type(value)
            return (value if kind is str else str(value) if kind is int else key_text(name, value),)

        return read_one

    def _key_text(self, name: str, value: Any) -> str:
        text = to_text(value, self._columns[name].type, is_plain_file=self._is_plain_file)
        if text is None:
            raise SchemaError(
                f"the key column {name!r} is null in a record",
                hint="compare the table's key in production with the local one",
            )
        return text

    def row(self, values: Values) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """Return the columns that *values* carry, in the table's order, and their values."""
        names = tuple(values)
        known = self._getters.get(names)
        if known is None:
            columns = tuple(name for name in self.writable if name in values)
            known = self._getters[names] = (columns, _tuple_getter(columns))
        columns, getter = known
        return columns, getter(values)


def _without_key(key: tuple[str, ...], sources: tuple[Values | None, ...]) -> SchemaError:
    """Return the error for a record none of whose *sources* holds the whole *key*: it says what they lack."""
    given = [source for source in sources if source]
    lacks = {name for name in key if not any(name in source for source in given)}
    if lacks:
        missing = f"lacks the key column(s) {', '.join(name for name in key if name in lacks)}"
    else:
        missing = f"has the key column(s) {', '.join(key)} neither all in old_keys nor all in data"
    there = sorted({name for source in given[:1] for name in source})
    return SchemaError(
        f"a record {missing}; the key here is ({', '.join(key)}), and the record is located by"
        f" ({shortened(', '.join(there), 1_000) or 'nothing'})",
        hint="give the table the same primary key or replica identity in production as here, or here as in"
        " production",
    )


def _tuple_getter(columns: tuple[str, ...]) -> Callable[[Values], tuple[Any, ...]]:
    if len(columns) == 1:
        (name,) = columns
        return lambda values: (values[name],)
    return itemgetter(*columns) if columns else lambda values: ()


def located_by(record: ChangeRecord) -> Values:
    """Return the old values that locate the row of a table without a key.

    Raises SchemaError when the record has none.
    """
    if not record.old_keys:
        raise SchemaError(
            "a record carries no old_keys and the table has no key to find its row by",
            hint="give the table a primary key, or REPLICA IDENTITY FULL in production",
        )
    return record.old_keys
