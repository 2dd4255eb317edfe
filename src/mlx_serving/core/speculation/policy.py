"""When tokens are drafted, and how many.

A pass over the weights that checks a draft gives as many tokens as the model would have drawn itself, and one more. It
costs more than a pass for one token: the rows of a batch are padded to the longest draft, and the host must have read
what a row drew before it can look for a draft. So a draft must be likely enough, and the batch small enough.

    Drafting:   eager ── few drafts are accepted ──▶ resting ── after a number of tokens ──▶ eager, on trial

How likely it is, each sequence finds out by itself. Where drafts are poor it rests for some tokens, twice as many each
time; one on trial must do better than who was eager all the time, so that it does not waver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_serving.core.speculation.ngram_index import NgramIndex

Outcome = Literal["ngram", "draft", "unsupported", "structured", "draft_lost"]
"""How tokens were drafted, or why none were: `unsupported` by the caches of the model; the request asks for a
`structured` answer; the draft model was lost before it drafted any."""

DEFAULT_DRAFT_TOKENS = 10
READING_PART = 0.1
"""What it costs to read what was drawn before the next pass is launched: this part of a pass."""

_HOPE = 0.5  # of a drafted token to be accepted, before anything is known
_TRIAL_HOPE = 0.4
_POOR = 0.3  # below, a sequence rests
_GAIN = 0.15  # of one drafted token that was right, or was not
_FIRST_REST = 16  # tokens
_LAST_REST = 1024
_GOOD = 0.6  # above, rests are forgotten
_CAUGHT_UP_AT_ONCE = 4096
_LONGEST_PROMPT = 32_768  # tokens; each takes some 130 bytes


@dataclass(slots=True)
class Drafting:
    """One sequence. `position` is how many tokens of its answer were read; nobody drafts before it has reached
    `resumes_at`. `drafted` and `accepted` are tokens, `checks` the passes in which they were checked, `rests` how often
    it was given up. `index` is there where n-grams are looked up; its first `foreign` tokens are no part of
    the text.

    `is_possible`: something is drafted at all; else `outcome` says why not.
    """

    outcome: Outcome
    most: int = DEFAULT_DRAFT_TOKENS
    is_possible: bool = True
    acceptance: float = _HOPE
    resumes_at: int = 0
    rest: int = _FIRST_REST
    drafted: int = 0
    accepted: int = 0
    checks: int = 0
    rests: int = 0
    index: NgramIndex = field(default_factory=NgramIndex, repr=False)
    foreign: int = 0

    @classmethod
    def by_ngrams(cls, most: int, expected: Sequence[int] = ()) -> Drafting:
        """N-grams of a text that is yet to come, and of what it is thought to become."""
        index = NgramIndex(expected[:_LONGEST_PROMPT])
        return cls("ngram", most, index=index, foreign=len(index))

    def is_eager(self, position: int) -> bool:
        return self.is_possible and position >= self.resumes_at

    def look_up(self, prompt: Sequence[int], answer: Sequence[int], most: int) -> list[int]:
        """What an n-gram says that follows prompt and answer: `most` tokens or none. Of a long text that it has not
        seen yet it takes in a part each time, and says nothing until it knows all; of a very long prompt, the end."""
        index, total = self.index, len(prompt) + len(answer)
        known = max(len(prompt) - _LONGEST_PROMPT, 0) + len(index) - self.foreign
        end = min(known + _CAUGHT_UP_AT_ONCE, total)
        if known < len(prompt):
            index.extend(prompt[known:end])
        if end > len(prompt):
            index.extend(answer[max(known - len(prompt), 0) : end - len(prompt)])
        return index.propose(most) if end == total and most > 0 else []

    def checked(self, drafted: int, accepted: int, position: int) -> None:
        """Of `drafted` tokens so many were right; `position` counts what was read then."""
        self.drafted += drafted
        self.accepted += accepted
        self.checks += 1
        self._learn(accepted, accepted < drafted, position)

    def lose(self) -> None:
        """Nobody drafts for it any more."""
        self.is_possible = False
        if not self.drafted:
            self.outcome = "draft_lost"

    def missed(self, position: int) -> None:
        """A draft was likely, but not any more when the last token was read."""
        self._learn(0, True, position)

    def _learn(self, right: int, wrong: bool, position: int) -> None:
        self.acceptance = 1 - (1 - self.acceptance) * (1 - _GAIN) ** right
        if wrong:
            self.acceptance *= 1 - _GAIN
        if self.acceptance > _GOOD:
            self.rest = _FIRST_REST
        elif self.acceptance < _POOR:
            self.acceptance = _TRIAL_HOPE
            self.resumes_at = position + self.rest
            self.rest = min(2 * self.rest, _LAST_REST)
            self.rests += 1


@dataclass(frozen=True, slots=True)
class Hope:
    """A row whose draft has `tokens`, each right with this probability if those before it are."""

    acceptance: float
    tokens: int


def draft_width(hopes: Sequence[Hope], rows: int, pass_tokens: float, draft_tokens: float = 0.0) -> int:
    """How many tokens to draft for each row at most, for the most tokens in a time; 0: none at all.

    `hopes` are those of the `rows` that have drafts. A pass costs `pass_tokens` besides its tokens, and drafting one
    more for every row `draft_tokens`.
    """
    best, best_rate = 0, rows / (pass_tokens + rows)
    gain = 0.0
    likely = [1.0] * len(hopes)
    for width in range(1, max((hope.tokens for hope in hopes), default=0) + 1):
        for place, hope in enumerate(hopes):
            if hope.tokens >= width:
                likely[place] *= hope.acceptance
                gain += likely[place]
        cost = pass_tokens * (1 + READING_PART) + rows * (1 + width) + draft_tokens * width
        if (rows + gain) / cost > best_rate:
            best, best_rate = width, (rows + gain) / cost
    return best


@dataclass(frozen=True, slots=True)
class SpeculationCounts:
    """Since the start: passes that checked drafts (`checks`), tokens that were `drafted` and `accepted`, how often a
    sequence has stepped aside because its drafts were poor (`rests`), and how often a batch has gone on without a draft
    that it had, because it was too large for one so unlikely (`declined`)."""

    checks: int = 0
    drafted: int = 0
    accepted: int = 0
    rests: int = 0
    declined: int = 0

    def __add__(self, other: SpeculationCounts) -> SpeculationCounts:
        return SpeculationCounts(
            self.checks + other.checks,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.rests + other.rests,
            self.declined + other.declined,
        )
