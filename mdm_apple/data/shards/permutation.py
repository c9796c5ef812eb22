"""A shuffled order without a table: where position k of n goes, computed from k alone.

A Feistel network permutes the numbers of a power of two above n; a number that falls beyond n is
permuted again until it does not, which permutes the numbers below n.
Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", sections 4 and 5.
"""

from __future__ import annotations

import hashlib

_ROUNDS = 8
_MIX = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


class Permutation:
    """A permutation of 0 to count - 1, chosen by some whole numbers below 2**64."""

    def __init__(self, count: int, *chosen_by: int) -> None:
        bits = max(2, (count - 1).bit_length())
        self._count, self._low = count, bits // 2
        self._low_mask, self._high_mask = (1 << self._low) - 1, (1 << (bits - self._low)) - 1
        words = b"".join(number.to_bytes(8, "little") for number in chosen_by)
        keys = hashlib.blake2b(words, digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(keys[8 * k : 8 * k + 8], "little") for k in range(_ROUNDS)]

    def __call__(self, position: int) -> int:
        """The number at a position (0 to count - 1)."""
        while True:
            low, high = position & self._low_mask, position >> self._low
            for k in range(0, _ROUNDS, 2):
                high ^= _mixed(low, self._keys[k]) & self._high_mask
                low ^= _mixed(high, self._keys[k + 1]) & self._low_mask
            position = high << self._low | low
            if position < self._count:
                return position


def _mixed(number: int, key: int) -> int:
    """A word of which each bit depends on all bits of both."""
    word = (number + 1) * _MIX + key & _WORD
    word = (word ^ word >> 32) * _MIX & _WORD
    return word >> 29 ^ word
