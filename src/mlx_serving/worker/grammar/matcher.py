"""Where an answer is in the grammar that it must follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from mlx_serving.errors import GuidanceError


@dataclass(frozen=True, slots=True)
class Ends:
    """Which tokens may not come although the grammar is done, as long as it has others: `always`, and `early`, before
    the answer has `min_tokens` tokens."""

    always: frozenset[int] = frozenset()
    early: frozenset[int] = frozenset()
    min_tokens: int = 0


class Matcher:
    """A function of the tokens of the answer so far, kept up to date with `advance`.

    `mask` [words of 32 tokens] int32 has a bit for each token of the vocabulary that may come next. `is_complete`: the
    answer is whole, and nothing may be added. `error`: why it cannot go on. With either, all bits are set: what was
    launched meanwhile is thrown away.

    An end of the turn that must not come yet may, where the grammar is done and has nothing else. Errors name the
    parameter `field`; `on_exhausted` is told of one that others with copies of `inner` may have, too.
    """

    def __init__(
        self, inner: LLMatcher, words: int, ends: Ends, field: str, on_exhausted: Callable[[], None] = lambda: None
    ) -> None:
        self._inner = inner
        self._on_exhausted = on_exhausted
        self._field = field
        self._ends = ends
        self._always = _packed(ends.always, words)
        self._early = _packed(ends.always | ends.early, words)
        self._count = 0
        self.mask: NDArray[np.int32] = np.full((1, words), -1, dtype=np.int32)
        self.is_complete = False
        self.error: GuidanceError | None = None

    def begin(self, token_ids: Iterable[int]) -> None:
        """Take the tokens that the answer has already. Raises `GuidanceError` when they do not fit."""
        for token_id in token_ids:
            if not self._inner.consume_token(token_id):
                raise GuidanceError(
                    f"{self._field} does not allow token {token_id}, number {self._count + 1} of the tokens that were "
                    "delivered",
                    field="delivered",
                    given=token_id,
                )
            self._count += 1
        self._look_ahead(may_end=True)
        if self.error is not None:
            raise self.error

    def allows(self, token_id: int) -> bool:
        """Whether the token may come next."""
        return bool(int(self.mask[0, token_id // 32]) >> token_id % 32 & 1)

    def forced(self) -> list[int]:
        """The tokens that come next, one after the other, because nothing else is allowed; none where there is a
        choice, even if it is one of the end of the turn."""
        if self.is_complete or self.error is not None or np.count_nonzero(self.mask) != 1:
            return []
        return self._inner.compute_ff_tokens()

    def advance(self, token_id: int) -> None:
        """Take the next token."""
        if self.is_complete or self.error is not None:
            return
        if not self.allows(token_id):
            self._fail(f"What is banned, or else allowed, leaves no token that {self._field} allows")
            return
        if not self._inner.consume_token(token_id):
            self._give_up()
            return
        self._count += 1
        self._look_ahead(may_end=False)

    def _look_ahead(self, *, may_end: bool) -> None:
        if not self._inner.is_stopped():
            fill_next_token_bitmask(self._inner, self.mask)
        if self._inner.is_error():
            self._give_up()
        elif self._inner.is_stopped():
            self._stop(may_end=may_end)
        else:
            unwanted = self._early if self._count < self._ends.min_tokens else self._always
            others = self.mask & ~unwanted
            if others.any():
                self.mask = others
            elif not may_end:
                self._complete()

    def _stop(self, *, may_end: bool) -> None:
        if not self._inner.is_accepting():
            self._fail(f"Nothing can complete what {self._field} asks for")
        elif not may_end:
            self._complete()
        else:  # the end of the turn is all that is left
            fill_next_token_bitmask(self._inner, self.mask)

    def _complete(self) -> None:
        self.is_complete = True
        self.mask.fill(-1)

    def _give_up(self) -> None:
        self._on_exhausted()
        self._fail(f"{self._field} has become too complex to follow")

    def _fail(self, reason: str) -> None:
        self.error = GuidanceError(f"{reason}, after {self._count} tokens", field=self._field, given=self._count)
        self.mask.fill(-1)


def _packed(token_ids: Iterable[int], words: int) -> NDArray[np.int32]:
    bits = np.zeros(words * 32, dtype=np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)[None, :]
