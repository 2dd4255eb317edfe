"""One sequence as the sampler sees it: what it asks for, and where it is.

Everything the sampler keeps besides follows from this, so that it can be made anew whenever the membership of a batch
changes, and for a sequence that goes on after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_serving.core.reasoning_budget import ThoughtBudget
from mlx_serving.core.sampling_defaults import ResolvedSampling
from mlx_serving.core.speculation.policy import Drafting
from mlx_serving.worker.grammar.matcher import Matcher

_MIN_TEMPERATURE = 1e-5  # below, logits over temperature leave the range of float32; the likeliest token is taken


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What the words of a request come to in the vocabulary of its model.

    `ends`: tokens that end the answer. `spared`: tokens that XTC never removes. `banned`: of each sequence, the last
    token is impossible where the answer ends with the others. All ids are in the vocabulary.
    """

    ends: frozenset[int] = frozenset()
    spared: frozenset[int] = frozenset()
    banned: tuple[tuple[int, ...], ...] = ()


NO_RULES = TokenRules()


@dataclass(slots=True)
class SamplingRow:
    """`drawn` are the tokens of the answer that the host has read, `position` counts those that were launched: the
    last one may not have been read yet. A token that was launched is fed at the next step. `matcher` has seen what was
    `drawn`. The answer has at most `max_tokens`, if that is known. `drafting` is there if it asked for it."""

    sampling: ResolvedSampling
    seed: int
    prompt: Sequence[int]
    drawn: list[int] = field(default_factory=list[int])
    position: int = 0
    rules: TokenRules = NO_RULES
    matcher: Matcher | None = None
    thought: ThoughtBudget | None = None
    max_tokens: int | None = None
    drafting: Drafting | None = None

    @property
    def is_sampled(self) -> bool:
        return self.sampling.temperature >= _MIN_TEMPERATURE

    def forbids(self, token: int) -> bool:
        """Whether bans make the token impossible behind what was `drawn`. Where they leave nothing, a sampler gives
        token 0 all the same."""
        asked, rules = self.sampling, self.rules
        if token in asked.banned_token_ids or token not in (asked.allowed_token_ids or (token,)):
            return True
        if len(self.drawn) < asked.min_tokens and token in rules.ends:
            return True
        return any(
            token == last and self.drawn[len(self.drawn) - len(before) :] == before for *before, last in rules.banned
        )

    def answered(self) -> list[int]:
        """The answer before the token that is fed next."""
        return self.drawn[: max(self.position - 1, 0)]

    def history(self, count: int) -> list[int]:
        """The last `count` tokens of prompt and answer before the one that is fed next, or all if they are fewer."""
        answer = self.answered()
        prompt = self.prompt if self.position > 0 else self.prompt[:-1]
        return [*prompt[max(len(prompt) + len(answer) - count, 0) :], *answer[max(len(answer) - count, 0) :]]
