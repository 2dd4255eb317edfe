"""Whether a client that hears nothing is to be told that work goes on.

Looked at once an interval. A comment is due when nothing was sent since the last look, but the worker made progress.
Without progress there is none, so a hang stays visible; when progress comes back, so do the comments.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """What there was to see: how many messages had been `sent`, and the worker's count of finished work."""

    sent: int
    progress: int


def comment_due(last: Look, now: Look) -> bool:
    return now.sent == last.sent and now.progress > last.progress
