"""Which model is likely to be wanted next, by the order in which models were wanted before.

Every switch from one model to another counts one, and counts less with each later switch away from the first. A guess
is made when enough switches were seen, and when one successor has most of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_serving.core.bounds import at_least, between


@dataclass(frozen=True, slots=True)
class SwitchPolicy:
    """A successor with the part `likely` of at least `min_switches` is a guess; each switch counts `decay` times as
    much as the one after it."""

    min_switches: float = 1.5
    likely: float = 0.5
    decay: float = 0.9

    def __post_init__(self) -> None:
        at_least("min_switches", self.min_switches, 1)
        between("likely", self.likely, 0, 1)
        between("decay", self.decay, 0, 1)


class Switches:
    """Models by name, as they are used."""

    def __init__(self, policy: SwitchPolicy) -> None:
        self._policy = policy
        self._last: str | None = None
        self._counts: dict[str, dict[str, float]] = {}

    def use(self, model: str) -> str | None:
        """It is used now. Returns who is likely to be wanted after it, if this was a switch and there is a guess."""
        last, self._last = self._last, model
        if last == model:
            return None
        if last is not None:
            counts = {name: count * self._policy.decay for name, count in self._counts.get(last, {}).items()}
            counts[model] = counts.get(model, 0.0) + 1
            self._counts[last] = counts
        return self._guess(model)

    def forget(self, model: str) -> None:
        """It is not served any more."""
        self._counts.pop(model, None)
        for counts in self._counts.values():
            counts.pop(model, None)
        if self._last == model:
            self._last = None

    def _guess(self, model: str) -> str | None:
        counts = self._counts.get(model, {})
        total = sum(counts.values())
        if not counts or total < self._policy.min_switches:
            return None
        best = max(counts, key=lambda name: counts[name])
        return best if counts[best] >= self._policy.likely * total else None
