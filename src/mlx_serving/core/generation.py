"""What is asked of a model and what comes back: the words every layer shares, and the one interface they nest by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, TypeAlias


class FinishReason(StrEnum):
    STOP = "stop"  # the model ended its turn, or a stop string or stop token came
    LENGTH = "length"  # max_tokens or the end of the context
    ABORT = "abort"  # cancelled before it was done


Priority = Literal["critical", "high", "normal", "low", "background"]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Raw text, without a chat template."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, used as they are."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the model's own chat template; `template_kwargs` are handed to it."""

    messages: tuple[Mapping[str, object], ...]
    template_kwargs: Mapping[str, object] = field(default_factory=dict[str, object])


Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. None means: what the model's own generation_config says, else the
    default of `SamplingDefaults`.

    temperature 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 are off. `repetition_penalty` 1 is off; it and the
    presence and frequency penalties look at recent tokens only. `logit_bias` adds to the logits of token ids.
    `stop` strings and `stop_token_ids` end the text and are not part of it. `logprobs` asks for the log-probability of
    every token, and of this many of the likeliest ones in its place.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `request_id` names its stream everywhere: in logs, events and on the pipe. Requests of
    one priority take fair turns by `caller`; those that name none are one caller. `fork_of` is the request_id of one
    with the same prompt, whose computation of it may be shared. `delivered` is the beginning of the answer, which its
    reader has already: generation goes on behind it, with everything as if it had just been generated."""

    request_id: str
    model: str
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    priority: Priority = "normal"
    caller: str = ""
    timeout_s: float | None = None
    fork_of: str | None = None
    delivered: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """Counts and times of one finished sequence, in seconds; `tokens_per_second` counts from the first token."""

    prompt_tokens: int
    tokens_generated: int
    time_to_first_token: float
    tokens_per_second: float
    total_time: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was: the natural logarithm of its probability.

    `raw` are the token's bytes, which need not be whole characters. A `special` token is no part of the text; its bytes
    are its name.
    """

    token_id: int
    logprob: float
    raw: bytes
    special: bool = False


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one place in the answer: of the token that came, and of the likeliest ones, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a stream: new text, the ids it was decoded from, and, on the last only, why it ended and the stats.

    `text` may be empty while the ids are not: an unfinished character, or text that may yet become a stop string.
    `logprobs` has one entry for each id if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stats: GenerationStats | None = None
    logprobs: tuple[Logprobs, ...] = ()


class Backend(Protocol):
    """Anything that can generate. Layers take a Backend and are one."""

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """Open the stream of `request`.

        Entering waits until the request is accepted: what cannot be served raises there, before any delta. Iterating
        yields deltas until one carries a finish_reason. Leaving the block, however it happens, aborts at once what is
        not finished.

        Raises any `EngineError`: at entry for what is wrong with the request, while iterating for what goes wrong
        later.
        """
        ...
