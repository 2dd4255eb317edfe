"""The parameters of the engine's methods, as people write them: snake_case or camelCase, checked all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, cast

import msgspec
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from mlx_serving.config.model_names import default_name
from mlx_serving.core import kv_form, quantization, sampling_defaults
from mlx_serving.core.generation import (
    Priority,
    Prompt,
    SamplingParams,
    Structure,
    TextPrompt,
    TokenPrompt,
)
from mlx_serving.core.idle_time import idle_time
from mlx_serving.core.suggest import did_you_mean
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.facade.chat_options import ChatFields
from mlx_serving.facade.option_base import Options, either
from mlx_serving.facade.speculation import SpeculationFields
from mlx_serving.facade.structures import as_structure

M = TypeVar("M", bound=BaseModel)

_SHOWN_CHARS = 80

_ANCESTOR_PRIORITIES: Mapping[str, Priority] = {"urgent": "high", "default": "normal", "background": "background"}


class QuantizationOptions(Options):
    """What is left out is MLX's own choice: 4 bits in groups of 64, or those of the mode."""

    bits: int | None = None
    group_size: int | None = Field(default=None, validation_alias=either("group_size"))
    mode: str = "affine"


class LoadModelOptions(Options):
    """`context_length` caps the model's own; `local_path` overrides where the model is read from.

    `quantization` packs the weights as they are read: `4bit`, `8bit-g32`, `mxfp4`, or the same as `{"bits": 4,
    "group_size": 64, "mode": "affine"}`, all of which may be left out. `adapter` is the directory of a LoRA adapter,
    which shares the weights of its model with others unless it is fused: name the result with `name`. `kv_bits` packs
    the KV caches, in groups of `kv_group_size` (64). `pin` keeps the model in memory whatever others need, `keep_alive`
    is how long it stays when nobody uses it: seconds, or a text like `5m`, negative for ever. `draft` is for a model
    that is to draft for others: one that cannot is refused.
    """

    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1, max_length=4096)
    revision: str | None = None
    local_path: str | None = Field(default=None, validation_alias=either("local_path"))
    context_length: int | None = Field(default=None, validation_alias=either("context_length"), ge=1, le=1_000_000)
    draft: bool = False
    quantization: str | None = None
    adapter: str | None = Field(default=None, validation_alias=either("adapter", "adapter_path", "adapterPath"))
    fuse_adapter: bool = Field(default=False, validation_alias=either("fuse_adapter"))
    pin: bool | None = None
    keep_alive: float | None = Field(default=None, validation_alias=either("keep_alive"))
    kv_bits: Literal[4, 8] | None = Field(default=None, validation_alias=either("kv_bits"))
    kv_group_size: Literal[32, 64, 128] | None = Field(default=None, validation_alias=either("kv_group_size"))
    name: str | None = Field(default=None, min_length=1, max_length=256)
    trust_remote_code: bool = Field(default=False, validation_alias=either("trust_remote_code"))

    @field_validator("trust_remote_code")
    @classmethod
    def _off(cls, value: bool) -> bool:
        if value:
            raise unsupported("is not supported")
        return value

    @field_validator("quantization", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        try:
            if isinstance(value, Mapping):
                asked = parse(QuantizationOptions, cast("Mapping[str, object]", value))
                value = str(quantization.of(asked.bits, asked.group_size, asked.mode))
            return WeightOptions(value).quantization if isinstance(value, str) else value
        except InvalidRequest as error:
            reason = error.message.removeprefix("quantization").lstrip(": ")
            raise PydanticCustomError("quantization", "{rule}", {"rule": reason}) from None

    @field_validator("keep_alive", mode="before")
    @classmethod
    def _in_seconds(cls, value: object) -> float | None:
        try:
            return None if value is None else idle_time(value)
        except InvalidRequest as error:
            reason = error.message.removeprefix("keep_alive ")
            raise PydanticCustomError("keep_alive", "{rule}", {"rule": reason}) from None

    @model_validator(mode="after")
    def _packs_and_fuses_something(self) -> Self:
        if self.fuse_adapter and self.adapter is None:
            raise PydanticCustomError("fuse_adapter", "fuse_adapter needs an adapter", {})
        if self.kv_group_size is not None and self.kv_bits is None:
            raise PydanticCustomError("kv_group_size", "kv_group_size needs kv_bits", {})
        return self

    @property
    def weights(self) -> WeightOptions:
        kv = kv_form.of(self.kv_bits, self.kv_group_size)
        return WeightOptions(self.quantization, self.adapter, self.fuse_adapter, kv)

    @property
    def served_name(self) -> str:
        """What the model goes by: `name`, else what was asked for, with an adapter a name made from both."""
        return self.name or (self.model if self.adapter is None else default_name(self.model, self.adapter))


class TemplatePrompt(Options):
    """`{{name}}` in the template is replaced by the variable of that name."""

    template: str
    variables: dict[str, str] = Field(default_factory=dict)

    def render(self) -> str:
        text = self.template
        for name, value in self.variables.items():
            text = text.replace("{{" + name + "}}", value)
        return text


class TokensPrompt(Options):
    tokens: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)


def _prompt_kind(value: object) -> str | None:
    match value:
        case str():
            return "<text>"
        case TemplatePrompt():
            return "<template>"
        case TokensPrompt():
            return "<tokens>"
        case Mapping():
            return "<tokens>" if "tokens" in value else "<template>"
        case _:
            return None


PromptValue = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[TemplatePrompt, Tag("<template>")]
    | Annotated[TokensPrompt, Tag("<tokens>")],
    Discriminator(
        _prompt_kind,
        custom_error_type="wrong_type",
        custom_error_message="must be text, an object with template and variables, or an object with tokens",
    ),
]


def _as_tuple(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Ids = Annotated[tuple[int, ...], BeforeValidator(_as_tuple)]


class GeneratorParams(SpeculationFields, ChatFields):
    """One of `prompt` and `messages` is required; `prompt` is text, a template, or token ids. `structured`, or
    `output_type`, is the form that the answer must have: see `facade.structures.as_structure`. What is kept of prompts
    and answers is used only by those of the same `cache_salt`. What goes with messages only is in `ChatFields`."""

    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1, max_length=4096)
    prompt: PromptValue | None = None
    max_tokens: int | None = Field(default=None, validation_alias=either("max_tokens"))
    temperature: float | None = None
    top_p: float | None = Field(default=None, validation_alias=either("top_p"))
    top_k: int | None = Field(default=None, validation_alias=either("top_k"))
    min_p: float | None = Field(default=None, validation_alias=either("min_p"))
    typical_p: float | None = Field(default=None, validation_alias=either("typical_p"))
    xtc_probability: float | None = Field(default=None, validation_alias=either("xtc_probability"))
    xtc_threshold: float | None = Field(default=None, validation_alias=either("xtc_threshold"))
    repetition_penalty: float | None = Field(default=None, validation_alias=either("repetition_penalty"))
    repetition_context_size: int | None = Field(default=None, validation_alias=either("repetition_context_size"))
    presence_penalty: float = Field(default=0.0, validation_alias=either("presence_penalty"))
    frequency_penalty: float = Field(default=0.0, validation_alias=either("frequency_penalty"))
    logit_bias: dict[int, float] = Field(default_factory=dict, validation_alias=either("logit_bias"))
    banned_token_ids: Ids = Field(default=(), validation_alias=either("banned_token_ids"))
    allowed_token_ids: Ids | None = Field(default=None, validation_alias=either("allowed_token_ids"))
    bad_words: Strings = Field(default=(), validation_alias=either("bad_words"))
    seed: int | None = None
    min_tokens: int = Field(default=0, validation_alias=either("min_tokens"))
    stop_sequences: Strings = Field(default=(), validation_alias=either("stop_sequences", "stop"))
    stop_token_ids: Ids = Field(default=(), validation_alias=either("stop_token_ids"))
    ignore_eos: bool = Field(default=False, validation_alias=either("ignore_eos"))
    logprobs: int | None = None
    cache_salt: str = Field(default="", max_length=4096, validation_alias=either("cache_salt"))
    streaming: bool = Field(default=True, validation_alias=AliasChoices("streaming", "stream"))
    structured: Any = Field(
        default=None,
        validation_alias=AliasChoices("structured", "structure", "guidance", "output_type", "outputType"),
    )
    multimodal: Any = None

    @field_validator("structured")
    @classmethod
    def _structure(cls, value: object) -> Structure | None:
        return None if value is None else as_structure(value)

    @field_validator("multimodal")
    @classmethod
    def _absent(cls, value: object) -> object:
        if value is not None:
            raise unsupported("is not supported")
        return value

    @field_validator(
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "typical_p",
        "xtc_probability",
        "xtc_threshold",
        "repetition_penalty",
        "repetition_context_size",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "banned_token_ids",
        "allowed_token_ids",
        "bad_words",
        "seed",
        "min_tokens",
        "stop_sequences",
        "stop_token_ids",
        "logprobs",
    )
    @classmethod
    def _within_limits(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None  # it validates fields
        name = "stop" if info.field_name == "stop_sequences" else info.field_name
        try:
            sampling_defaults.validate(SamplingParams(**cast("dict[str, Any]", {name: value})))
        except InvalidRequest as error:
            rule = error.message.removeprefix(name)
            limit = error.details.get("limit")
            raise PydanticCustomError("limit", "{rule}", {"rule": rule.lstrip(), "limit": limit}) from None
        return value

    @model_validator(mode="after")
    def _one_prompt(self) -> GeneratorParams:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Exactly one of prompt and messages is required", field="prompt")
        if self.messages == []:
            raise InvalidRequest("messages must not be empty", field="messages")
        if self.messages is None and (name := next(self.chat_only(), None)) is not None:
            raise InvalidRequest(f"{name} is only allowed with messages", field=name)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> GeneratorParams:
        self.to_speculation()
        sampling_defaults.validate(self.to_sampling())  # of values that are in their limits, what contradicts another
        return self

    def to_prompt(self) -> Prompt:
        match self.prompt:
            case str():
                return TextPrompt(self.prompt)
            case TemplatePrompt():
                return TextPrompt(self.prompt.render())
            case TokensPrompt():
                return TokenPrompt(tuple(self.prompt.tokens))
            case None:
                return self.to_chat()

    def to_sampling(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            typical_p=self.typical_p,
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            repetition_penalty=self.repetition_penalty,
            repetition_context_size=self.repetition_context_size,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            banned_token_ids=self.banned_token_ids,
            allowed_token_ids=self.allowed_token_ids,
            bad_words=self.bad_words,
            seed=self.seed,
            min_tokens=self.min_tokens,
            stop=self.stop_sequences,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
        )


class CreateGeneratorOptions(Options):
    """`signal` is an `asyncio.Event`: when it is set, the stream is cancelled. `timeout_ms` as in the ancestor."""

    signal: Any = None
    stream_id: str | None = Field(default=None, validation_alias=either("stream_id"), min_length=1, max_length=256)
    timeout_ms: float | None = Field(default=None, validation_alias=either("timeout_ms"), gt=0)
    priority: Literal["critical", "urgent", "high", "default", "normal", "low", "background"] = "default"

    @property
    def core_priority(self) -> Priority:
        return _ANCESTOR_PRIORITIES.get(self.priority) or cast(Priority, self.priority)


class TokenizeRequest(Options):
    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1)
    text: str
    add_bos: bool = Field(default=True, validation_alias=either("add_bos", "add_special_tokens", "addSpecialTokens"))


def parse(model: type[M], given: M | Mapping[str, object] | str | None, *, text_field: str = "model") -> M:
    """Check what a caller gave. A string stands for `{text_field: string}`.

    Raises `InvalidRequest` with every issue at once.
    """
    if isinstance(given, model):
        return given
    data = {text_field: given} if isinstance(given, str) else dict(cast("Mapping[str, object]", given or {}))
    for name, value in data.items():
        _check_text(name, value)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _invalid(model, error) from None


def _check_text(name: str, value: object) -> None:
    """Python's strings can hold halves of surrogate pairs, which are no text and cannot be sent."""
    try:
        msgspec.json.encode(value, enc_hook=lambda _: None)
    except UnicodeEncodeError as error:
        half = f"{error.object[error.start]!r} at character {error.start}"
        raise InvalidRequest(f"{name} is no text: it has {half}, half of a surrogate pair", field=name) from None
    except TypeError:  # keys that are no texts: what may have them says so itself
        return


def unsupported(rule: str) -> PydanticCustomError:
    """To be raised for a parameter that is known, and not served."""
    return PydanticCustomError("unsupported", "{rule}", {"rule": rule})


def _invalid(model: type[BaseModel], error: ValidationError) -> InvalidRequest:
    found = error.errors(include_url=False)
    issues = [_issue(model, problem) for problem in found]
    message = "; ".join(str(issue["message"]) for issue in issues)
    unsupported = all(problem["type"] == "unsupported" for problem in found)
    cls = UnsupportedParameter if unsupported else InvalidRequest
    return cls(message, field=str(issues[0]["field"]), issues=issues)


def _issue(model: type[BaseModel], problem: ErrorDetails) -> dict[str, object]:
    # Tags of unions, written `<tag>`, are no part of what the caller sent.
    path = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("<"))
    given = repr(problem["input"])[:_SHOWN_CHARS]
    match problem["type"]:
        case "extra_forbidden":
            rule = _unknown(model, path)
        case "missing":
            rule, given = "is required", None
        case "limit" | "unsupported" | "wrong_type":
            rule = problem["msg"]
        case _:
            rule = f"is invalid: {problem['msg'][:1].lower()}{problem['msg'][1:]}, got {given}"
    message = f"{path}{rule}" if rule.startswith("[") else f"{path} {rule}"
    issue = {"field": path, "message": message, "limit": problem.get("ctx", {}).get("limit"), "given": given}
    return {name: value for name, value in issue.items() if value is not None}


def _unknown(model: type[BaseModel], name: str) -> str:
    for field in model.model_fields.values():
        spellings = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
        if name in spellings:
            return f"is given twice: {' and '.join(map(str, spellings))} are spellings of one parameter"
    hint = did_you_mean(name, model.model_fields)
    return "is an unknown parameter" + (f"; did you mean {hint}?" if hint else "")
