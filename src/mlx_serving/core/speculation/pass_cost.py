"""What a pass over the weights costs besides its tokens, learned from passes of different widths.

    duration = base + tokens x each;  base / each is what the pass costs, in tokens

A line through what was measured lately, and through what was thought before: passes that are all of one width say
nothing about it, and leave it at that.
"""

from __future__ import annotations

_DECAY = 0.95  # a measurement
_PRIOR = 1.5  # measurements that what was thought before counts as
_SPREAD = 12  # tokens between the two of them
_FEWEST, _MOST = 4.0, 512.0
_GAIN = 0.2  # of a measurement of what drafting costs
_MAX_RISE = 3.0  # a measurement counts no more than this many times what was expected


class DraftCost:
    """What it costs to have a draft model draft one token for every row of a batch: `part` of a pass of the model it
    drafts for, which is thought to be `prior` until it is measured."""

    def __init__(self, prior: float) -> None:
        self.part = prior
        self._prior = prior

    def learn(self, tokens: int, duration_s: float, pass_s: float) -> None:
        """Drafting so many for each row has taken so long, and a pass of the other model takes `pass_s`."""
        if pass_s > 0 and tokens > 0:
            self.part += _GAIN * (min(duration_s / tokens / pass_s, _MAX_RISE * self.part) - self.part)

    def doubt(self) -> None:
        """It was not asked because of what it costs: see `PassCost.doubt`."""
        self.part += (1 - _DECAY) * (self._prior - self.part)


class PassCost:
    """`tokens` of a pass are those of all its rows, with padding."""

    def __init__(self, tokens: float) -> None:
        self.tokens = tokens
        """What a pass costs besides its tokens, in tokens."""
        self._prior = tokens
        self._sums = [0.0] * 5  # of 1, tokens, seconds, and the products of tokens with both

    def learn(self, tokens: int, duration_s: float) -> None:
        """A pass with so many tokens has taken so long, until its results were read."""
        if expected_s := self.expected_s(tokens):
            duration_s = min(duration_s, _MAX_RISE * expected_s)
        values = (1.0, tokens, duration_s, tokens * tokens, tokens * duration_s)
        self._sums = [total * _DECAY + value for total, value in zip(self._sums, values, strict=True)]
        self.tokens = self._fitted()

    def doubt(self) -> None:
        """Something was not tried because of what it says: what was measured counts less, so that it is in the end."""
        self._sums = [total * _DECAY for total in self._sums]
        if self._sums[0]:
            self.tokens = self._fitted()

    def expected_s(self, tokens: int) -> float:
        """How long a pass with so many tokens is thought to take; 0 while nothing was measured."""
        count, x, t, *_ = self._sums
        return t / (self.tokens * count + x) * (self.tokens + tokens) if count else 0.0

    def _fitted(self) -> float:
        count, x, t, xx, xt = self._sums
        each_s = t / (self._prior * count + x)  # as it would be if the prior were right
        middle = x / count
        for place in (middle - _SPREAD / 2, middle + _SPREAD / 2):
            thought_s = each_s * (self._prior + place)
            count += _PRIOR / 2
            x += place * _PRIOR / 2
            t += thought_s * _PRIOR / 2
            xx += place * place * _PRIOR / 2
            xt += place * thought_s * _PRIOR / 2
        slope = (count * xt - x * t) / (count * xx - x * x)
        base = (t - slope * x) / count
        if slope <= 0 or base >= _MOST * slope:
            return _MOST
        return max(base / slope, _FEWEST)
