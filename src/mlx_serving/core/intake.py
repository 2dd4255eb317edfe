"""How many requests may be under way at once, and when to come back for those that may not.

The queue of a worker has the same bound, but holds only what has reached it: not who waits for a worker to start, for a
model to be loaded or for a prompt to be tokenized. And a refusal by the worker has cost it a message and a prompt. So
the bound is kept before all of that, and whoever is over it costs next to nothing.
"""

from __future__ import annotations

from mlx_serving.core.generation import Priority
from mlx_serving.core.schedule.scheduling import SchedulerPolicy, queue_full, queue_slow

_BATCHES = 4
_UNKNOWN_RETRY_S = 5.0


class Departures:
    """How fast requests leave, of late, while any are here. Times are monotonic seconds.

    Requests that began together often leave together. So nothing is known before as many have left as `run` at once,
    and what is known is of some times that many.
    """

    def __init__(self, run: int) -> None:
        self._least = run
        self._decay = 1 - 1 / (_BATCHES * run)
        self._count = 0
        self._left = 0.0
        self._seconds = 0.0
        self._mark = 0.0

    def begin(self, now: float) -> None:
        """Somebody came when nobody was here."""
        self._mark = now

    def note(self, now: float) -> None:
        """Somebody left."""
        self._count += 1
        self._left = self._left * self._decay + 1
        self._seconds = self._seconds * self._decay + now - self._mark
        self._mark = now

    def seconds_for(self, requests: float) -> float | None:
        """How long it takes until so many have left; None while nothing is known."""
        return requests * self._seconds / self._left if self._count >= self._least else None


class Intake:
    """`workers` times what the policy of one worker lets run and wait; and, if `max_wait_s` is given, nobody who would
    have to wait longer than that by the pace of late. Who is over it gets `Overloaded`, with the time in which the half
    of that wait is over: whoever comes back finds room, and the device has not run dry."""

    def __init__(self, policy: SchedulerPolicy, workers: int = 1, max_wait_s: float | None = None) -> None:
        self._policy = policy
        self._workers = workers
        self._max_wait_s = max_wait_s
        self._departures = Departures(policy.max_num_seqs * workers)
        self._present = 0

    def __len__(self) -> int:
        """Requests that have entered and not left."""
        return self._present

    def reconfigure(self, policy: SchedulerPolicy, max_wait_s: float | None) -> None:
        """Keep to these from now on; who is here already stays."""
        self._policy = policy
        self._max_wait_s = max_wait_s

    def enter(self, priority: Priority, now: float) -> None:
        """Let one in; it must `leave`. Raises `Overloaded` when too many are here for one of its priority."""
        places = self._policy.places(priority) * self._workers
        waiting = self._present - self._policy.max_num_seqs * self._workers
        if waiting >= places:
            seconds = self._departures.seconds_for(waiting / 2)
            raise queue_full(priority, waiting, places, _UNKNOWN_RETRY_S if seconds is None else seconds)
        if self._max_wait_s is not None and waiting > 0:
            wait_s = self._departures.seconds_for(waiting)
            if wait_s is not None and wait_s > self._max_wait_s:
                raise queue_slow(waiting, wait_s, self._max_wait_s)
        if self._present == 0:
            self._departures.begin(now)
        self._present += 1

    def leave(self, now: float) -> None:
        self._present -= 1
        self._departures.note(now)
