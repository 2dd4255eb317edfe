"""How large a forward pass for vectors may be, so that streams of text beside it keep their pace.

A pass cannot be broken off. So it is cut to the time that a stream may wait: what is left of `target_gap_s` after a
step of the streams, but no less than such a step takes, because else vectors would never be computed beside streams
that need the target for themselves.
"""

from __future__ import annotations

from mlx_serving.core.embedding.queue import PASS_TOKENS

_GAIN = 0.25
_FIRST_TOKENS = 128
_GROWTH = 2.0
_MOST_TOKENS = 32_768


def seconds_beside(target_gap_s: float, step_s: float) -> float:
    """How long a pass may take. `step_s` is what a step of the streams takes, 0 when none are there."""
    return max(target_gap_s - step_s, min(step_s, target_gap_s))


class Pace:
    """What a token of one model takes, learned from its passes: about, and from too little rather than too much."""

    def __init__(self) -> None:
        self._token_s: float | None = None
        self._most = _FIRST_TOKENS

    def tokens_within(self, seconds: float) -> float:
        """As many tokens as are thought to take so long, but not many more than were ever computed at once."""
        if self._token_s is None:
            return self._most
        return min(seconds / self._token_s, self._most)

    def note(self, tokens: int, seconds: float) -> None:
        """A pass of so many tokens, padding included, has taken so long."""
        token_s = max(seconds, 1e-6) / (tokens + PASS_TOKENS)
        self._token_s = token_s if self._token_s is None else self._token_s + _GAIN * (token_s - self._token_s)
        self._most = min(_MOST_TOKENS, max(self._most, int(tokens * _GROWTH)))
