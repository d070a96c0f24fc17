"""Permutes integers: another integer of the same sign and about the same size, different for each. Pure.

A Feistel network over a number of bits, walked until the result is in its range again ("cycle walking"),
permutes any range. There are three ranges a sign: what a smallint, an integer and a bigint can hold beyond
the one before. A number stays in its range, so a foreign key may be an integer where the key is a bigint, and
every result fits its column. 0 stays 0.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable
from functools import lru_cache

from syncdata.privacy.key import MaskKey

_SMALL, _MIDDLE, _LARGE = _EDGES = 1 << 15, 1 << 31, 1 << 63
_TABLE_BITS = 16  # halves of up to 16 bits are looked up in tables
_ROUNDS = 6  # of small halves: Patarin, "Security of Random Feistel Schemes with 5 or more Rounds"


@lru_cache(maxsize=256)
def permutation(key: MaskKey, domain: str) -> Permutation:
    """Return the permutation of *key* and *domain*: the same as before, with its tables, where there was one.

    A policy judges its tables every few seconds, and tables take some tenths of a second to make.
    """
    return Permutation(key, domain)


class Permutation:
    """The permutation of one key and domain. Its tables, 768 KiB a range at most, are made when needed."""

    def __init__(self, key: MaskKey, domain: str) -> None:
        self._key, self._domain = key, domain
        self._positive: list[Callable[[int], int] | None] = [None, None, None]
        self._negative = self._positive.copy()

    def text(self, text: str) -> str:
        """Return what stands for the integer *text*. Raises ValueError when it is none of PostgreSQL's."""
        number = int(text)
        if str(number) != text:
            raise ValueError("no integer")
        if number > 0:
            place = 0 if number < _SMALL else 1 if number < _MIDDLE else 2
            return str((self._positive[place] or self._range(place, 1))(number))
        if number == 0:
            return text
        # The smallest number of a type has no positive counterpart: -32768. Counted from -1, it has.
        size = -1 - number
        place = 0 if size < _SMALL else 1 if size < _MIDDLE else 2
        return str(-1 - (self._negative[place] or self._range(place, -1))(size))

    def _range(self, place: int, sign: int) -> Callable[[int], int]:
        """Make the permutation of one range: from the edge before it, or 1 (-1 counts as 0)."""
        first = _EDGES[place - 1] if place else max(sign, 0)
        purpose = f"permute {place} {sign} {self._domain}".encode()
        ranges = self._positive if sign > 0 else self._negative
        permuted = ranges[place] = _permutation(self._key, purpose, first, _EDGES[place] - first)
        return permuted


def _permutation(key: MaskKey, purpose: bytes, first: int, size: int) -> Callable[[int], int]:
    """Return a permutation of the *size* numbers from *first* on. It raises ValueError for one above."""
    bits = (size - 1).bit_length()
    low, high = bits - bits // 2, bits // 2
    make = _by_tables if low <= _TABLE_BITS else _by_hashes
    return make(key, purpose, first, size, low, high)


def _by_tables(
    key: MaskKey, purpose: bytes, first: int, size: int, low: int, high: int
) -> Callable[[int], int]:
    """Return the permutation of a small range: the rounds' functions are worked out beforehand."""
    a, b, c, d, e, f = _tables(key, purpose, low, high)
    mask = (1 << low) - 1

    def permuted(number: int) -> int:
        number -= first
        while True:
            left, right = number >> low, number & mask
            left ^= a[right]
            right ^= b[left]
            left ^= c[right]
            right ^= d[left]
            left ^= e[right]
            right ^= f[left]
            number = left << low | right
            if number < size:
                return first + number

    return permuted


def _by_hashes(
    key: MaskKey, purpose: bytes, first: int, size: int, low: int, high: int
) -> Callable[[int], int]:
    """Return the permutation of a large range: with halves as wide, four rounds do (Luby and Rackoff)."""
    to_low, to_high = (1 << low) - 1, (1 << high) - 1
    a, c = _hash(key, b"0 %b" % purpose, to_high), _hash(key, b"2 %b" % purpose, to_high)
    b, d = _hash(key, b"1 %b" % purpose, to_low), _hash(key, b"3 %b" % purpose, to_low)

    def permuted(number: int) -> int:
        number -= first
        if number >= size:
            raise ValueError("no integer")
        while True:
            left, right = number >> low, number & to_low
            left ^= a(right)
            right ^= b(left)
            left ^= c(right)
            right ^= d(left)
            number = left << low | right
            if number < size:
                return first + number

    return permuted


def _tables(key: MaskKey, purpose: bytes, low: int, high: int) -> list[array[int]]:
    """Return the rounds' functions of all halves: from one of *low* bits to one of *high* bits in the first,
    third … round, and the other way round in those between."""
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
    return [array("H", [word & mask for word in words[place::_ROUNDS]]) for place, mask in enumerate(masks)]


def _hash(key: MaskKey, purpose: bytes, mask: int) -> Callable[[int], int]:
    copy, pack, unpack = key.state(purpose, size=4).copy, _HALF.pack, _HALF.unpack

    def hashed(number: int) -> int:
        state = copy()
        state.update(pack(number))
        half: int = unpack(state.digest())[0]
        return half & mask

    return hashed


_HALF = struct.Struct("<I")  # of a large range: 31 or 32 bits
