"""When small calls go to the worker, and how many of them in one message.

Calls that come in the same turn of the loop go together. While a message is under way, those that come gather, until it
is answered or a message is full: the busier the worker, the larger the messages, and nobody waits for a timer.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_serving.core.bounds import at_least


@dataclass(frozen=True, slots=True)
class BatchQueuePolicy:
    """`max_batch_size` calls share a message at most; 1 sends every call alone. A text of more than `max_text_chars`
    characters is no small call: it goes alone and at once, so that the others need not wait for it."""

    max_batch_size: int = 64
    max_text_chars: int = 16_384

    def __post_init__(self) -> None:
        at_least("max_batch_size", self.max_batch_size, 1)
        at_least("max_text_chars", self.max_text_chars, 0)


@dataclass(frozen=True, slots=True)
class BatchQueueStats:
    """Of each kind of call, since the start, or since the last reset: messages, the calls in them, and messages that
    were too large for the pipe, whose calls were then sent one by one; and the calls that wait now.
    `average_batch_size` is over all kinds."""

    tokenize_batches: int
    tokenize_requests: int
    tokenize_fallbacks: int
    tokenize_queue_size: int
    check_draft_batches: int
    check_draft_requests: int
    check_draft_fallbacks: int
    check_draft_queue_size: int
    average_batch_size: float


def calls_to_send(waiting: int, messages_under_way: int, policy: BatchQueuePolicy) -> int:
    """How many of those who wait, the first ones, go out as one message now; 0 is none yet."""
    if messages_under_way and waiting < policy.max_batch_size:
        return 0
    return min(waiting, policy.max_batch_size)
