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
_MAX_RISE = 3.0  # a measurement counts no more than this many times what was expected


class PassCost:
    """`tokens` of a pass are those of all its rows, with padding."""

    def __init__(self, tokens: float) -> None:
        self.tokens = tokens
        """What a pass costs besides its tokens, in tokens."""
        self._prior = tokens
        self._sums = [0.0] * 5  # of 1, tokens, seconds, and the products of tokens with both

    def learn(self, tokens: int, duration_s: float) -> None:
        """A pass with so many tokens has taken so long, until its results were read."""
        count, x, t, *_ = self._sums
        if count:
            expected_s = t / (self.tokens * count + x) * (self.tokens + tokens)
            duration_s = min(duration_s, _MAX_RISE * expected_s)
        values = (1.0, tokens, duration_s, tokens * tokens, tokens * duration_s)
        self._sums = [total * _DECAY + value for total, value in zip(self._sums, values, strict=True)]
        self.tokens = self._fitted()

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
