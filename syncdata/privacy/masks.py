"""Makes of a rule the function that masks a column's values, or says why the column cannot have it. Pure.

A mask sees a value's text as PostgreSQL spells it and returns another one that the column's type takes. What
it returns depends on the key, the domain and that text alone. It may raise whatever it likes for a text that
it cannot take; `RowMask` then puts a harmless value there. NULL comes only to those that take it.

What a mask returns is for ever: rows of last year must meet rows of today. A change of any result is a new
_VERSION, which readers notice by the id.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from syncdata.privacy.facts import ValueType
from syncdata.privacy.key import MaskKey
from syncdata.privacy.rules import KEYLESS, Rule

_VERSION = 1
TEXTS = frozenset({"text", "character varying", "character", "citext", "name"})
INTEGERS = frozenset({"smallint", "integer", "bigint"})
_TOKEN_DIGITS, _FEWEST_DIGITS = 32, 16
_EMAIL_END = "@example.invalid"  # .invalid is never anybody's: RFC 2606
_SMALL = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")

Function = Callable[[str], str | None]


class Mask(msgspec.Struct, frozen=True):
    """A mask, ready for one column. ``by``: the column whose text is the function's second argument.

    ``parts``: all that decides what the function returns, but for the key. ``is_distinct``: different values
    have different results. ``takes_null``: the function is for NULL, too.
    """

    function: Callable[..., str | None]
    parts: tuple[object, ...]
    is_distinct: bool = False
    takes_null: bool = False
    by: str = ""


def make_mask(rule: Rule, kind: ValueType, domain: str, key: MaskKey | None) -> Mask:
    """Return the mask of *rule* for values of type *kind*. Raises ValueError when there can be none."""
    if rule.mask == "null":
        return Mask(lambda _: None, ("null",), takes_null=True)
    if rule.mask == "fixed":
        value = _spelled(rule.value)
        return Mask(lambda _: value, ("fixed", value), takes_null=True)
    if key is None and rule.mask not in KEYLESS:
        raise ValueError(f"{rule.mask} needs a key: name a key_file")
    maker = _MAKERS.get(rule.mask)
    if maker is None:
        raise ValueError(f"there is no mask {rule.mask}")
    mask = maker(rule, kind, rule.domain or domain, key)
    return msgspec.structs.replace(mask, parts=(_VERSION, rule.kind, *mask.parts))


def _spelled(value: str | int | float | bool | None) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value)


def _digester(key: MaskKey, domain: str) -> Callable[[str], bytes]:
    """Return what makes 16 bytes of a value's text, the same for all columns of *domain*."""
    copy = key.state(f"domain {domain}".encode(), size=16).copy

    def digest(text: str) -> bytes:
        hashed = copy()
        hashed.update(text.encode())
        return hashed.digest()

    return digest


def _token(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    digits = _digits(rule, kind, room=kind.length)
    copy = key.state(f"domain {domain}".encode(), size=16).copy

    def token(text: str) -> str:
        hashed = copy()
        hashed.update(text.encode())
        return hashed.hexdigest()[:digits]

    return Mask(token, ("token", domain, digits), is_distinct=True)


def _email(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    digits = _digits(rule, kind, room=kind.length and kind.length - len(_EMAIL_END))
    token = _token(rule, ValueType("text", digits), domain, key).function
    return Mask(lambda text: f"{token(text)}{_EMAIL_END}", ("email", domain, digits), is_distinct=True)


def _digits(rule: Rule, kind: ValueType, *, room: int | None) -> int:
    """Return how many digits a token has in *room* characters; 16 tell millions of rows apart."""
    if kind.name not in TEXTS:
        raise ValueError(f"{rule.mask} is for texts, not for {kind.name}")
    digits = _TOKEN_DIGITS if room is None else min(_TOKEN_DIGITS, room)
    if digits < _FEWEST_DIGITS:
        short = _FEWEST_DIGITS - digits
        raise ValueError(f"{rule.mask} is longer than the column by {short} characters or more")
    return digits


_MAKERS: dict[str, Callable[..., Mask]] = {"token": _token, "email": _email}
