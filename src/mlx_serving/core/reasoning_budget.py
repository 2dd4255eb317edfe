"""How long a model may think: after so many tokens the end of its reasoning is written for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_OPENING_TOKENS = 8
"""An answer in which no reasoning has begun after so many tokens has none."""


class ThoughtBudget:
    """Follows the tokens of an answer. Reasoning begins with the tokens `start`, or at once if it is `thinking`, and
    is over with the tokens `end`, or with others that spell `end_text`, which `decode` shows if it is given. After
    `tokens` of it, `forced` come, one by one.

    It depends on the tokens alone, so that it is the same after an interruption.
    """

    def __init__(
        self,
        tokens: int,
        start: Sequence[int],
        end: Sequence[int],
        forced: Sequence[int],
        *,
        thinking: bool,
        end_text: str = "",
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._tokens = tokens
        self._start = list(start)
        self._end = list(end)
        self._forced = list(forced)
        self._end_text = end_text
        self._decode = decode
        self._begun = 0  # of `seen`, when reasoning began
        self._thought: int | None = 0 if thinking else None  # tokens of reasoning; None before it begins
        self._written = 0  # of `forced`
        self._seen: list[int] = []
        self.is_over = not forced
        """Whether nothing will be forced any more."""

    def see(self, answer: Sequence[int]) -> int | None:
        """The token that must come after this answer, which begins with all that was seen before; None if any may."""
        for token in answer[len(self._seen) :]:
            self._seen.append(token)
            if not self.is_over:
                self._step(token)
        if self.is_over or self._thought is None or self._thought < self._tokens:
            return None
        return self._forced[self._written]

    def _step(self, token: int) -> None:
        if self._thought is None:
            if self._ends_with(self._start):
                self._thought = 0
                self._begun = len(self._seen)
            elif len(self._seen) >= _OPENING_TOKENS:
                self.is_over = True
        elif self._thought >= self._tokens:
            # A grammar may not allow it in the middle of a character: then it begins behind that.
            self._written = self._written + 1 if token == self._forced[self._written] else 0
            self.is_over = self._written == len(self._forced) or (self._written == 0 and self._spells_end())
        elif self._ends_with(self._end) or self._spells_end():
            self.is_over = True
        else:
            self._thought += 1

    def _ends_with(self, tokens: Sequence[int]) -> bool:
        return bool(tokens) and self._seen[-len(tokens) :] == list(tokens)

    def _spells_end(self) -> bool:
        if self._decode is None:
            return False
        first = max(self._begun, len(self._seen) - len(self._end_text.encode()))
        return self._end_text in self._decode(self._seen[first:])
