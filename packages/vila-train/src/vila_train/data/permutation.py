"""A pseudo-random order of n samples that needs no memory: position -> sample, for any n.

A Feistel network permutes the numbers below 4^h, the smallest such power that is at least n (Luby and Rackoff, 1988).
A result that is not below n is permuted again until it is ("cycle walking": Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002), which leaves a permutation of the numbers below n. On average that takes fewer than 4 passes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

ROUNDS = 6
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Permutation:
    """A permutation of `range(size)`, chosen by `key`: the same one on every machine.

    Attributes:
        size: n, at least 1.
        key: whole numbers such as the seed and the epoch.
    """

    size: int
    key: tuple[int, ...]
    _half: int = field(init=False, repr=False)
    _round_keys: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.size >= 1, "a permutation of nothing"
        object.__setattr__(self, "_half", max(1, ((self.size - 1).bit_length() + 1) // 2))
        digest = hashlib.blake2b(repr(self.key).encode(), digest_size=8 * ROUNDS).digest()
        keys = tuple(int.from_bytes(digest[8 * n : 8 * n + 8], "little") for n in range(ROUNDS))
        object.__setattr__(self, "_round_keys", keys)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> int:
        """Return what stands at `position`. Raises `IndexError` if it is negative or not below `size`."""
        if not 0 <= position < self.size:
            raise IndexError(position)
        value = self._permute(position)
        while value >= self.size:
            value = self._permute(value)
        return value

    def __iter__(self) -> Iterator[int]:
        return map(self.__getitem__, range(self.size))

    def _permute(self, value: int) -> int:
        """Permute the numbers of 2h bits: each round adds a function of one half to the other."""
        half = self._half
        low_bits = (1 << half) - 1
        left, right = value >> half, value & low_bits
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ key) & low_bits)
        return left << half | right


def _mix(value: int) -> int:
    """Return 64 bits that all depend on all bits of `value` (the finalizer of SplitMix64)."""
    value &= _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
