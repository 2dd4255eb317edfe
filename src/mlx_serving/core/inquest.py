"""Whose fault it is when workers die: finding the one request that kills them, among many that only were there.

    enter(id) ─▶ in flight ──tokens──▶ cleared          leave(id), forget(id)
                     │ died(origin)
                     ▼
              losses of each grow ──▶ suspects: admitted one at a time, nobody beside ──▶ condemned

A death counts for every request in flight: a whole loss if the worker brought it about itself, a quarter if it came
from outside, nothing if it was planned. What was delivered since a request entered speaks for it: after
`clearing_tokens` tokens its losses are forgotten, because it is not stuck at the place where the last worker died.
After `suspected_after` losses a request is a suspect. While there are suspects, one of them is admitted at a time, who
has most losses first, and nobody else is. It is condemned when its losses reach `condemned_after` with a death that is
its doing alone; it is cleared by tokens or by its end. A death is not its doing alone if anybody was in flight beside
it, which those are who were cleared, or if anybody had left this worker before it was done, for the abort may have come
too late: then all who were there lose again, and the suspect is tried first, and alone, the next time. The others go
on.

There may be several workers. What is known of a request holds for all of them; suspects are tried in one of them, the
court, which is the one whose death made the first of them, and in the others everybody else goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlx_serving.core.bounds import at_least, greater_than
from mlx_serving.errors import DeathOrigin

LOSS: Mapping[DeathOrigin, float] = {
    DeathOrigin.INSIDE: 1.0,
    DeathOrigin.OUTSIDE: 0.25,
    DeathOrigin.PLANNED: 0.0,
}
"""What a death of each origin counts for."""


@dataclass(frozen=True, slots=True)
class InquestPolicy:
    """Losses that make a suspect, losses that condemn a suspect on trial, and tokens that clear anybody."""

    suspected_after: float = 2
    condemned_after: float = 3
    clearing_tokens: int = 8

    def __post_init__(self) -> None:
        greater_than("suspected_after", self.suspected_after, 0)
        at_least("condemned_after", self.condemned_after, self.suspected_after)
        at_least("clearing_tokens", self.clearing_tokens, 1)


@dataclass(slots=True)
class _Case:
    """`tokens` were delivered since the request entered the worker that lives now."""

    losses: float = 0.0
    tokens: int = 0


class Inquest:
    """Workers are numbered by the shell; each request is in flight in one at a time."""

    def __init__(self, policy: InquestPolicy) -> None:
        self._policy = policy
        self._cases: dict[str, _Case] = {}
        self._in_flight: dict[str, int] = {}
        self._suspects: set[str] = set()
        self._court: int | None = None
        self._on_trial: str | None = None
        self._unsettled: set[int] = set()

    def __len__(self) -> int:
        """Requests that something is known of."""
        return len(self._cases)

    @property
    def court(self) -> int | None:
        """The worker that takes suspects only; None while there are none."""
        return self._court

    def is_suspect(self, id: str) -> bool:  # noqa: A002
        """Whether a request may enter the court only."""
        return id in self._suspects

    def losses(self, id: str) -> float:  # noqa: A002
        """The losses that count against a request."""
        case = self._cases.get(id)
        return 0.0 if case is None else case.losses

    def is_on_trial(self, id: str) -> bool:  # noqa: A002
        return self._on_trial == id

    def enter(self, id: str, worker: int = 0) -> bool:  # noqa: A002
        """Whether a request may be given to this worker now; it is in flight then. Else ask again after a change."""
        if id in self._suspects:
            if worker != self._court or self._on_trial is not None or not self._is_most_suspected(id):
                return False
            self._on_trial = id
        elif worker == self._court:
            return False
        self._cases.setdefault(id, _Case()).tokens = 0
        self._in_flight[id] = worker
        return True

    def deliver(self, id: str, tokens: int) -> bool:  # noqa: A002
        """Note what a request in flight has delivered. True when that has cleared it: more need not be noted."""
        case = self._cases[id]
        case.tokens += tokens
        if case.tokens < self._policy.clearing_tokens:
            return False
        case.losses = 0.0
        self._acquit(id)
        return True

    def leave(self, id: str, *, aborting: bool = False) -> None:  # noqa: A002
        """A request is no longer in flight: it ended, or its worker did. `aborting`: the worker has not heard that it
        is to end, and may yet die of it."""
        worker = self._in_flight.pop(id, None)
        if worker is not None and aborting:
            self._unsettled.add(worker)
        if self._on_trial == id:
            self._on_trial = None

    def forget(self, id: str) -> None:  # noqa: A002
        """A request has ended for good. Unknown ids are ignored."""
        self.leave(id)
        self._cases.pop(id, None)
        self._acquit(id)

    def died(self, origin: DeathOrigin, worker: int = 0) -> str | None:
        """Judge a death of a worker: nobody is in flight in it any more. The id that is condemned, if one is."""
        loss = LOSS[origin]
        accused = [id for id, where in self._in_flight.items() if where == worker]  # noqa: A001
        tried = self._on_trial if self._on_trial in accused else None
        if tried is not None:
            self._on_trial = None
        for id in accused:  # noqa: A001
            del self._in_flight[id]
            case = self._cases[id]
            case.losses += loss
            if case.losses >= self._policy.suspected_after:
                self._suspects.add(id)
                self._court = worker if self._court is None else self._court
        alone = len(accused) == 1 and worker not in self._unsettled
        self._unsettled.discard(worker)
        if tried is None or not alone or not loss or self._cases[tried].losses < self._policy.condemned_after:
            return None
        return tried

    def _is_most_suspected(self, id: str) -> bool:  # noqa: A002
        return all(self._cases[other].losses <= self._cases[id].losses for other in self._suspects)

    def _acquit(self, id: str) -> None:  # noqa: A002
        self._suspects.discard(id)
        if not self._suspects:
            self._court = None
        if self._on_trial == id:
            self._on_trial = None
