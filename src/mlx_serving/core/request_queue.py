"""Who waits for a slot, and who is first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable
from math import inf
from typing import TypeAlias

from mlx_serving.core.schedule.scheduled_sequence import RANKS, Sequence

_PATIENCE = 8  # times as long as computing a prompt takes, it waits for shorter ones that came after it

_Place: TypeAlias = tuple[float, int, Sequence]
"""When it counts as having come; a number, so that no two are alike; and who."""


class _Line:
    """Those of one priority, model and caller, of whom there is at least one whenever anybody looks."""

    def __init__(self) -> None:
        self._came: OrderedDict[str, _Place] = OrderedDict()
        self._order: list[_Place] = []
        self._last = 0

    def __len__(self) -> int:
        return len(self._order)

    def push(self, sequence: Sequence, delay_s: float) -> None:
        self._last += 1
        self._put(sequence, sequence.arrived + delay_s, self._last)

    def push_front(self, sequence: Sequence) -> None:
        self._last += 1
        self._put(sequence, -inf, -self._last)
        self._came.move_to_end(sequence.id, last=False)

    def _put(self, sequence: Sequence, time: float, number: int) -> None:
        place = self._came[sequence.id] = (time, number, sequence)
        insort(self._order, place)

    def remove(self, sequence: Sequence) -> None:
        del self._order[bisect_left(self._order, self._came.pop(sequence.id))]

    @property
    def first(self) -> Sequence:
        """Who has the next turn."""
        return self._order[0][2]

    @property
    def oldest(self) -> Sequence:
        """Who has waited longest, or had its turn before."""
        return next(iter(self._came.values()))[2]


class RequestQueue:
    """First is the highest priority. A priority rises by one for every `ageing_s` that its oldest request has waited:
    so each gets places, and those it gets go round within it. For if waiting raised single requests, a caller who
    floods the queue would always have the oldest ones.

    Within a priority, first is the model with the fewest slots for its weight; then the caller who was served least;
    then who came first, where a prompt counts as having come later by a multiple of the time that computing it will
    take. So short prompts, and those of which much is kept, overtake long ones, which keeps the mean wait small; but
    nobody waits for who came `ageing_s` later, however long its prompt is.

    Looking for the first costs as much as there are lines; the rest is all but constant. `work` is the sum of what
    those who wait are expected to compute (tokens).
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._by_rank: list[dict[tuple[str, str], _Line]] = [{} for _ in RANKS]
        self.depth = 0
        self.work = 0

    def push(self, sequence: Sequence, kept: int = 0) -> None:
        """Queue one of which so many first tokens need not be computed."""
        seconds = sequence.lane.cost.prefill_s(kept, sequence.target - kept)
        self._line_of(sequence).push(sequence, min(_PATIENCE * seconds, self._ageing_s))
        self._count(sequence)

    def push_front(self, sequence: Sequence) -> None:
        """For one who had its turn before: it goes before those who came after it."""
        self._line_of(sequence).push_front(sequence)
        self._count(sequence)

    def remove(self, sequence: Sequence) -> None:
        lines = self._by_rank[sequence.base_rank]
        key = sequence.lane.model, sequence.caller.name
        line = lines[key]
        line.remove(sequence)
        if not line:
            del lines[key]
        self.depth -= 1
        self.work -= sequence.work

    def first(self, now: float) -> tuple[Sequence, int] | None:
        """Who is entitled to the next place, and the rank to which its priority has risen."""
        oldest = min(
            (line.oldest for lines in self._by_rank for line in lines.values()),
            key=lambda one: one.claim_s(self._ageing_s),
            default=None,
        )
        if oldest is None:
            return None
        return _next(self._by_rank[oldest.base_rank].values()), oldest.rank_at(now, self._ageing_s)

    def most_urgent(self) -> Sequence | None:
        """Who may displace others: ageing gives a claim on a place, not on somebody else's."""
        for lines in self._by_rank:
            if lines:
                return _next(lines.values())
        return None

    def _line_of(self, sequence: Sequence) -> _Line:
        return self._by_rank[sequence.base_rank].setdefault((sequence.lane.model, sequence.caller.name), _Line())

    def _count(self, sequence: Sequence) -> None:
        expected = sequence.lane.replies.expected(sequence.max_tokens) - sequence.replied
        sequence.work = max(0, sequence.target - sequence.computed) + max(1, expected)
        self.depth += 1
        self.work += sequence.work


def _next(lines: Iterable[_Line]) -> Sequence:
    return min((line.first for line in lines), key=_turn)


def _turn(head: Sequence) -> tuple[float, int, float]:
    return head.lane.size / head.lane.weight, head.caller.served, head.arrived
