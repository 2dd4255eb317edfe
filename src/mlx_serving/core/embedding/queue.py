"""Inputs that are to become vectors, over all models: which of them the device computes next, in one forward pass.

    queue.add(...)                          a request is accepted, or refused with Overloaded
    expired = queue.expire(now)             their deadlines are over: tell their readers
    step = queue.next(now, tokens, bytes)   one pass of one model, to be computed; its inputs are in no other
    queue.remove(id)                        a request has ended, whatever is left of it

A pass computes as many tokens for each of its rows as the longest has. So the inputs of a request are taken longest
first, and a pass takes, beside those of the request whose turn it is, inputs of other requests for the same model that
are about as long. Requests take turns, those of higher priority first, and by caller within one priority: a text beside
a thousand others waits for a pass, not for a thousand. Waiting raises a priority as in the scheduler.

Time is monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

from mlx_serving.core.generation import Priority
from mlx_serving.core.schedule.deadlines import Deadlines
from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.core.schedule.scheduled_sequence import RANKS
from mlx_serving.core.schedule.scheduling import SchedulerPolicy, queue_full

PASS_TOKENS = 16
"""What a pass of its own costs, in tokens: a row may be padded by as many to join another one."""

_LONGER = 1.25  # a row may be padded to so many times its length
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddingPass:
    """Inputs of one model, as (request id, place), the longest first; `width` is the length of that one in tokens."""

    model: str
    rows: tuple[tuple[str, int], ...]
    width: int

    @property
    def tokens(self) -> int:
        """That are computed, padding included."""
        return self.width * len(self.rows)


@dataclass(slots=True)
class _Request:
    id: str
    model: str
    left: deque[tuple[int, int]]  # (tokens, place), the longest first
    rank: int
    caller: str
    since: float
    deadline: float
    turn: int = 0


@dataclass(slots=True)
class _Turns:
    """The turn that each caller had last; those of whom nothing is here any more are forgotten."""

    last: dict[str, int] = field(default_factory=dict[str, int])
    count: int = 0


class EmbeddingQueue:
    def __init__(self, policy: SchedulerPolicy) -> None:
        self._policy = policy
        self._requests: dict[str, _Request] = {}
        self._memory: dict[str, PrefillMemory] = {}
        self._turns = _Turns()
        self._deadlines = Deadlines(self._is_current)

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def __contains__(self, id: object) -> bool:  # noqa: A002
        return id in self._requests

    @property
    def next_deadline(self) -> float | None:
        """`expire` has nothing to say before this time."""
        return self._deadlines.next

    @property
    def has_work(self) -> bool:
        return any(one.left for one in self._requests.values())

    def add_model(self, model: str, memory: PrefillMemory) -> None:
        """`memory` is what computing an input takes until it is done."""
        self._memory[model] = memory

    def remove_model(self, model: str) -> None:
        """Forget a model that has no requests left."""
        del self._memory[model]

    def requests(self, model: str) -> list[str]:
        """The model's requests that have not ended."""
        return [one.id for one in self._requests.values() if one.model == model]

    def add(
        self,
        id: str,  # noqa: A002
        model: str,
        lengths: Mapping[int, int],
        now: float,
        *,
        priority: Priority = "normal",
        caller: str = "",
        deadline: float | None = None,
    ) -> None:
        """Accept a request: `lengths` has the tokens of each of its inputs by place. Raises `Overloaded` when too many
        are here already."""
        most = self._policy.max_num_seqs + self._policy.places(priority)
        if len(self._requests) >= most:
            raise queue_full(priority, len(self._requests), most, _RETRY_S)
        left = deque(sorted(((tokens, place) for place, tokens in lengths.items()), reverse=True))
        self._requests[id] = _Request(
            id, model, left, RANKS[priority], caller, now, inf if deadline is None else deadline
        )
        if deadline is not None:
            self._deadlines.add(deadline, id)

    def remove(self, id: str) -> bool:  # noqa: A002
        """Forget a request. False when it is not here."""
        one = self._requests.pop(id, None)
        if one is not None and all(other.caller != one.caller for other in self._requests.values()):
            self._turns.last.pop(one.caller, None)
        return one is not None

    def expire(self, now: float) -> list[str]:
        """Forget the requests whose deadlines are over; returns their ids."""
        expired = self._deadlines.due(now)
        for id in expired:  # noqa: A001
            self.remove(id)
        return expired

    def next(self, now: float, tokens: Mapping[str, float], memory_bytes: float) -> EmbeddingPass | None:
        """The next pass, of at most so many bytes and so many `tokens` of its model, padding included; one input alone
        may be more. None when nothing is left to compute."""
        waiting = sorted((one for one in self._requests.values() if one.left), key=lambda one: self._order(one, now))
        if not waiting:
            return None
        first = waiting[0]
        width = first.left[0][0]
        memory = self._memory[first.model]
        of_row = memory.size(0, width)
        most = max(1, int(min(tokens[first.model] // width, memory_bytes // of_row if of_row else inf, 1 << 20)))
        rows = list(self._taken(waiting, first, width, most))
        self._turns.count += 1
        self._turns.last[first.caller] = self._turns.count
        for id in {id for id, _ in rows}:  # noqa: A001
            self._requests[id].turn = self._turns.count
        return EmbeddingPass(first.model, tuple(rows), width)

    def _taken(self, waiting: list[_Request], first: _Request, width: int, most: int) -> Iterator[tuple[str, int]]:
        for one in waiting:
            if one.model != first.model:
                continue
            longer: list[tuple[int, int]] = []
            while one.left and one.left[0][0] > width:
                longer.append(one.left.popleft())
            while most and one.left and _joins(one.left[0][0], width):
                _, place = one.left.popleft()
                yield one.id, place
                most -= 1
            one.left.extendleft(reversed(longer))

    def _order(self, one: _Request, now: float) -> tuple[int, int, int, float]:
        aged = max(0, one.rank - int((now - one.since) / self._policy.ageing_s))
        return aged, self._turns.last.get(one.caller, 0), one.turn, one.since

    def _is_current(self, deadline: float, id: str) -> bool:  # noqa: A002
        one = self._requests.get(id)
        return one is not None and one.deadline == deadline


def _joins(tokens: int, width: int) -> bool:
    return width <= max(tokens + PASS_TOKENS, tokens * _LONGER)
