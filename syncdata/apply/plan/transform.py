"""Records as this side's own privacy rules let them in. Pure.

They are masked before they are folded to a plan, new values and old ones alike, for old values find the rows
that were written so. Whatever is planned, replayed or loaded comes from here; the batch itself keeps what the
archive has, so that it can be planned anew when the table here has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from syncdata.apply.plan.local_rules import LocalRules, RowMask
from syncdata.apply.plan.schema import ColumnType, TableSchema
from syncdata.apply.plan.values import to_text
from syncdata.changes.reader import LocatedRecord


def transformed(
    records: Iterable[LocatedRecord], schema: TableSchema, rules: LocalRules, *, is_plain_file: bool
) -> list[LocatedRecord]:
    """Return *records* of the table *schema* as *rules* let them in, one for each.

    A column that the table lacks, and that no rule withholds, stays: the plan refuses it.
    """
    transformation = _Transformation(schema, rules, is_plain_file=is_plain_file)
    return [transformation.apply(located) for located in records]


class _Transformation:
    def __init__(self, schema: TableSchema, rules: LocalRules, *, is_plain_file: bool) -> None:
        self._rules = rules
        self._absent = frozenset(rules.absent)
        self._types: Mapping[str, ColumnType] = {column.name: column.type for column in schema.columns}
        self._is_plain_file = is_plain_file
        # By the names of a record's columns: those that are known here, and what masks them.
        self._masks: dict[tuple[str, ...], tuple[tuple[str, ...], RowMask | None]] = {}

    def apply(self, located: LocatedRecord) -> LocatedRecord:
        record = located.record
        data = record.data and self._new_values(record.data)
        old_keys = record.old_keys and self._old_values(record.old_keys)
        if data is record.data and old_keys is record.old_keys:
            return located
        masked = msgspec.structs.replace(record, data=data, old_keys=old_keys)
        return msgspec.structs.replace(located, record=masked)

    def _new_values(self, values: dict[str, Any]) -> dict[str, Any]:
        known, mask = self._mask(values)
        if mask is None:
            return values if len(known) == len(values) else self._unknown(values) | _only(values, known)
        row = mask.row([self._text(name, values[name]) for name in known])
        masked = {name: value for name, value in zip(known, row, strict=True) if value is not msgspec.UNSET}
        return masked if len(known) == len(values) else masked | self._unknown(values)

    def _old_values(self, values: dict[str, Any]) -> dict[str, Any]:
        known, mask = self._mask(values)
        kept = _only(values, known)
        if mask is not None:
            kept = dict(mask.keys({name: self._text(name, value) for name, value in kept.items()}))
        return kept | self._unknown(values)

    def _mask(self, values: dict[str, Any]) -> tuple[tuple[str, ...], RowMask | None]:
        names = tuple(values)
        found = self._masks.get(names)
        if found is None:
            known = tuple(name for name in names if name in self._types)
            found = self._masks[names] = (known, self._rules.masking.row_mask(known) if known else None)
        return found

    def _text(self, name: str, value: Any) -> str | None:
        return to_text(value, self._types[name], is_plain_file=self._is_plain_file)

    def _unknown(self, values: dict[str, Any]) -> dict[str, Any]:
        return {n: value for n, value in values.items() if n not in self._types and n not in self._absent}


def _only(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names}
