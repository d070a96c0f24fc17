"""A mask, ready for one column, and the kinds of types that masks tell apart. Pure.

What a mask returns is for ever: rows of last year must meet rows of today. Whoever changes one result raises
VERSION; readers notice it by the id.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

VERSION = 1
TEXTS = frozenset({"text", "character varying", "character", "citext", "name"})
INTEGERS = frozenset({"smallint", "integer", "bigint"})
DATES = frozenset({"date", "timestamp without time zone", "timestamp with time zone"})
DOCUMENTS = frozenset({"json", "jsonb"})

Function = Callable[..., str | None]


class Lost:
    """Counts parts of a value for which something else stands now; whoever reads it begins anew."""

    def __init__(self) -> None:
        self.parts = 0

    def take(self) -> int:
        parts, self.parts = self.parts, 0
        return parts


class Mask(msgspec.Struct, frozen=True):
    """A mask. ``function`` sees a value's text as PostgreSQL spells it, and returns one that the column's
    type takes, or None for NULL. It depends on the key, the domain and that text alone, and may raise
    whatever it likes for a text that it cannot take. ``by``: the column whose text is its second argument.

    ``parts``: all that decides what the function returns, but for the key. ``is_distinct``: different values
    have different results. ``takes_null``: the function is for NULL, too. ``lost``: where the function counts
    parts of a document that it could not take.
    """

    function: Function
    parts: tuple[object, ...]
    is_distinct: bool = False
    takes_null: bool = False
    by: str = ""
    lost: Lost | None = None
