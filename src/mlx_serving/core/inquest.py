"""Whose fault it is when workers die: finding the one request that kills them, among many that only were there.

    enter(id) ─▶ in flight ──tokens──▶ cleared          leave(id), forget(id)
                     │ died(origin)
                     ▼
              losses of each grow ──▶ suspects: admitted one at a time, nobody beside ──▶ condemned

A death counts for every request in flight: a whole loss if the worker brought it about itself, a quarter if it came
from outside, nothing if it was planned. What was delivered since a request entered speaks for it: after
`clearing_tokens` tokens its losses are forgotten, because it is not stuck at the place where the last worker died.
After `suspected_after` losses a request is a suspect. While there are suspects, one of them is admitted at a time and
nobody else is: a death is then its doing alone. It is condemned when its losses reach `condemned_after`, and cleared by
tokens or by its end. The others go on.
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
    def __init__(self, policy: InquestPolicy) -> None:
        self._policy = policy
        self._cases: dict[str, _Case] = {}
        self._in_flight: set[str] = set()
        self._suspects: set[str] = set()
        self._on_trial: str | None = None

    def losses(self, id: str) -> float:  # noqa: A002
        """The losses that count against a request."""
        case = self._cases.get(id)
        return 0.0 if case is None else case.losses

    def is_on_trial(self, id: str) -> bool:  # noqa: A002
        return self._on_trial == id

    def enter(self, id: str) -> bool:  # noqa: A002
        """Whether a request may be given to the worker now; it is in flight then. Else ask again after a change."""
        if self._suspects:
            if self._on_trial is not None or id not in self._suspects:
                return False
            self._on_trial = id
        self._cases.setdefault(id, _Case()).tokens = 0
        self._in_flight.add(id)
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

    def leave(self, id: str) -> None:  # noqa: A002
        """A request is no longer in flight: it ended, or its worker did."""
        self._in_flight.discard(id)
        if self._on_trial == id:
            self._on_trial = None

    def forget(self, id: str) -> None:  # noqa: A002
        """A request has ended for good. Unknown ids are ignored."""
        self.leave(id)
        self._cases.pop(id, None)
        self._suspects.discard(id)

    def died(self, origin: DeathOrigin) -> str | None:
        """Judge a death of the worker: nobody is in flight any more. The id that is condemned, if one is."""
        loss = LOSS[origin]
        tried, self._on_trial = self._on_trial, None
        accused, self._in_flight = self._in_flight, set()
        for id in accused if tried is None else (tried,):  # noqa: A001
            case = self._cases[id]
            case.losses += loss
            if case.losses >= self._policy.suspected_after:
                self._suspects.add(id)
        if tried is None or not loss or self._cases[tried].losses < self._policy.condemned_after:
            return None
        return tried

    def _acquit(self, id: str) -> None:  # noqa: A002
        self._suspects.discard(id)
        if self._on_trial == id:
            self._on_trial = None
