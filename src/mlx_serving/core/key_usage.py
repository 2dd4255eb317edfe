"""What the owner of an API key may do, what he has done, and what he is told when it is too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlx_serving.core.generation import Priority
from mlx_serving.core.rate_limit import RateLimit

_DAY_S = 86_400
_BUSY_S = 1.0  # when one of his own requests ends, nobody knows

LimitName = Literal["concurrent requests", "requests per minute", "tokens per minute", "tokens per day"]


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None is no limit. A day is one of UTC; `expires_at` is Unix seconds."""

    models: frozenset[str] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    daily_tokens: int | None = None
    priority: Priority = "normal"
    expires_at: float | None = None

    def expired(self, wall: float) -> bool:
        return self.expires_at is not None and wall >= self.expires_at

    def allows(self, model: str) -> bool:
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit is reached, what it is, and in how many seconds it may be otherwise."""

    what: LimitName
    limit: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """One rate, for the `x-ratelimit-*` headers: `reset_s` is when all of it is there again."""

    what: Literal["requests", "tokens"]
    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class DaySpent:
    """Tokens of one day, which counts from 1970-01-01 UTC."""

    day: int
    tokens: int


class KeyUsage:
    """Of one key. `now` is a clock that does not run backwards, `wall` is Unix time; both in seconds."""

    def __init__(self, limits: KeyLimits, now: float, spent: DaySpent | None = None) -> None:
        self.limits = limits
        self._running = 0
        self._spent = spent or DaySpent(0, 0)
        self._requests = None if limits.requests_per_minute is None else RateLimit(limits.requests_per_minute, now)
        self._tokens = None if limits.tokens_per_minute is None else RateLimit(limits.tokens_per_minute, now)

    def reconfigure(self, limits: KeyLimits, now: float) -> None:
        """Go on under other limits; what was used was used."""
        self.limits = limits
        self._requests = _rescaled(self._requests, limits.requests_per_minute, now)
        self._tokens = _rescaled(self._tokens, limits.tokens_per_minute, now)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return self._running

    def enter(self, now: float, wall: float) -> Refusal | None:
        """Count a request in, or say why not. Tokens may be spent beyond their limits by those who are in already,
        because how many an answer takes is known afterwards; nobody enters until that is made up for."""
        limits = self.limits
        if limits.max_concurrent is not None and self._running >= limits.max_concurrent:
            return Refusal("concurrent requests", limits.max_concurrent, _BUSY_S)
        if limits.daily_tokens is not None and self.spent(wall).tokens >= limits.daily_tokens:
            return Refusal("tokens per day", limits.daily_tokens, _DAY_S - wall % _DAY_S)
        if self._requests is not None and (wait_s := self._requests.wait_s(1, now)) > 0:
            return Refusal("requests per minute", self._requests.per_minute, wait_s)
        if self._tokens is not None and (wait_s := self._tokens.wait_s(1, now)) > 0:
            return Refusal("tokens per minute", self._tokens.per_minute, wait_s)
        if self._requests is not None:
            self._requests.take(1, now)
        self._running += 1
        return None

    def leave(self) -> None:
        """A request that was counted in has ended."""
        self._running -= 1

    def spend(self, tokens: int, now: float, wall: float) -> None:
        """Tokens of a prompt or an answer; a negative number gives back what was assumed too much."""
        if self._tokens is not None:
            self._tokens.take(tokens, now)
        today = self.spent(wall)
        self._spent = DaySpent(today.day, max(0, today.tokens + tokens))

    def spent(self, wall: float) -> DaySpent:
        """What was spent today."""
        day = int(wall // _DAY_S)
        return self._spent if self._spent.day == day else DaySpent(day, 0)

    def allowances(self, now: float) -> list[Allowance]:
        """The rates that are limited."""
        told: list[Allowance] = []
        if self._requests is not None:
            told.append(_allowance("requests", self._requests, now))
        if self._tokens is not None:
            told.append(_allowance("tokens", self._tokens, now))
        return told


def _allowance(what: Literal["requests", "tokens"], rate: RateLimit, now: float) -> Allowance:
    return Allowance(what, rate.per_minute, rate.left(now), rate.full_in_s(now))


def _rescaled(rate: RateLimit | None, per_minute: int | None, now: float) -> RateLimit | None:
    if per_minute is None:
        return None
    return RateLimit(per_minute, now) if rate is None else rate.rescaled(per_minute, now)
