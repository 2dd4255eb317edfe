"""Who gives way when slots or memory are short."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mlx_serving.core.schedule.scheduled_sequence import Sequence


def _worth(sequence: Sequence) -> tuple[bool, int, int, float]:
    """Ascending order is the order of being spared: who has a slot, the highest priority, who was preempted most, who
    came first."""
    return not sequence.has_slot, sequence.rank, -sequence.boosts, sequence.arrived


def least_worth(residents: Iterable[Sequence]) -> Sequence:
    return max(residents, key=_worth)


def victims_for(
    newcomer: Sequence,
    residents: Iterable[Sequence],
    *,
    slots_short: int,
    bytes_short: float,
    pinned: Collection[str],
) -> list[Sequence] | None:
    """The fewest whose going makes the place that `newcomer` lacks; None if there is no such place.

    Whoever has no slot gives way to anybody. Who has one gives way to a priority higher than its own was when it got
    it. `pinned` ids and the newcomer stay. Nobody is chosen in vain.
    """
    if slots_short <= 0 and bytes_short <= 0:
        return []
    able = [
        one
        for one in residents
        if one is not newcomer and one.id not in pinned and (not one.has_slot or one.rank > newcomer.base_rank)
    ]
    chosen: list[Sequence] = []
    for one in sorted(able, key=_worth, reverse=True):
        slots, size = _place(one)
        if (slots and slots_short > 0) or bytes_short > 0:
            chosen.append(one)
            slots_short -= slots
            bytes_short -= size
    if slots_short > 0 or bytes_short > 0:
        return None
    # A large place at the end may have made small ones before it needless.
    for one in tuple(chosen):
        slots, size = _place(one)
        if slots_short + slots <= 0 and bytes_short + size <= 0:
            chosen.remove(one)
            slots_short += slots
            bytes_short += size
    return chosen


def _place(sequence: Sequence) -> tuple[int, int]:
    """Slots and bytes that become free when it goes."""
    return int(sequence.has_slot), sequence.reserved * sequence.lane.kv_bytes_per_token
