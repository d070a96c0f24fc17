"""Permutes integers: another integer of the same sign and about the same size, different for each. Pure.

A Feistel network over a number of bits, walked until the result is in its range again ("cycle walking"),
permutes any range. There are three ranges a sign: what a smallint, an integer and a bigint can hold beyond
the one before. A number stays in its range, so a foreign key may be an integer where the key is a bigint, and
every result fits its column. 0 stays 0.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from functools import lru_cache

from syncdata.privacy.key import MaskKey

_EDGES = (1 << 15, 1 << 31, 1 << 63)
_ROUNDS = 8
_TABLE_BITS = 16  # halves of up to 16 bits are looked up in tables


@lru_cache(maxsize=256)
def permutation(key: MaskKey, domain: str) -> Permutation:
    """Return the permutation of *key* and *domain*: the same as before, with its tables, where there was one.

    A policy judges its tables every few seconds, and tables take some tenths of a second to make.
    """
    return Permutation(key, domain)


class Permutation:
    """The permutation of one key and domain. Its tables, up to 1 MiB a range, are made when first needed."""

    def __init__(self, key: MaskKey, domain: str) -> None:
        self._key, self._domain = key, domain
        self._ranges: dict[tuple[int, int], Callable[[int], int]] = {}

    def text(self, text: str) -> str:
        """Return what stands for the integer *text*. Raises ValueError when it is none of PostgreSQL's."""
        number = int(text)
        if str(number) != text or not -_EDGES[2] <= number < _EDGES[2]:
            raise ValueError("no integer")
        if number == 0:
            return text
        # The smallest number of a type has no positive counterpart: -32768. Counted from -1, it has.
        size, sign = (number, 1) if number > 0 else (-1 - number, -1)
        place = 0 if size < _EDGES[0] else 1 if size < _EDGES[1] else 2
        permuted = self._ranges.get((place, sign)) or self._range(place, sign)
        size = permuted(size)
        return str(size if number > 0 else -1 - size)

    def _range(self, place: int, sign: int) -> Callable[[int], int]:
        """Make the permutation of one range: from the edge before it, or 1 (-1 counts as 0)."""
        first = _EDGES[place - 1] if place else max(sign, 0)
        purpose = f"permute {place} {sign} {self._domain}".encode()
        permuted = self._ranges[place, sign] = _permutation(self._key, purpose, first, _EDGES[place] - first)
        return permuted


def _permutation(key: MaskKey, purpose: bytes, first: int, size: int) -> Callable[[int], int]:
    """Return a permutation of the *size* numbers from *first* on."""
    bits = (size - 1).bit_length()
    low, high = bits - bits // 2, bits // 2
    mix = (_tables if low <= _TABLE_BITS else _hashes)(key, purpose, low, high)
    a, b, c, d, e, f, g, h = mix
    mask = (1 << low) - 1

    def permuted(number: int) -> int:
        number -= first
        while True:
            left, right = number >> low, number & mask
            left ^= a(right)
            right ^= b(left)
            left ^= c(right)
            right ^= d(left)
            left ^= e(right)
            right ^= f(left)
            left ^= g(right)
            right ^= h(left)
            number = left << low | right
            if number < size:
                return first + number

    return permuted


_Rounds = list[Callable[[int], int]]


def _tables(key: MaskKey, purpose: bytes, low: int, high: int) -> _Rounds:
    """Return the rounds' functions, worked out beforehand for all halves: from one of *low* bits to one of
    *high* bits in the first, third … round, and the other way round in those between."""
    copy = key.state(purpose, size=2 * _ROUNDS).copy
    digests = bytearray()
    for number in range(1 << low):
        state = copy()
        state.update(number.to_bytes(2, "big"))
        digests += state.digest()
    words = array("H", bytes(digests))
    if sys.byteorder == "big":
        words.byteswap()
    masks = [(1 << (low if place % 2 else high)) - 1 for place in range(_ROUNDS)]
    return [
        array("H", [word & mask for word in words[place::_ROUNDS]]).__getitem__
        for place, mask in enumerate(masks)
    ]


def _hashes(key: MaskKey, purpose: bytes, low: int, high: int) -> _Rounds:
    """Return the rounds' functions of larger halves, each worked out when it is asked."""
    return [
        _hash(key, b"%d %b" % (place, purpose), (1 << (low if place % 2 else high)) - 1)
        for place in range(_ROUNDS)
    ]


def _hash(key: MaskKey, purpose: bytes, mask: int) -> Callable[[int], int]:
    copy = key.state(purpose, size=8).copy

    def hashed(number: int) -> int:
        state = copy()
        state.update(number.to_bytes(8, "big"))
        return int.from_bytes(state.digest(), "little") & mask

    return hashed
