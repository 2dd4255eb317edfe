"""Whether the KV caches have borrowed the memory of the buffers that are kept for reuse.

    Apart ──KV caches need more than is theirs──▶ Lent ──they have not for hold_s──▶ Apart

Giving buffers back to the system and getting new ones costs time, and dropping those in use costs more, so they are
lent before a sequence has to wait or is preempted, and called back when nobody has needed them for a while.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never


@dataclass(frozen=True, slots=True)
class Apart:
    pass


@dataclass(frozen=True, slots=True)
class Lent:
    """Needed at `last_needed` (monotonic seconds) for the last time."""

    last_needed: float


SqueezeState: TypeAlias = Apart | Lent


def step(state: SqueezeState, *, demand: int, own: int, now: float, hold_s: float) -> SqueezeState:
    """`demand` is what KV caches hold, have reserved or wait for, `own` what is theirs while nothing is lent: bytes."""
    if demand > own:
        return Lent(now)
    match state:
        case Apart():
            return state
        case Lent():
            return state if now - state.last_needed < hold_s else Apart()
        case _:
            assert_never(state)
