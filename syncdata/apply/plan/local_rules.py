"""What this side's own privacy rules make of a table, as values. Pure.

Masks themselves are the privacy package's; here they are a port, so that a plan knows no key and no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from syncdata.changes.catalog import WITHHELD


class RowMask(Protocol):
    """Masks values of columns in one order. A value that is withheld becomes UNSET, or is left out."""

    def row(self, values: Sequence[Any], /) -> Sequence[Any]: ...

    def keys(self, values: Mapping[str, Any], /) -> Mapping[str, Any]: ...


class Masking(Protocol):
    """The masks of one table."""

    def row_mask(self, columns: Sequence[str], /) -> RowMask | None:
        """Return what masks rows of *columns*; None where they go as they are."""
        ...


class ColumnRule(msgspec.Struct, frozen=True):
    """The rule of a column whose values do not come in as they are. ``privacy``: its kind, ``withheld`` where
    none comes in; ``id``: the same id, the same function."""

    name: str
    privacy: str
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRules:
    """The rules of one table: ``columns`` that are here, ``absent`` ones that are not, and are withheld.
    ``problems``: why rules cannot hold; then nothing of the table may be written."""

    columns: tuple[ColumnRule, ...]
    masking: Masking = field(compare=False, repr=False)
    absent: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The columns whose values here are not those that came."""
        return frozenset(rule.name for rule in self.columns)

    @property
    def withheld(self) -> frozenset[str]:
        return frozenset(rule.name for rule in self.columns if rule.privacy == WITHHELD)
