"""Masks the rows of one table, as they come: in the stream, in a snapshot, and old keys. Pure, and quick.

Nothing that is not named here gets through: a column that is withheld becomes absent, and a value that its
mask cannot take becomes a harmless one, which is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from syncdata.privacy.mask import Function, Lost, Mask

Value = str | UnsetType | None


class Treatment(msgspec.Struct, frozen=True):
    """What is done with one column that does not go as it is. ``mask`` is None for one that is withheld;
    ``substitute`` stands for a value that the mask cannot take."""

    column: str
    mask: Mask | None
    substitute: Callable[[str], str | None] = lambda text: None


class RowMask:
    """Masks rows of *columns*. ``sent``: the columns that travel, in their order. ``unmasked`` counts, by
    column, the values, or parts of documents, that a mask could not take for which another was sent."""

    def __init__(self, columns: Sequence[str], treatments: Mapping[str, Treatment]) -> None:
        """*treatments* has what is done with each column that does not go as it is."""
        self.columns = tuple(columns)
        self.unmasked: Counter[str] = Counter()
        places = {column: place for place, column in enumerate(columns)}
        found = [treatments[column] for column in columns if column in treatments]
        self._withheld = [places[one.column] for one in found if one.mask is None]
        self._plain: list[tuple[int, Callable[[Any], Value]]] = []
        self._paired: list[tuple[int, int | None, Callable[[Any, Any], Value]]] = []
        self._all_plain: list[tuple[int, Callable[[Sequence[Any]], list[Value]]]] = []
        self._all_paired: list[
            tuple[int, int | None, Callable[[Sequence[Any], Sequence[Any]], list[Value]]]
        ] = []
        self._by_name: dict[str, Callable[[Any, Mapping[str, Any]], Value]] = {}
        for one in found:
            if one.mask is not None:
                self._add(one, one.mask, places)
        withheld = set(self._withheld)
        self.sent = tuple(column for place, column in enumerate(columns) if place not in withheld)
        self._sent = frozenset(self.sent)

    def row(self, values: Sequence[Value]) -> list[Value]:
        """Return a row as it travels: as many values as *values*, UNSET for those that are withheld."""
        masked = list(values)
        for place, function in self._plain:
            masked[place] = function(values[place])
        for place, by, pair in self._paired:
            masked[place] = pair(values[place], UNSET if by is None else values[by])
        for place in self._withheld:
            masked[place] = UNSET
        return masked

    def rows(self, rows: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """Return many rows as they travel, as `row` returns each: column by column, which is quicker."""
        if not rows:
            return []
        columns = self.whole_columns(list(zip(*rows, strict=True)))
        return list(map(list, zip(*columns, strict=True)))

    def whole_columns(self, columns: Sequence[Sequence[Value]]) -> list[Sequence[Value]]:
        """Return the values of many rows, column by column, as `row` returns those of each."""
        if len(columns) != len(self.columns):
            raise ValueError("not rows of these columns")
        masked = list(columns)
        absent = [UNSET] * len(columns[0])
        for place, function in self._all_plain:
            masked[place] = function(columns[place])
        for place, by, pair in self._all_paired:
            masked[place] = pair(columns[place], absent if by is None else columns[by])
        for place in self._withheld:
            masked[place] = absent
        return masked

    def keys(self, values: Mapping[str, str | None]) -> dict[str, str | None]:
        """Return an old key as it travels: masked as in a row; columns that are withheld, or that are none
        of the table's, are left out."""
        masked = {}
        for column, value in values.items():
            if column in self._sent:
                function = self._by_name.get(column)
                masked[column] = value if function is None else function(value, values)
        return masked  # type: ignore[return-value]  # what is set stays set

    def _add(self, one: Treatment, mask: Mask, places: Mapping[str, int]) -> None:
        place = places[one.column]
        if mask.by:
            by = mask.by
            pair = self._guarded_pair(one, mask)
            self._paired.append((place, places.get(by), pair))
            self._all_paired.append((place, places.get(by), _pair_all(mask.function, pair)))
            self._by_name[one.column] = lambda value, values: pair(value, values.get(by, UNSET))
        else:
            function = self._guarded(one, mask)
            self._plain.append((place, function))
            self._all_plain.append((place, _all(mask, function)))
            self._by_name[one.column] = lambda value, values: function(value)

    def _guarded(self, one: Treatment, mask: Mask) -> Callable[[Any], Value]:
        """Return *mask* for every value: absent stays absent, and NULL NULL where the mask is not for it."""
        apply = mask.function if mask.lost is None else self._counting(one, mask.function, mask.lost)
        if mask.takes_null:
            return lambda value: UNSET if value is UNSET else apply(value)

        def masked(value: Value) -> Value:
            if value is None or value is UNSET:
                return value
            try:
                return apply(value)
            except Exception:  # of whatever kind: its text may hold the value
                return self._substitute(one, value)

        return masked

    def _counting(self, one: Treatment, function: Function, lost: Lost) -> Function:
        """Return *function*, with the parts that it could not take among those that are counted."""

        def masked(value: str) -> str | None:
            result = function(value)
            if lost.parts:
                self.unmasked[one.column] += lost.take()
            return result

        return masked

    def _guarded_pair(self, one: Treatment, mask: Mask) -> Callable[[Any, Any], Value]:
        """Return *mask* for a value and the one that it depends on; without that one, there is no mask."""
        apply = mask.function

        def masked(value: Value, by: Value) -> Value:
            if value is None or value is UNSET:
                return value
            try:
                return apply(value, by)
            except Exception:  # as above
                return self._substitute(one, value)

        return masked

    def _substitute(self, one: Treatment, value: Value) -> str | None:
        self.unmasked[one.column] += 1
        try:
            return one.substitute(str(value))
        except Exception:  # as above; a column that is NOT NULL refuses the row, which is better than to tell
            return None


def _all(mask: Mask, guarded: Callable[[Any], Value]) -> Callable[[Sequence[Any]], list[Value]]:
    """Return *guarded* for all values of a column. Nearly always the mask takes them all, so they are guarded
    together; where it does not, they are masked again, one by one. What is counted is so by *guarded*."""
    if mask.takes_null or mask.lost is not None:
        return lambda values: [guarded(value) for value in values]
    apply = mask.function

    def masked(values: Sequence[Any]) -> list[Value]:
        try:
            return [value if value is None or value is UNSET else apply(value) for value in values]
        except Exception:  # of whatever kind, see `RowMask._guarded`
            return [guarded(value) for value in values]

    return masked


def _pair_all(
    apply: Callable[[Any, Any], Value], guarded: Callable[[Any, Any], Value]
) -> Callable[[Sequence[Any], Sequence[Any]], list[Value]]:
    """Return *guarded* for all values of a column, and those that they depend on, as `_all` does."""

    def masked(values: Sequence[Any], others: Sequence[Any]) -> list[Value]:
        try:
            return [
                value if value is None or value is UNSET else apply(value, other)
                for value, other in zip(values, others, strict=True)
            ]
        except Exception:  # as above
            return list(map(guarded, values, others))

    return masked
