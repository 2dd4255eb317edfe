"""Several answers to one request: how many, from which seeds, which are the best, and what they cost.

Every answer is a sequence of its own. They are numbered prompt by prompt: prompt * best_of + candidate. The candidates
of one prompt share its computation, where that is possible, and nothing else: each ends, fails and recovers alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from mlx_serving.core.generation import Delta, FinishReason, GenerationRequest, GenerationStats, Logprobs, Prompt
from mlx_serving.core.sampling_defaults import MAX_SEED
from mlx_serving.errors import InvalidRequest

MAX_SEQUENCES = 128
"""Of one request, over all its prompts: OpenAI's limit for `n`, and half of what the scheduler's default queue holds,
so that no single request locks the others out."""

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Choices:
    """`n` answers to each prompt, the best of `best_of` that are generated. `problems` tells whether that can be."""

    n: int = 1
    best_of: int = 1

    @property
    def ranked(self) -> bool:
        """Whether all must be generated before any can be shown."""
        return self.best_of > self.n

    def problems(self, prompts: int) -> Iterator[InvalidRequest]:
        """Everything that keeps this many answers from being given to so many prompts."""
        if not 1 <= self.n <= MAX_SEQUENCES:
            yield _out_of_range("n", f"a whole number of at least 1 and at most {MAX_SEQUENCES}", self.n)
        elif self.best_of < self.n:
            yield _out_of_range("best_of", f"at least n, which is {self.n}", self.best_of)
        elif self.best_of > MAX_SEQUENCES:
            yield _out_of_range("best_of", f"at most {MAX_SEQUENCES}", self.best_of)
        elif prompts * self.best_of > MAX_SEQUENCES:
            each = "" if self.best_of == 1 else f" of {self.best_of} answers each"
            yield InvalidRequest(
                f"prompt may ask for at most {MAX_SEQUENCES} answers in one request, got {prompts} prompts{each}",
                field="prompt",
                limit=MAX_SEQUENCES,
                given=prompts * self.best_of,
            )

    def expand(self, request: GenerationRequest, prompts: Sequence[Prompt]) -> tuple[GenerationRequest, ...]:
        """One request for each sequence. Each is `request` with a prompt, an id, a seed and a sibling of its own; the
        first keeps the id. The first candidate of a prompt keeps the seed: it is what would be answered without the
        others."""
        sampling = request.sampling
        if self.ranked and sampling.logprobs is None:
            sampling = replace(sampling, logprobs=0)
        requests: list[GenerationRequest] = []
        for prompt in prompts:
            first = _id_of(request, len(requests))
            for candidate in range(self.best_of):
                seed = None if sampling.seed is None else seed_of(sampling.seed, candidate)
                requests.append(
                    replace(
                        request,
                        request_id=_id_of(request, len(requests)),
                        prompt=prompt,
                        sampling=replace(sampling, seed=seed),
                        fork_of=first if candidate > 0 else None,
                    )
                )
        return tuple(requests)

    def select(self, completions: Sequence[Completion]) -> list[Completion]:
        """`n` of each prompt's candidates: the best ones first if there are more, else all in their order."""
        if not self.ranked:
            return list(completions)
        prompts = (completions[start : start + self.best_of] for start in range(0, len(completions), self.best_of))
        # Sorting is stable: of equals, the earlier candidate stays first.
        return [one for group in prompts for one in sorted(group, key=Completion.score, reverse=True)[: self.n]]

    def usage(self, stats: Sequence[GenerationStats]) -> Usage:
        """What all sequences cost: a prompt once, however many answers it has; every token that was generated, also of
        answers that are not shown."""
        return Usage(
            prompt_tokens=sum(first.prompt_tokens for first in stats[:: self.best_of]),
            completion_tokens=sum(one.tokens_generated for one in stats),
            cached_tokens=sum(first.cached_tokens for first in stats[:: self.best_of]),
            drafted_tokens=sum(one.drafted_tokens for one in stats),
            accepted_tokens=sum(one.accepted_tokens for one in stats),
            speculation=", ".join(dict.fromkeys(one.speculation for one in stats if one.speculation)) or None,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. `cached_tokens` are those of the prompts that were not computed. The last three are those
    of `GenerationStats`, of all its sequences."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    speculation: str | None = None

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` are JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A sequence that has ended. `logprobs` are those of its tokens, if they were asked for."""

    text: str
    finish_reason: FinishReason
    stats: GenerationStats
    logprobs: tuple[Logprobs, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def score(self) -> float:
        """Log-probability per token, as OpenAI ranks: a sum would favour the short. Without a token, the lowest."""
        if not self.logprobs:
            return -math.inf
        return math.fsum(place.chosen.logprob for place in self.logprobs) / len(self.logprobs)


@dataclass(slots=True)
class Transcript:
    """What one sequence has delivered so far."""

    _text: list[str] = field(default_factory=list[str])
    _logprobs: list[Logprobs] = field(default_factory=list[Logprobs])
    _reasoning: list[str] = field(default_factory=list[str])
    _calls: dict[int, ToolCall] = field(default_factory=dict[int, ToolCall])

    def add(self, delta: Delta) -> None:
        self._text.append(delta.text)
        self._logprobs += delta.logprobs
        self._reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            call = self._calls.get(piece.index) or ToolCall(piece.id or "", piece.name or "", "")
            self._calls[piece.index] = replace(call, arguments=call.arguments + piece.arguments)

    def completed(self, reason: FinishReason, stats: GenerationStats) -> Completion:
        calls = tuple(self._calls[index] for index in sorted(self._calls))
        return Completion("".join(self._text), reason, stats, tuple(self._logprobs), "".join(self._reasoning), calls)


def seed_of(seed: int, candidate: int) -> int:
    """The seed of a prompt's candidate, from 0 to `MAX_SEED`; the first one's is `seed` itself.

    Neighbouring seeds must not share candidates, as they would if candidates counted up from the seed. So the seed is
    scrambled before counting and after: the output function of SplitMix64 (Steele, Lea, Flood: Fast Splittable
    Pseudorandom Number Generators, 2014), twice.
    """
    return seed if candidate == 0 else _mixed(_mixed(seed) + candidate * _GOLDEN_GAMMA)


def _mixed(value: int) -> int:
    value &= MAX_SEED
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MAX_SEED
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MAX_SEED
    return value ^ value >> 31


def _id_of(request: GenerationRequest, number: int) -> str:
    return request.request_id if number == 0 else f"{request.request_id}-{number}"


def _out_of_range(name: str, rule: str, given: int) -> InvalidRequest:
    return InvalidRequest(f"{name} must be {rule}, got {given}", field=name, limit=rule, given=given)
