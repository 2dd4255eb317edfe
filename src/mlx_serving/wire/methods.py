"""Every method of the worker, with the types of its parameters and its result.

The client calls through these values and the worker's routes are built from them, so both ends are checked against one
table. Names, parameters and results are the ancestor's where it had them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from mlx_serving.core.generation import Priority
from mlx_serving.core.images.image import Image, ImageDetail
from mlx_serving.core.runtime_telemetry import RuntimeTelemetry
from mlx_serving.core.speculation.report import CompatibilityReport
from mlx_serving.core.speculation.request import MAX_DRAFT_TOKENS, SpeculationMethod

P = TypeVar("P")
R = TypeVar("R")

PROTOCOL_VERSION = "json-rpc-2.0"
STEP_FRAMES = "msgpack-frames-1"
PROTOCOLS = (PROTOCOL_VERSION, STEP_FRAMES)

MAX_TEXT_CHARS = 1_048_576
ModelId = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
StreamId = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
EmbedInput = (
    Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)] | Annotated[list[TokenId], msgspec.Meta(min_length=1)]
)


class Params(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of parameters: an unknown field is an error that names it."""


class NoParams(Params):
    pass


class RuntimeInfoParams(Params):
    """`protocols` the caller can read, best first: `msgpack-frames-1` turns notifications into binary frames from the
    next message on. `heartbeat_interval_s` starts heartbeats."""

    protocols: list[str] = []
    heartbeat_interval_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None


class MemoryInfo(msgspec.Struct, frozen=True):
    """Bytes. `rss` and `vms` of the process; `active`, `cache` and `peak` of MLX's allocator. `capacity` is what models
    may take as things are, and `limited_by` what allows no more; `weights` take their part of it, `kv_budget` is what
    KV caches may hold now."""

    rss: int
    vms: int
    active: int
    cache: int
    peak: int
    capacity: int = 0
    limited_by: str = ""
    weights: int = 0
    kv_budget: int = 0


class BlasInfo(msgspec.Struct, frozen=True):
    """`name` of the BLAS that MLX's CPU backend calls; `path` is empty for the one its wheel carries."""

    name: str
    path: str


class RuntimeInfoResult(msgspec.Struct, frozen=True):
    """`device_name` is MLX's own word for the processor or GPU; `working_set_bytes` what Metal recommends to stay
    below."""

    version: str
    mlx_version: str
    mlx_lm_version: str
    protocol: str
    protocols: list[str]
    notifications: str
    capabilities: list[str]
    mlx_supported: bool
    device: str
    metal: bool
    blas: BlasInfo
    memory: MemoryInfo
    pid: int
    device_name: str = ""
    working_set_bytes: int | None = None


class LoadedModelState(msgspec.Struct, frozen=True):
    model_id: str
    state: Literal["ready"]
    type: Literal["text", "vision", "embedding", "reranker"]
    active_streams: int = 0


class RuntimeStateResult(msgspec.Struct, frozen=True):
    """`active_streams` wait, run or are paused; `paused_streams` are those of them that `pause` holds. `restart_count`
    is what the supervisor passed in: how often this worker was restarted."""

    loaded_models: list[LoadedModelState]
    active_streams: int
    restart_count: int
    paused_streams: int = 0


ImageAttention = Literal["causal", "mutual"]


class ModelCapabilities(msgspec.Struct, frozen=True):
    """What the architecture can do, found by trying it on the loaded model.

    batch:          sequences decode together. Otherwise they take turns.
    batch_prefill:  prompts of different lengths are computed together.
    trim:           its cache can be cut back to any earlier length.
    quantise_cache: its cache can be packed, in 8 or in 4 bits.
    draft:          it can verify a draft and be one: both cut rejected tokens off.
    images:         how the tokens of an image see each other: each those before it, or all of them; None: it takes no
                    images.
    """

    batch: bool
    batch_prefill: bool
    trim: bool
    quantise_cache: bool
    draft: bool
    images: ImageAttention | None = None


class KnownCapabilities(msgspec.Struct, frozen=True):
    """What was found of a model with this `config_digest` (see `LoadModelResult`). For another one it is found out
    anew."""

    config_digest: str
    capabilities: ModelCapabilities


Pooling = Literal["mean", "cls", "last", "max", "mean_sqrt_len"]
"""How the vectors of an input's tokens become one: their mean, the first, the last, the largest of each dimension, or
their sum over the square root of their number."""


class EmbeddingFacts(msgspec.Struct, frozen=True):
    """Of a model that does not write text but makes vectors of `dimensions` numbers, or `scores` pairs of texts.
    `normalised` vectors have the length 1."""

    dimensions: int
    pooling: Pooling | None
    normalised: bool
    scores: bool = False


class LoadModelParams(Params):
    """`model_id` is a hub id, a path or a known alias. `local_path` overrides where it is read from. `tool_parser` and
    `reasoning_parser` name how the model writes calls and reasoning, or say `none`; left out, its files tell. `known`
    is what an earlier worker found out of it. `quantization` (`4bit`, `8bit-g32`, `mxfp4`, `none`) packs its weights as
    they are read; the adapter at `adapter_path` is computed beside them, or added to them if `fuse_adapter`. `kv_bits`
    packs its KV caches, in groups of `kv_group_size`. `pooling` has a model that writes text make vectors instead.
    `draft` refuses one that cannot draft for others."""

    model_id: ModelId
    revision: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    local_path: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    context_length: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    quantization: str | None = None
    draft: bool = False
    trust_remote_code: bool = False
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    pooling: Pooling | None = None
    known: KnownCapabilities | None = None
    adapter_path: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    fuse_adapter: bool = False
    kv_bits: int | None = None
    kv_group_size: int | None = None


class LoadModelResult(msgspec.Struct, frozen=True):
    """`parameter_count` counts weights, `memory_bytes` what they take, also where other models share them.
    `config_digest` is the SHA-256 of its config.json; of a model that sees, or that is packed or adapted as it is
    loaded, one of what says how as well. `kv_bits` and `kv_group_size` say how its KV caches are packed, None that they
    are not; `kv_bytes_per_token` is what a token takes in them. Of `memory_bytes`, `own_bytes` are its own, the rest is
    shared by all who have the same `base`; None where it shares nothing."""

    model_id: str
    state: Literal["ready"]
    context_length: int
    parameter_count: int
    dtype: str
    is_vision_model: bool
    cached_path: str
    model_type: str
    vocab_size: int
    memory_bytes: int
    has_chat_template: bool
    capabilities: ModelCapabilities
    config_digest: str
    quantization: str | None
    eos_token_ids: list[int]
    adapter: str | None = None
    embedding: EmbeddingFacts | None = None
    kv_bits: int | None = None
    kv_group_size: int | None = None
    kv_bytes_per_token: int | None = None
    own_bytes: int | None = None
    base: str | None = None


class UnloadModelParams(Params):
    model_id: ModelId
    force: bool = False


class SuccessResult(msgspec.Struct, frozen=True):
    success: bool = True


class Guidance(Params):
    """The form that an answer must have: `schema` is a JSON Schema, nothing for any JSON object, a regular expression,
    texts to choose from, a grammar in Lark's notation or llama.cpp's GBNF, or the DTD of an XML document; for
    YAML it is a JSON Schema. `field` is what errors call it."""

    mode: Literal["json_schema", "json_object", "regex", "choice", "grammar", "xml", "yaml"]
    schema: dict[str, Any] | list[str] | str | None = None
    field: str = "guidance.schema"


class ImageParam(Params):
    """See `core.images.image.Image`."""

    data: bytes
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    width: Annotated[int, msgspec.Meta(ge=1)]
    height: Annotated[int, msgspec.Meta(ge=1)]
    detail: ImageDetail = "auto"


def image_params(images: Iterable[Image]) -> list[ImageParam]:
    return [
        ImageParam(data=image.data, digest=image.digest, width=image.width, height=image.height, detail=image.detail)
        for image in images
    ]


class GenerateParams(Params):
    """One of `prompt`, `prompt_tokens` and `messages` is required. `messages` go through the model's chat template, or
    the one that is given; their parts `{"type": "image"}` stand for `images`, in their order.
    Higher priorities go first; requests of one priority take fair turns by `caller`. `fork_of` is a stream with the
    same prompt, whose computation of it may be shared. `delivered` are the first tokens of the answer, which the caller
    has: the stream goes on behind them, and counts them in `max_tokens`. A stream that has not ended after `timeout_s`
    fails with a timeout, whether it waits, runs or is paused. With `parse_output` rows tell reasoning and calls of
    `tools` apart from the text. `named_tool` must be called; after `reasoning_budget` tokens of reasoning the model
    must answer. With `cut_to_fit` a `max_tokens` that is more than the context leaves is cut to that. Prompts of
    another `cache_salt` share nothing with this one. `speculation`, `draft_model_id`, which must be loaded,
    `num_draft_tokens` and `prediction` are those of `core.speculation.request.Speculation`; to the worker `auto`
    without a draft model is `ngram`. `streaming` is accepted for the ancestor's sake: the worker always streams."""

    model_id: ModelId
    prompt: Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)] | None = None
    prompt_tokens: list[TokenId] | None = None
    messages: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = {}
    chat_template: Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)] | None = None
    images: list[ImageParam] = []
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["auto", "none", "required"] = "auto"
    named_tool: str | None = None
    parallel_tool_calls: bool = True
    parse_output: bool = False
    reasoning_budget: Annotated[int, msgspec.Meta(ge=0)] | None = None
    stream_id: StreamId | None = None
    max_tokens: int | None = None
    cut_to_fit: bool = False
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
    logit_bias: dict[int, float] = {}
    banned_token_ids: list[int] = []
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = []
    seed: int | None = None
    min_tokens: int = 0
    stop_sequences: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: int | None = None
    priority: Priority = "normal"
    caller: Annotated[str, msgspec.Meta(max_length=256)] = ""
    fork_of: StreamId | None = None
    delivered: Annotated[list[TokenId], msgspec.Meta(max_length=1_000_000)] = []
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    cache_salt: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    speculation: SpeculationMethod = "auto"
    draft_model_id: ModelId | None = None
    num_draft_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_DRAFT_TOKENS)] | None = None
    prediction: Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)] | None = None
    streaming: bool = True
    guidance: Guidance | None = None


class GenerateResult(msgspec.Struct, frozen=True):
    """`started_at` is Unix time in seconds."""

    stream_id: str
    started_at: float
    prompt_tokens: int


class EmbedParams(Params):
    """See `core.generation.EmbeddingInputs`. What comes back names each input by its place in `inputs`, or by what
    `places` says in its stead, one for each. The vectors come in rows of the stream, the shortest inputs last."""

    model_id: ModelId
    inputs: Annotated[list[EmbedInput], msgspec.Meta(min_length=1)]
    places: list[int] = []
    queries: list[Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)]] = []
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    truncate_to: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    stream_id: StreamId | None = None
    priority: Priority = "normal"
    caller: Annotated[str, msgspec.Meta(max_length=256)] = ""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] | None = None


class AbortParams(Params):
    stream_id: StreamId


class AbortResult(msgspec.Struct, frozen=True):
    """`aborted` is false when the stream had already ended or never was."""

    aborted: bool


class StreamParams(Params):
    """Of `pause` and `resume`. A paused stream takes no steps and no slot, and keeps its KV cache while memory lasts;
    what was under way when it was paused still comes."""

    stream_id: StreamId


class StreamResult(msgspec.Struct, frozen=True):
    """`found` is false when the stream has ended or never was."""

    found: bool


class TokenizeParams(Params):
    model_id: ModelId
    text: Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)]
    add_special_tokens: bool = True


class TokenizeResult(msgspec.Struct, frozen=True):
    tokens: list[int]
    token_strings: list[str]


class TokenizeChatParams(Params):
    """A conversation, as in `generate`. What it makes is the prompt that the model would get."""

    model_id: ModelId
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    template_kwargs: dict[str, Any] = {}
    tools: list[dict[str, Any]] = []
    chat_template: Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)] | None = None
    images: list[ImageParam] = []


class DetokenizeParams(Params):
    model_id: ModelId
    tokens: Annotated[list[TokenId], msgspec.Meta(max_length=1_000_000)]
    skip_special_tokens: bool = False


class DetokenizeResult(msgspec.Struct, frozen=True):
    text: str


class CheckDraftParams(Params):
    """Two models that are loaded: see `core.speculation.report`."""

    primary_id: ModelId
    draft_id: ModelId


class BatchParams(Params):
    """Each entry has the parameters of one call, checked one by one: a bad one fails alone."""

    requests: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=10_000)]


class BatchError(msgspec.Struct, frozen=True):
    """The error that the entry alone would have been answered with."""

    code: int
    message: str
    type: str
    details: dict[str, object] = {}


class BatchItem(msgspec.Struct, Generic[R], frozen=True):
    success: bool
    result: R | None = None
    error: BatchError | None = None


class BatchResult(msgspec.Struct, Generic[R], frozen=True):
    results: list[BatchItem[R]]


@dataclass(frozen=True, slots=True)
class Method(Generic[P, R]):
    name: str
    params: type[P]
    result: type[R]


RUNTIME_INFO = Method("runtime/info", RuntimeInfoParams, RuntimeInfoResult)
RUNTIME_STATE = Method("runtime/state", NoParams, RuntimeStateResult)
RUNTIME_TELEMETRY = Method("runtime/telemetry", NoParams, RuntimeTelemetry)
SHUTDOWN = Method("shutdown", NoParams, SuccessResult)
LOAD_MODEL = Method("load_model", LoadModelParams, LoadModelResult)
UNLOAD_MODEL = Method("unload_model", UnloadModelParams, SuccessResult)
GENERATE = Method("generate", GenerateParams, GenerateResult)
EMBED = Method("embed", EmbedParams, GenerateResult)
ABORT = Method("abort", AbortParams, AbortResult)
PAUSE = Method("pause", StreamParams, StreamResult)
RESUME = Method("resume", StreamParams, StreamResult)
TOKENIZE = Method("tokenize", TokenizeParams, TokenizeResult)
TOKENIZE_CHAT = Method("tokenize_chat", TokenizeChatParams, TokenizeResult)
DETOKENIZE = Method("detokenize", DetokenizeParams, DetokenizeResult)
BATCH_TOKENIZE = Method("batch_tokenize", BatchParams, BatchResult[TokenizeResult])
CHECK_DRAFT = Method("check_draft", CheckDraftParams, CompatibilityReport)
BATCH_CHECK_DRAFT = Method("batch_check_draft", BatchParams, BatchResult[CompatibilityReport])

METHODS: tuple[Method[Any, Any], ...] = (
    RUNTIME_INFO,
    RUNTIME_STATE,
    RUNTIME_TELEMETRY,
    SHUTDOWN,
    LOAD_MODEL,
    UNLOAD_MODEL,
    GENERATE,
    EMBED,
    ABORT,
    PAUSE,
    RESUME,
    TOKENIZE,
    TOKENIZE_CHAT,
    DETOKENIZE,
    BATCH_TOKENIZE,
    CHECK_DRAFT,
    BATCH_CHECK_DRAFT,
)
