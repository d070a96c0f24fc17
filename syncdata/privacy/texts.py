"""Masks of texts: tokens, e-mail addresses, words of a list, and a part of what is there. Pure."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from functools import cache, lru_cache
from functools import partial as partial_of

from syncdata.privacy.facts import ValueType
from syncdata.privacy.key import MaskKey
from syncdata.privacy.mask import TEXTS, Mask
from syncdata.privacy.rules import Rule
from syncdata.privacy.words import WORDS_VERSION, words

_TOKEN_DIGITS, _FEWEST_DIGITS = 32, 16
_EMAIL_END = "@example.invalid"  # .invalid is never anybody's: RFC 2606
_PHONE_START, _PHONE_DIGITS = "+999", 9  # no country's code
_TRIES = 8
_FOUR_NUMBERS = struct.Struct(">4I")
_VARIANTS = {digit: "89ab"[place % 4] for place, digit in enumerate("0123456789abcdef")}
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
    function = _read(kind, hexadecimal_of(key, domain, digits, end=_EMAIL_END))
    return Mask(function, (domain, digits, _reading(kind)), is_distinct=True)


def partial(rule: Rule, kind: ValueType, domain: str, key: MaskKey | None) -> Mask:
    """The first and the last characters, and so many others that the length is the same. Where that would be
    more than half of a text, nothing of it is kept."""
    check_is_text(rule, kind)
    start, end, fill = rule.keep_start, rule.keep_end, rule.fill
    both = start + end

    def kept(text: str) -> str:
        length = len(text)
        if 2 * both > length:
            return fill * length
        return text[:start] + fill * (length - both) + text[length - end :]

    return Mask(kept, (start, end, fill))


def invented(rule: Rule, kind: ValueType, domain: str, key: MaskKey) -> Mask:
    """A name, a city or the like out of lists, as the token of the value says; cut where the column ends."""
    check_is_text(rule, kind)
    function = _INVENTED[rule.mask](numbers_of(key, domain))
    limit = kind.length if kind.length is not None and kind.length < _LONGEST else None
    if limit is not None:
        function = _cut(function, limit)
    if rule.mask in _REPEATED:
        function = _remembering(function)
    return Mask(_read(kind, function), (domain, WORDS_VERSION, limit, _reading(kind)))


def _cut(function: Callable[[str], str], limit: int) -> Callable[[str], str]:
    return lambda text: function(text)[:limit].rstrip()


def _remembering(function: Callable[[str], str]) -> Callable[[str], str]:
    """Return *function* with its last results kept: a bounded number of them, and none of long texts."""
    remembered = lru_cache(_REMEMBERED)(function)
    return lambda text: remembered(text) if len(text) <= _LONGEST_REMEMBERED else function(text)


def hexadecimal_of(
    key: MaskKey, domain: str, digits: int = _TOKEN_DIGITS, *, end: str = ""
) -> Callable[[str], str]:
    """Return what makes hex digits, and *end*, of a value's text: the same for all columns of *domain*."""
    copy = _state(key, domain)
    if digits == _TOKEN_DIGITS:

        def whole(text: str) -> str:
            hashed = copy()
            hashed.update(text.encode())
            return hashed.hexdigest() + end

        return whole

    def shortened(text: str) -> str:
        hashed = copy()
        hashed.update(text.encode())
        return hashed.hexdigest()[:digits] + end

    return shortened


def numbers_of(key: MaskKey, domain: str) -> Callable[[str], tuple[int, ...]]:
    """Return what makes four numbers below 2**32 of a value's text, the same for all columns of *domain*."""
    copy, numbers = _state(key, domain), _FOUR_NUMBERS.unpack

    def made(text: str) -> tuple[int, ...]:
        hashed = copy()
        hashed.update(text.encode())
        return numbers(hashed.digest())

    return made


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
    return (
        f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{_VARIANTS[digits[16]]}{digits[17:20]}-{digits[20:]}"
    )


_Numbers = Callable[[str], tuple[int, ...]]


@cache
def _choices(kind: str) -> tuple[tuple[str, str], ...]:
    """Return the words of a list, each with itself in small letters."""
    return tuple((word, word.casefold()) for word in words(kind))


def _chooser(kind: str) -> Callable[[int, str], str]:
    """Return what chooses a word of a list by a number: none that the original, which is in small letters,
    holds, unless it holds many."""
    choices = _choices(kind)
    count = len(choices)

    def choose(number: int, original: str) -> str:
        word, small = choices[number % count]
        if small not in original:
            return word
        near = [choices[(number + step) % count] for step in range(1, _TRIES + 1)]
        return next((other for other, small in near if small not in original), near[-1][0])

    return choose


def _word(kind: str, numbers: _Numbers) -> Callable[[str], str]:
    choose = _chooser(kind)
    return lambda text: choose(numbers(text)[0], text.casefold())


def _name(numbers: _Numbers) -> Callable[[str], str]:
    choose_first, choose_last = _chooser("first_names"), _chooser("last_names")
    firsts, lasts = _choices("first_names"), _choices("last_names")
    first_count, last_count = len(firsts), len(lasts)

    def name(text: str) -> str:
        first, last, _, _ = numbers(text)
        original = text.casefold()
        first_name, first_small = firsts[first % first_count]
        last_name, last_small = lasts[last % last_count]
        if first_small not in original and last_small not in original:
            return f"{first_name} {last_name}"  # nearly always: what follows, without its calls
        return f"{choose_first(first, original)} {choose_last(last, original)}"

    return name


def _street(numbers: _Numbers) -> Callable[[str], str]:
    choose = _chooser("streets")

    def street(text: str) -> str:
        word, house, _, _ = numbers(text)
        return f"{house % 199 + 1} {choose(word, text.casefold())}"

    return street


def _company(numbers: _Numbers) -> Callable[[str], str]:
    choose, choose_form = _chooser("companies"), _chooser("company_forms")

    def company(text: str) -> str:
        word, form, _, _ = numbers(text)
        original = text.casefold()
        return f"{choose(word, original)} {choose_form(form, original)}"

    return company


def _phone(numbers: _Numbers) -> Callable[[str], str]:
    below = 10**_PHONE_DIGITS
    return lambda text: f"{_PHONE_START}{numbers(text)[0] % below:0{_PHONE_DIGITS}d}"


_INVENTED: dict[str, Callable[[_Numbers], Callable[[str], str]]] = {
    "name": _name,
    "first_name": partial_of(_word, "first_names"),
    "last_name": partial_of(_word, "last_names"),
    "city": partial_of(_word, "cities"),
    "street": _street,
    "company": _company,
    "phone": _phone,
}
INVENTED = tuple(_INVENTED)
_REPEATED = frozenset({"first_name", "last_name", "city", "company"})  # in a table, most come again and again
_REMEMBERED, _LONGEST_REMEMBERED = 4_096, 100
_LONGEST = 64  # no result is longer, so columns that are have the same mask as a text
