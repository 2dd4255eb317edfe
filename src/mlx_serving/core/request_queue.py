"""Who waits for a slot, and who is first."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from mlx_serving.core.schedule.scheduled_sequence import RANKS, Sequence

Line: TypeAlias = OrderedDict[str, Sequence]
"""Those of one priority, model and caller, in the order they are served."""


class RequestQueue:
    """First is the highest priority. A priority rises by one for every `ageing_s` that its oldest request has waited:
    so each gets places, and those it gets go round within it. For if waiting raised single requests, a caller who
    floods the queue would always have the oldest ones.

    Within a priority, first is the model with the fewest slots for its weight; then the caller who was served least;
    then who came first. Within a priority, a model and a caller nobody overtakes.

    Looking for the first costs as much as there are lines; the rest is constant. `work` is the sum of what those who
    wait are expected to compute (tokens).
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._by_rank: list[dict[tuple[str, str], Line]] = [{} for _ in RANKS]
        self.depth = 0
        self.work = 0

    def push(self, sequence: Sequence) -> None:
        self._line_of(sequence)[sequence.id] = sequence
        self._count(sequence)

    def push_front(self, sequence: Sequence) -> None:
        """For one who had its turn before: it goes before those who came after it."""
        line = self._line_of(sequence)
        line[sequence.id] = sequence
        line.move_to_end(sequence.id, last=False)
        self._count(sequence)

    def remove(self, sequence: Sequence) -> None:
        lines = self._by_rank[sequence.base_rank]
        key = sequence.lane.model, sequence.caller.name
        line = lines[key]
        del line[sequence.id]
        if not line:
            del lines[key]
        self.depth -= 1
        self.work -= sequence.work

    def first(self, now: float) -> tuple[Sequence, int] | None:
        """Who is entitled to the next place, and the rank to which its priority has risen."""
        oldest = min(
            (head for lines in self._by_rank for head in _heads(lines)),
            key=lambda head: head.claim_s(self._ageing_s),
            default=None,
        )
        if oldest is None:
            return None
        return min(_heads(self._by_rank[oldest.base_rank]), key=_turn), oldest.rank_at(now, self._ageing_s)

    def most_urgent(self) -> Sequence | None:
        """Who may displace others: ageing gives a claim on a place, not on somebody else's."""
        for lines in self._by_rank:
            if lines:
                return min(_heads(lines), key=_turn)
        return None

    def _line_of(self, sequence: Sequence) -> Line:
        return self._by_rank[sequence.base_rank].setdefault((sequence.lane.model, sequence.caller.name), OrderedDict())

    def _count(self, sequence: Sequence) -> None:
        expected = sequence.lane.replies.expected(sequence.max_tokens) - sequence.replied
        sequence.work = max(0, sequence.target - sequence.computed) + max(1, expected)
        self.depth += 1
        self.work += sequence.work


def _heads(lines: dict[tuple[str, str], Line]) -> list[Sequence]:
    return [next(iter(line.values())) for line in lines.values()]


def _turn(head: Sequence) -> tuple[float, int, float]:
    return head.lane.size / head.lane.weight, head.caller.served, head.arrived
