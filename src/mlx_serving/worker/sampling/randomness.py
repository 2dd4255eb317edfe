"""Random numbers that are functions of a seed and a position in the answer.

So a seeded sequence gives the same tokens alone, in any crowd, and after it was interrupted.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_COINS = 0xD1B54A32D192ED03  # sets the coins of a seed apart from its draws


def uniform(seed: int, position: int) -> float:
    """A number in (0, 1) for the draw at `position`. The mixing is splitmix64's: Steele, Lea and Flood, OOPSLA 2014."""
    z = seed
    for value in (_GOLDEN, (position + 1) * _GOLDEN):  # the seed is mixed alone first: seeds are often small and close
        z = (z + value) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return ((z >> 40) + 0.5) / (1 << 24)  # never 0, which would choose a token without any share


def coin(seed: int, position: int) -> float:
    """A second number in (0, 1) for `position`, which says nothing about the first."""
    return uniform(seed ^ _COINS, position)
