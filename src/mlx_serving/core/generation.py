"""What is asked of a model and what comes back: the words every layer shares, and the one interface they nest by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, TypeAlias

from mlx_serving.core.images.image import Image, ImageSource
from mlx_serving.core.speculation.request import AS_CONFIGURED, Speculation


class FinishReason(StrEnum):
    STOP = "stop"  # the model ended its turn, or a stop string or stop token came
    LENGTH = "length"  # max_tokens or the end of the context
    ABORT = "abort"  # cancelled before it was done
    TOOL_CALLS = "tool_calls"  # the model ended its turn by calling tools


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
    """Messages for the model's own chat template, or for `chat_template` in Jinja; `template_kwargs` are handed to it,
    and `tools`, which are `{"type": "function", "function": {"name": …, "parameters": …}}` each. The parts
    `{"type": "image"}` of the messages' contents stand for `images`, in their order: those of `sources`, once they are
    read."""

    messages: tuple[Mapping[str, object], ...]
    template_kwargs: Mapping[str, object] = field(default_factory=dict[str, object])
    tools: tuple[Mapping[str, object], ...] = ()
    chat_template: str | None = None
    images: tuple[Image, ...] = ()
    sources: tuple[ImageSource, ...] = ()


Prompt: TypeAlias = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class EmbeddingInputs:
    """What is to become vectors, each by itself: texts, and token ids, which are used as they are.

    With `queries`, one for all inputs or one for each, the inputs are texts and a vector is one number: how well the
    text answers its query. An input of more tokens than the model takes is refused, or, if `truncate_to` is given, cut
    to that many; -1 is as many as the model takes. Of each vector the first `dimensions` are wanted. `delivered` are
    the places of inputs whose vectors the reader has.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    queries: tuple[str, ...] = ()
    dimensions: int | None = None
    truncate_to: int | None = None
    delivered: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of the input at `place`: little-endian 32-bit floats. `tokens` is how many the input had."""

    place: int
    values: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What form an answer must have. `kind` says how `value` describes it: a JSON Schema as a mapping, any JSON object
    (no value), a regular expression, one of several texts, a grammar in Lark's notation, the DTD of an XML document, or
    the JSON Schema of a YAML document as a mapping. `field` is what who asks
    for it calls the parameter: errors name it."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar", "xml", "yaml"]
    value: Mapping[str, object] | str | tuple[str, ...] | None = None
    field: str = field(default="structure", compare=False)


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools may or must be called: `named` must be called if it is given."""

    mode: Literal["auto", "none", "required"] = "auto"
    named: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. None means: what the model's own generation_config says, else the
    default of `SamplingDefaults`.

    Logits are changed first. `logit_bias` adds to those of token ids. `repetition_penalty` divides positive and
    multiplies negative logits of the last `repetition_context_size` tokens of prompt and answer (0: of all of them);
    1 is off. `presence_penalty` is subtracted once, `frequency_penalty` per occurrence, from tokens of the answer.
    `banned_token_ids` never come, nor does anything but `allowed_token_ids` if those are given. `bad_words` are banned
    in the ways the tokenizer writes them, alone and after a space: the last token of each is impossible after the
    others. Before the answer has `min_tokens` tokens, none that would end it is possible, and no stop string is
    looked for.

    temperature 0 is greedy. Otherwise logits are divided by it, and of the distribution that gives stays what `top_k`,
    `top_p` and `min_p` each leave (0, 1 and 0 are off); of that, what `typical_p` leaves (1 is off); of that, with
    probability `xtc_probability`, only the least likely of the tokens above `xtc_threshold`, if there are several, and
    those below. Spared from that are line breaks and the end of the turn.

    `stop` strings and `stop_token_ids` end the text and are not part of it. `ignore_eos`: the model's own end of the
    turn does not. `logprobs` asks for the log-probability of every token, and of this many of the likeliest ones in
    its place; they are the model's own, before everything above.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    banned_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    seed: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None


CacheOutcome = Literal["hit", "shared", "miss"]


@dataclass(slots=True)
class Served:
    """How a request, with its forks, is being served: layers write it while its stream opens, who asked reads it then.

    `cache` tells what it cost: `hit`, nothing; `shared`, what somebody else's request cost as well; `miss`, a
    computation of its own. None where nothing is kept and nothing shared. `prompt_tokens` is how many the prompt has,
    once that is counted. `images` are the prompt's pictures, which were read in `images_s` seconds.
    """

    cache: CacheOutcome | None = None
    prompt_tokens: int | None = None
    images: tuple[Image, ...] = ()
    images_s: float = 0.0

    def note(self, outcome: CacheOutcome) -> None:
        """Of several sequences, the dearest one speaks for all."""
        if self.cache is None or _COST[outcome] > _COST[self.cache]:
            self.cache = outcome


_COST: Mapping[CacheOutcome, int] = {"hit": 0, "shared": 1, "miss": 2}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `request_id` names its stream everywhere: in logs, events and on the pipe. Requests of
    one priority take fair turns by `caller`; those that name none are one caller. `fork_of` is the request_id of one
    with the same prompt, whose computation of it may be shared. `delivered` is the beginning of the answer, which its
    reader has already: generation goes on behind it, with everything as if it had just been generated.

    Who asks for vectors gives `EmbeddingInputs`; what concerns text means nothing then.
    Only requests of one `cache_salt` begin with what was kept of each other's prompts and answers.

    `structure` is the form that the answer must have. With `parse_output` the deltas have reasoning and calls of tools
    apart from the text. After `reasoning_budget` tokens of reasoning the model is made to answer. With `cut_to_fit` a
    `max_tokens` that is more than the context leaves, or the operator allows, is cut to that; else it is refused.
    `speculation` says whether tokens are drafted. Layers write into `served`, if it is there, how they serve it."""

    request_id: str
    model: str
    prompt: Prompt | EmbeddingInputs
    sampling: SamplingParams = SamplingParams()
    priority: Priority = "normal"
    caller: str = ""
    timeout_s: float | None = None
    fork_of: str | None = None
    delivered: tuple[int, ...] = ()
    structure: Structure | None = None
    parse_output: bool = False
    tool_choice: ToolChoice = ToolChoice()
    reasoning_budget: int | None = None
    cut_to_fit: bool = False
    cache_salt: str = ""
    speculation: Speculation = AS_CONFIGURED
    served: Served | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """Counts and times of one finished sequence, in seconds; `tokens_per_second` counts from the first token.
    `cached_tokens` of the prompt were not computed, because what the model makes of them was kept. Of the answer
    `accepted_tokens` were drafted before they came, out of `drafted_tokens`; a worker counts its own. `speculation`
    says how (`ngram`, `draft`), or why nobody drafted (see `core.speculation.policy.Outcome`); None where it was
    off."""

    prompt_tokens: int
    tokens_generated: int
    time_to_first_token: float
    tokens_per_second: float
    total_time: float
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    speculation: str | None = None


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

    @property
    def text(self) -> str:
        """The token for people's eyes: bytes that are no character by themselves are written like `\\xe2\\x82`."""
        return self.raw.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one place in the answer: of the token that came, and of the likeliest ones, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call: the first of each `index` has its `id` and the `name` of the tool, the others add to the JSON
    text of its `arguments`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a stream: new text, the ids it was decoded from, and, on the last only, why it ended, the stop string
    that ended it if one did, and the stats.

    `text` may be empty while the ids are not: an unfinished character, or text that may yet become a stop string.
    The first that a worker sends tells the `cached_tokens` of the stats, in case that it does not live to send those.
    `logprobs` has one entry for each id if they were asked for. Where a request has its output parsed, `text` is what
    the model says, `reasoning` what it thinks before, and `tool_calls` what it calls. `embeddings` come in any order.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stats: GenerationStats | None = None
    logprobs: tuple[Logprobs, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    stop: str | None = None
    cached_tokens: int | None = None
    embeddings: tuple[Embedding, ...] = ()


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
