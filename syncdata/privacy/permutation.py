"""Permutes integers: another integer of the same sign and about the same size, different for each. Pure.

A Feistel network over a number of bits, walked until the result is in its range again ("cycle walking"),
permutes any range. There are three ranges a sign: what a smallint, an integer and a bigint can hold beyond
the one before. A number stays in its range, so a foreign key may be an integer where the key is a bigint, and
every result fits its column. 0 stays 0.
"""

from __future__ import annotations

import hashlib
import re
import sys
from array import array
from collections.abc import Callable

from syncdata.privacy.key import MaskKey

_INTEGER = re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII)
_EDGES = (1 << 15, 1 << 31, 1 << 63)
_ROUNDS = 8
_TABLE_BITS = 16  # halves of up to 16 bits are looked up in tables


class Permutation:
    """The permutation of one key and domain. Its tables, up to 1 MiB a range, are made when first needed."""

    def __init__(self, key: MaskKey, domain: str) -> None:
        self._key, self._domain = key, domain
        self._ranges: dict[tuple[int, bool], tuple[int, Callable[[int], int]]] = {}

    def text(self, text: str) -> str:
        """Return what stands for the integer *text*. Raises ValueError when it is none of PostgreSQL's."""
        if not _INTEGER.fullmatch(text):
            raise ValueError("no integer")
        number = int(text)
        if number == 0:
            return text
        return str(
            -self._of(-number, is_negative=True) if number < 0 else self._of(number, is_negative=False)
        )

    def _of(self, size: int, *, is_negative: bool) -> int:
        # The smallest number of a type has no positive counterpart: -32768.
        place = next((place for place, edge in enumerate(_EDGES) if size < edge + is_negative), None)
        if place is None:
            raise ValueError("beyond bigint")
        found = self._ranges.get((place, is_negative))
        if found is None:
            found = self._ranges[place, is_negative] = self._range(place, is_negative)
        first, permuted = found
        return first + permuted(size - first)

    def _range(self, place: int, is_negative: bool) -> tuple[int, Callable[[int], int]]:
        first = _EDGES[place - 1] + is_negative if place else 1
        size = _EDGES[place] + is_negative - first
        bits = (size - 1).bit_length()
        low, high = bits - bits // 2, bits // 2
        purpose = f"permute {place} {'-' if is_negative else '+'} {self._domain}".encode()
        mix = (_tables if low <= _TABLE_BITS else _hashes)(self._key, purpose, low)
        low_mask, high_mask = (1 << low) - 1, (1 << high) - 1

        def permuted(number: int) -> int:
            while True:
                left, right = number >> low, number & low_mask
                for even, odd in mix:
                    left ^= even(right) & high_mask
                    right ^= odd(left) & low_mask
                number = left << low | right
                if number < size:
                    return number

        return first, permuted


_Rounds = list[tuple[Callable[[int], int], Callable[[int], int]]]


def _tables(key: MaskKey, purpose: bytes, bits: int) -> _Rounds:
    """Return the rounds' functions of halves of up to *bits*, worked out beforehand."""
    copy = key.state(purpose, size=2 * _ROUNDS).copy
    digests = bytearray()
    for number in range(1 << bits):
        state = copy()
        state.update(number.to_bytes(2, "big"))
        digests += state.digest()
    words = array("H", bytes(digests))
    if sys.byteorder == "big":
        words.byteswap()
    look_ups = [words[place::_ROUNDS].__getitem__ for place in range(_ROUNDS)]
    return list(zip(look_ups[::2], look_ups[1::2], strict=True))


def _hashes(key: MaskKey, purpose: bytes, bits: int) -> _Rounds:
    """Return the rounds' functions of larger halves, each worked out when it is asked."""
    functions = []
    for place in range(_ROUNDS):
        copy = key.state(b"%d %b" % (place, purpose), size=8).copy

        def hashed(number: int, copy: Callable[[], hashlib.blake2b] = copy) -> int:
            state = copy()
            state.update(number.to_bytes(8, "big"))
            return int.from_bytes(state.digest(), "little")

        functions.append(hashed)
    return list(zip(functions[::2], functions[1::2], strict=True))
