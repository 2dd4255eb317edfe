"""How much of something may be used in a minute: a token bucket that may be in debt."""

from __future__ import annotations

import math


class RateLimit:
    """Holds a minute's worth at most, and fills evenly. What turns out to have been used after it was let in is taken
    as well, below nothing if need be: then nobody is let in until the debt is paid.

    `now` is any clock in seconds that does not run backwards; one that does is taken to stand still.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def left(self, now: float) -> int:
        """Whole units that may be used now."""
        return max(0, math.floor(self._level_at(now)))

    def take(self, amount: float, now: float) -> None:
        """Use so much; a negative amount gives back what was taken too much."""
        self._level = min(float(self.per_minute), self._level_at(now) - amount)
        self._at = max(self._at, now)

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount`, or all that there ever is, may be used; 0 when it may be now."""
        missing = min(amount, self.per_minute) - self._level_at(now)
        return max(0.0, missing * 60 / self.per_minute)

    def full_in_s(self, now: float) -> float:
        """Seconds until nothing is used any more."""
        return self.wait_s(self.per_minute, now)

    def rescaled(self, per_minute: int, now: float) -> RateLimit:
        """The same use under another limit."""
        used = self.per_minute - self._level_at(now)
        other = RateLimit(per_minute, now)
        other.take(used, now)
        return other

    def _level_at(self, now: float) -> float:
        gained = max(0.0, now - self._at) * self.per_minute / 60
        return min(float(self.per_minute), self._level + gained)
