"""Masks of texts: tokens, e-mail addresses, words of a list, and a part of what is there. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

from syncdata.privacy.facts import ValueType
from syncdata.privacy.key import MaskKey
from syncdata.privacy.mask import TEXTS, Mask
from syncdata.privacy.rules import Rule
from syncdata.privacy.words import WORDS_VERSION, words

_TOKEN_DIGITS, _FEWEST_DIGITS = 32, 16
_EMAIL_END = "@example.invalid"  # .invalid is never anybody's: RFC 2606
_PHONE_START, _PHONE_DIGITS = "+999", 9  # no country's code
_TRIES = 8
_SMALL = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def token(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    """128 bits as hex digits, fewer where the column is shorter; in a uuid or a bytea as one of these."""
    if kind.name in ("uuid", "bytea"):
        hexadecimal = hexadecimal_of(key, domain)
        spelled = _uuid if kind.name == "uuid" else "\\x{}".format
        return Mask(lambda text: spelled(hexadecimal(text)), (domain, kind.name), is_distinct=True)
    digits = _digits(rule, kind, kind.length)
    function = _read(kind, hexadecimal_of(key, domain, digits))
    return Mask(function, (domain, digits, _reading(kind)), is_distinct=True)


def email(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    """A token where nobody gets mail. Addresses that differ in capital letters alone are two, as in the
    table itself; in a citext they are one."""
    digits = _digits(rule, kind, None if kind.length is None else kind.length - len(_EMAIL_END))
    hexadecimal = _read(kind, hexadecimal_of(key, domain, digits))
    return Mask(
        lambda text: hexadecimal(text) + _EMAIL_END, (domain, digits, _reading(kind)), is_distinct=True
    )


def partial(rule: Rule, kind: ValueType, domain: str, key: MaskKey | None) -> Mask:
    """The first and the last characters, and so many others that the length is the same. Where that would be
    more than half of a text, nothing of it is kept."""
    check_is_text(rule, kind)
    start, end, fill = rule.keep_start, rule.keep_end, rule.fill

    def kept(text: str) -> str:
        length = len(text)
        if 2 * (start + end) > length:
            return fill * length
        return text[:start] + fill * (length - start - end) + text[length - end :]

    return Mask(kept, (start, end, fill))


def invented(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    """A name, a city or the like out of lists, as the token of the value says; cut where the column ends."""
    check_is_text(rule, kind)
    invent = _INVENTED[rule.mask]
    numbers, limit = _number_of(key, domain), kind.length

    def masked(text: str) -> str:
        result = invent(numbers(text), text.casefold())
        return result if limit is None else result[:limit].rstrip()

    limit_part = limit if limit is not None and limit < _LONGEST else None
    function = _remembering(masked) if rule.mask in _REPEATED else masked
    return Mask(_read(kind, function), (domain, WORDS_VERSION, limit_part, _reading(kind)))


def _remembering(function: Callable[[str], str]) -> Callable[[str], str]:
    """Return *function* with its last results kept: a bounded number of them, and none of long texts."""
    remembered = lru_cache(_REMEMBERED)(function)
    return lambda text: remembered(text) if len(text) <= _LONGEST_REMEMBERED else function(text)


def hexadecimal_of(key: MaskKey, domain: str, digits: int = _TOKEN_DIGITS) -> Callable[[str], str]:
    """Return what makes hex digits of a value's text, the same for all columns of *domain*."""
    copy = _state(key, domain)
    if digits == _TOKEN_DIGITS:

        def whole(text: str) -> str:
            hashed = copy()
            hashed.update(text.encode())
            return hashed.hexdigest()

        return whole

    def shortened(text: str) -> str:
        hashed = copy()
        hashed.update(text.encode())
        return hashed.hexdigest()[:digits]

    return shortened


def _number_of(key: MaskKey, domain: str) -> Callable[[str], int]:
    copy = _state(key, domain)

    def number(text: str) -> int:
        hashed = copy()
        hashed.update(text.encode())
        return int.from_bytes(hashed.digest(), "big")

    return number


def number_below(key: MaskKey, domain: str, most: int) -> Callable[[str], int]:
    """Return what makes a number from 0 up to below *most* of a value's text."""
    number = _number_of(key, domain)
    return lambda text: number(text) % most


def check_is_text(rule: Rule, kind: ValueType) -> None:
    """Raise ValueError where values of *kind* are no texts."""
    if kind.name not in TEXTS:
        raise ValueError(f"{rule.mask} is for texts, not for {kind.name}")


def _state(key: MaskKey, domain: str) -> Callable[[], hashlib.blake2b]:
    return key.state(f"domain {domain}".encode(), size=_TOKEN_DIGITS // 2).copy


def _digits(rule: Rule, kind: ValueType, room: int | None) -> int:
    """Return how many digits a token has in *room* characters; 16 tell millions of values apart."""
    check_is_text(rule, kind)
    digits = _TOKEN_DIGITS if room is None else min(_TOKEN_DIGITS, room)
    if digits < _FEWEST_DIGITS:
        raise ValueError(f"the column is {_FEWEST_DIGITS - digits} characters too short for {rule.mask}")
    return digits


def _reading(kind: ValueType) -> str:
    """Return what values of *kind* have in common that PostgreSQL takes for equal; empty where only equal
    texts are. Of citext, the letters A to Z: what else it takes for equal depends on the database's locale,
    and to take two values for one would break unique keys."""
    return {"citext": "capitals are small", "character": "blanks at the end"}.get(kind.name, "")


def _read(kind: ValueType, function: Callable[[str], str]) -> Callable[[str], str]:
    """Return *function* for texts of *kind*, so that equal values have equal results."""
    if kind.name == "citext":
        return lambda text: function(text.translate(_SMALL))
    if kind.name == "character":
        return lambda text: function(text.rstrip(" "))
    return function


def _uuid(digits: str) -> str:
    """Return 32 hex digits as a UUID of version 8, which RFC 9562 leaves to whoever makes it."""
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _word(kind: str, number: int, original: str) -> tuple[str, int]:
    """Return a word of a list, and what is left of the number. No word that *original* holds, unless that
    holds many."""
    choices = words(kind)
    rest, place = divmod(number, len(choices))
    for _ in range(_TRIES):
        if choices[place].casefold() not in original:
            break
        place = (place + 1) % len(choices)
    return choices[place], rest


def _first_name(number: int, original: str) -> str:
    return _word("first_names", number, original)[0]


def _last_name(number: int, original: str) -> str:
    return _word("last_names", number, original)[0]


def _name(number: int, original: str) -> str:
    first, rest = _word("first_names", number, original)
    return f"{first} {_last_name(rest, original)}"


def _city(number: int, original: str) -> str:
    return _word("cities", number, original)[0]


def _street(number: int, original: str) -> str:
    word, rest = _word("streets", number, original)
    return f"{rest % 199 + 1} {word}"


def _company(number: int, original: str) -> str:
    word, rest = _word("companies", number, original)
    return f"{word} {_word('company_forms', rest, original)[0]}"


def _phone(number: int, original: str) -> str:
    return f"{_PHONE_START}{number % 10**_PHONE_DIGITS:0{_PHONE_DIGITS}d}"


_INVENTED: dict[str, Callable[[int, str], str]] = {
    "name": _name,
    "first_name": _first_name,
    "last_name": _last_name,
    "city": _city,
    "street": _street,
    "company": _company,
    "phone": _phone,
}
INVENTED = tuple(_INVENTED)
_REPEATED = frozenset({"first_name", "last_name", "city", "company"})  # in a table, most come again and again
_REMEMBERED, _LONGEST_REMEMBERED = 4_096, 100
_LONGEST = 64  # no result is longer, so columns that are have the same mask as a text
