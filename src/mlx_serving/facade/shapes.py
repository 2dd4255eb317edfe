"""What the engine hands out: handles, chunks, statistics. Every name has its camelCase twin in `to_object`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Literal, Self, TypeAlias, cast

import msgspec

from mlx_serving.core import generation
from mlx_serving.core.alias_table import AliasView
from mlx_serving.core.generation import Delta, FinishReason, Logprobs
from mlx_serving.errors import EngineError
from mlx_serving.wire.methods import LoadModelResult


def camel(name: str) -> str:
    """`tokens_per_second` -> `tokensPerSecond`."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


class Shape:
    """Base of what has a plain-object form: `{camelCase: value}`, without what is None."""

    __slots__ = ()

    def to_object(self) -> dict[str, object]:
        pairs = ((item.name, getattr(self, item.name)) for item in fields(self))  # pyright: ignore[reportArgumentType]  subclasses are dataclasses
        return {camel(name): _plain(value) for name, value in pairs if value is not None}

    toObject = to_object  # noqa: N815  the ancestor's spelling


def _plain(value: object) -> object:
    match value:
        case Shape() | EngineError():
            return value.to_object()
        case Mapping():
            items = cast("Mapping[str, object]", value).items()
            return {camel(name): _plain(item) for name, item in items if item is not None}
        case list() | tuple():
            return [_plain(item) for item in cast("Sequence[object]", value)]
        case _:
            return value


@dataclass(frozen=True, slots=True)
class ModelDescriptor(Shape):
    id: str
    source: Literal["huggingface", "local"]
    modality: Literal["text", "vision", "multimodal"] = "text"
    family: Literal["mlx-lm", "mlx-vlm"] = "mlx-lm"
    path: str | None = None


@dataclass(frozen=True, slots=True)
class ModelHandle(Shape):
    """A model that is in memory; a `draft` was loaded in order to draft for others. `metadata` has parameter_count,
    dtype, memory_usage (bytes), quantization, …"""

    descriptor: ModelDescriptor
    state: Literal["loading", "ready", "failed"]
    context_length: int
    metadata: dict[str, object] = field(default_factory=dict[str, object])
    draft: bool = False

    @property
    def id(self) -> str:
        return self.descriptor.id

    @classmethod
    def of(cls, name: str, reference: str, facts: LoadModelResult, *, draft: bool = False) -> ModelHandle:
        local = "/" not in reference or reference.startswith(("/", ".", "~"))
        return cls(
            descriptor=ModelDescriptor(
                id=name,
                source="local" if local else "huggingface",
                modality="vision" if facts.is_vision_model else "text",
                family="mlx-vlm" if facts.is_vision_model else "mlx-lm",
                path=facts.cached_path or None,
            ),
            state="ready",
            context_length=facts.context_length,
            metadata={
                "parameter_count": facts.parameter_count,
                "dtype": facts.dtype,
                "is_vision_model": facts.is_vision_model,
                "memory_usage": facts.memory_bytes,
                "quantization": facts.quantization,
                "adapter": facts.adapter,
                "kv_bits": facts.kv_bits,
                "kv_group_size": facts.kv_group_size,
                "kv_bytes_per_token": facts.kv_bytes_per_token,
                "model_type": facts.model_type,
                "vocab_size": facts.vocab_size,
                "capabilities": msgspec.structs.asdict(facts.capabilities),
            },
            draft=draft,
        )


@dataclass(frozen=True, slots=True)
class GenerationStats(Shape):
    """Times in seconds; `tokens_per_second` counts from the first token. `cached_tokens` of the prompt were not
    computed, because what the model makes of them was kept. `draft_tokens` were drafted, and `draft_tokens_accepted` of
    them are part of the answer; `speculation` says how, or why nobody drafted: see
    `core.speculation.policy.Outcome`."""

    tokens_generated: int
    tokens_per_second: float
    time_to_first_token: float
    total_time: float
    prompt_tokens: int
    model_id: str | None = None
    cached_tokens: int = 0
    draft_tokens: int = 0
    draft_tokens_accepted: int = 0
    speculation: str | None = None

    @classmethod
    def of(cls, measured: generation.GenerationStats, model: str) -> Self:
        return cls(
            tokens_generated=measured.tokens_generated,
            tokens_per_second=measured.tokens_per_second,
            time_to_first_token=measured.time_to_first_token,
            total_time=measured.total_time,
            prompt_tokens=measured.prompt_tokens,
            model_id=model,
            cached_tokens=measured.cached_tokens,
            draft_tokens=measured.drafted_tokens,
            draft_tokens_accepted=measured.accepted_tokens,
            speculation=measured.speculation,
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob(Shape):
    """A token and the natural logarithm of its probability in the model's own distribution, before any sampling.

    `bytes` is None for a special token, which is no part of the text; bytes of `token` that are no character by
    themselves are written like `\\xe2\\x82`. `top_logprobs` are the likeliest tokens in its place, best first.
    """

    token: str
    token_id: int
    logprob: float
    bytes: tuple[int, ...] | None
    top_logprobs: tuple[TokenLogprob, ...] = ()

    @classmethod
    def of(cls, place: Logprobs) -> Self:
        return replace(cls._of(place.chosen), top_logprobs=tuple(map(cls._of, place.top)))

    @classmethod
    def _of(cls, token: generation.TokenLogprob) -> Self:
        return cls(token.text, token.token_id, token.logprob, None if token.special else tuple(token.raw))


@dataclass(frozen=True, slots=True)
class ToolCallPiece(Shape):
    """More of a call: the first piece of each `index` has its `id` and the `name` of the tool, the others add to the
    JSON text of the `arguments`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall(Shape):
    """`arguments` are JSON text, as the model wrote it: an answer that was cut off may have half of it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TokenChunk(Shape):
    """New text. `token_ids` are the ids it came from; `token_id` is set when that is one. Where output is parsed,
    `reasoning` is new text that the model thinks, `tool_calls` more of what it calls, and neither is in `token`.

    If log-probabilities were asked for, `logprobs` has one entry for each id, and `logprob` is set when that is one.
    """

    type: Literal["token"] = field(default="token", init=False)
    token: str
    token_id: int | None = None
    token_ids: tuple[int, ...] = ()
    is_final: bool = False
    logprob: float | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCallPiece, ...] | None = None

    @classmethod
    def of(cls, delta: Delta) -> Self:
        logprobs = tuple(map(TokenLogprob.of, delta.logprobs))
        return cls(
            token=delta.text,
            token_id=delta.token_ids[0] if len(delta.token_ids) == 1 else None,
            token_ids=delta.token_ids,
            logprob=logprobs[0].logprob if len(logprobs) == 1 else None,
            logprobs=logprobs or None,
            reasoning=delta.reasoning or None,
            tool_calls=tuple(ToolCallPiece(*astuple(piece)) for piece in delta.tool_calls) or None,
        )


@dataclass(frozen=True, slots=True)
class MetadataChunk(Shape):
    """The last chunk of a good stream."""

    type: Literal["metadata"] = field(default="metadata", init=False)
    stats: GenerationStats
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class ErrorChunk(Shape):
    """The last chunk of a bad one."""

    type: Literal["error"] = field(default="error", init=False)
    error: EngineError


GeneratorChunk: TypeAlias = TokenChunk | MetadataChunk | ErrorChunk


@dataclass(frozen=True, slots=True)
class TokenizeResponse(Shape):
    tokens: list[int]
    token_strings: list[str]


@dataclass(frozen=True, slots=True)
class ModelAlias(Shape):
    """A name that means `model`. `history` are the models that it meant before, latest first; `configured` tells one
    that nobody has set. `profile` is what holds under the name where a request is silent."""

    name: str
    model: str
    configured: bool
    profile: Mapping[str, object] = field(default_factory=dict[str, object])
    history: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, view: AliasView) -> Self:
        before = [target.model for target in view.history]
        return cls(view.name, view.target.model, not view.is_set, view.target.profile.given(), before)


@dataclass(frozen=True, slots=True)
class CachedModel(Shape):
    model_id: str
    state: str


@dataclass(frozen=True, slots=True)
class ModelCacheStats(Shape):
    loaded_models: int
    models: list[CachedModel]
