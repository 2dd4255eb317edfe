"""When a stream whose reader falls behind is paused, and when it goes on.

    Flowing ──pause_at_tokens are undelivered──▶ Paused
       ▲                                           │
       └──no more than resume_at_tokens are────────┘

Undelivered are the tokens that came and that the reader has not taken. Between the two marks nothing is said, so a
reader that is a little slower than the device costs two messages now and then, and none for each token. Tokens that
were under way when the pause was said still come, and are counted. A stream that moves to a new worker gets a control
of its own there: it flows, and is paused anew if its reader is still behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from mlx_serving.core.bounds import at_least


@dataclass(frozen=True, slots=True)
class FlowPolicy:
    """Marks in tokens that wait for the reader of one stream."""

    pause_at_tokens: int = 256
    resume_at_tokens: int = 64

    def __post_init__(self) -> None:
        at_least("pause_at_tokens", self.pause_at_tokens, 1)
        at_least("resume_at_tokens", self.resume_at_tokens, 0)
        if self.resume_at_tokens >= self.pause_at_tokens:
            raise ValueError(
                f"resume_at_tokens must be less than pause_at_tokens ({self.pause_at_tokens}), "
                f"got {self.resume_at_tokens}"
            )


class FlowSignal(Enum):
    """What the worker is to be told."""

    PAUSE = auto()
    RESUME = auto()


class FlowControl:
    """The flow of one stream. Mutates itself, because it is asked about every token."""

    __slots__ = ("_paused", "_policy", "_undelivered")

    def __init__(self, policy: FlowPolicy) -> None:
        self._policy = policy
        self._undelivered = 0
        self._paused = False

    def on_buffered(self, tokens: int) -> FlowSignal | None:
        """So many tokens came from the worker."""
        self._undelivered += tokens
        if self._paused or self._undelivered < self._policy.pause_at_tokens:
            return None
        self._paused = True
        return FlowSignal.PAUSE

    def on_consumed(self, tokens: int) -> FlowSignal | None:
        """The reader took so many of them."""
        self._undelivered -= tokens
        if not self._paused or self._undelivered > self._policy.resume_at_tokens:
            return None
        self._paused = False
        return FlowSignal.RESUME
