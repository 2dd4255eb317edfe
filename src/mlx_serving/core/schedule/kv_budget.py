"""How much memory the KV caches may take, by prediction.

Reserving room for every sequence's prompt and max_tokens never fails and wastes most of the room, since most replies
end long before. Reserving the prompt alone fills the room and pays for each mistake with a prompt computed twice. So a
sequence reserves its prompt and a reply of the model's mean length: over several sequences the errors cancel. Nothing
is known at first, and then max_tokens are reserved. A reply that outgrows its reservation takes more, if need be from a
budget that has no more; then nobody is admitted until the reservations fit again, and only if the caches themselves run
into the budget is a sequence preempted. That one reserves its max_tokens when it comes back.

A budget that is lowered below what is held makes room by preempting, too. Who is preempted and needs more than there
is any more waits aside; who has not begun cannot be told when, and is refused.

Caches take more than their tokens: room to grow, and padding beside longer rows. How much is known only when it is
there. So besides the budget there is what memory has left for all caches as they lie there: where that is used up, one
sequence after another is preempted, but for the last, until it is not.
"""

from __future__ import annotations

from math import ceil, inf
from typing import Any

from mlx_serving.errors import ContextLengthExceeded, Overloaded

_GAIN = 1 / 8
MEMORY_RETRY_S = 10.0  # others give memory back when they do: nothing here tells when
_MIN_EXTENSION = 64  # tokens


class ReplyLength:
    """How many tokens the replies of a model have of late."""

    def __init__(self) -> None:
        self._mean = 0.0

    def learn(self, tokens: int) -> None:
        self._mean += (tokens - self._mean) * (_GAIN if self._mean else 1.0)

    def expected(self, max_tokens: int) -> int:
        """The length to reserve for a reply that may have `max_tokens`."""
        return min(max_tokens, ceil(self._mean)) if self._mean else max_tokens


def extension(generated: int) -> int:
    """How many tokens more are reserved for a reply that has outgrown its reservation with `generated` tokens."""
    return max(_MIN_EXTENSION, generated // 2)


class KvBudget:
    """Bytes of KV caches: `held` by computed tokens, `reserved` for what is expected. `limit` may change at any time;
    `ceiling` is what it can come to at best, and it rises by `lendable` as soon as somebody needs that, because others
    lend it. `most_held` is how far `held` may rise, as caches lie in memory now. `largest` is the most that any
    sequence was accepted with. When a model goes, `limit` rises by `relief` bytes for each of its bytes, but to no more
    than `most`."""

    def __init__(self, limit: int | None) -> None:
        self.limit = self.ceiling = inf if limit is None else limit
        self.lendable = 0
        self.most_held = inf
        self.held = 0
        self.reserved = 0
        self.largest = 0
        self.relief = 0.0
        self.most = inf

    def require(self, prompt_tokens: int, max_tokens: int, bytes_per_token: int) -> None:
        """Accept a sequence of that length. Raises `ContextLengthExceeded` when it can never fit, `Overloaded` when it
        cannot now. Where models could go instead, they have `lacking_bytes`: what these would have to take."""
        needed = (prompt_tokens + max_tokens - 1) * bytes_per_token
        if needed > self.ceiling:
            limit = int(self.ceiling // bytes_per_token) + 1
            raise ContextLengthExceeded(
                f"The prompt of {prompt_tokens} tokens and max_tokens ({max_tokens}) exceed the {limit} tokens that "
                f"the memory for KV caches can hold",
                field="max_tokens",
                limit=limit,
                given=prompt_tokens + max_tokens,
                **self._lacking(needed),
            )
        if needed > self._within_reach:
            limit = int(self._within_reach // bytes_per_token) + 1
            raise Overloaded(
                f"Memory is short: its KV caches can hold {limit} tokens for now, the prompt of {prompt_tokens} tokens "
                f"and max_tokens ({max_tokens}) need more",
                retry_after=MEMORY_RETRY_S,
                limit=limit,
                given=prompt_tokens + max_tokens,
                **self._lacking(needed),
            )
        self.largest = max(self.largest, needed)

    def weights_for(self, needed: float) -> int:
        """How many bytes of models would have to go so that KV caches can hold so many; 0 if there is no need, or it
        would not help."""
        if needed <= self._within_reach or needed > self.most or not self.relief:
            return 0
        return ceil((needed - self._within_reach) / self.relief)

    def weights_beside(self, needed: float) -> int:
        """The same for so many besides what is reserved, and what caches take beyond their tokens."""
        beyond = self.limit - self.bound if self.most_held < self.limit else 0
        return self.weights_for(self.reserved + beyond + needed)

    def _lacking(self, needed: int) -> dict[str, Any]:
        lacking = self.weights_for(needed)
        return {"lacking_bytes": lacking} if lacking else {}

    @property
    def _within_reach(self) -> float:
        return self.limit + self.lendable

    @property
    def room(self) -> float:
        return self.limit - self.held

    @property
    def bound(self) -> float:
        """The budget, as far as it is in memory: less where caches take more than their tokens."""
        return min(self.limit, self.most_held)

    @property
    def free(self) -> float:
        """What may be held besides; negative where caches take too much already."""
        return self.bound - self.held

    @property
    def overcommitted(self) -> bool:
        """Whether more is reserved than there is. If not, no step can run into the budget."""
        return self.reserved > self.bound
