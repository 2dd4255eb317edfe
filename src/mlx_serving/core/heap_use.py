"""When memory that was freed, and that the C library keeps for itself, is to go back to the system: beside the budget
nobody plans with it."""

from __future__ import annotations

_PARTS = 100
"""Of the budget, of which one may be kept: giving back takes longer than looking."""


def gives_back(kept: int, before: int, capacity: int) -> bool:
    """Whether a process that takes `kept` bytes beside its arrays, and took `before` when it had last given back what
    it could, is to do so again. `capacity` is the budget."""
    return kept - before > capacity // _PARTS
