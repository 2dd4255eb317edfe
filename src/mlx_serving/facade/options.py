"""The parameters of the engine's methods, as people write them: snake_case or camelCase, checked all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mlx_serving.core.generation import (
    ChatPrompt,
    Priority,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from mlx_serving.core.suggest import did_you_mean
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.facade.shapes import camel

M = TypeVar("M", bound=BaseModel)

_ANCESTOR_PRIORITIES: Mapping[str, Priority] = {"urgent": "high", "default": "normal", "background": "background"}


def _either(name: str, *more: str) -> AliasChoices:
    return AliasChoices(name, camel(name), *more)


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class LoadModelOptions(Options):
    """`context_length` caps the model's own; `local_path` overrides where the model is read from."""

    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1, max_length=4096)
    revision: str | None = None
    local_path: str | None = Field(None, validation_alias=_either("local_path"))
    context_length: int | None = Field(None, validation_alias=_either("context_length"), ge=1, le=1_000_000)
    draft: bool = False
    quantization: str | None = None
    trust_remote_code: bool = Field(False, validation_alias=_either("trust_remote_code"))

    @model_validator(mode="after")
    def _supported(self) -> LoadModelOptions:
        if self.draft:
            raise UnsupportedParameter("draft models are not supported", field="draft", given=True)
        if self.quantization not in (None, "none"):
            raise UnsupportedParameter(
                "quantization on load is not supported: give a model that is quantised already",
                field="quantization",
                given=self.quantization,
            )
        if self.trust_remote_code:
            raise UnsupportedParameter("trust_remote_code is not supported", field="trust_remote_code", given=True)
        return self


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


def _as_tuple(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Ids = Annotated[tuple[int, ...], BeforeValidator(_as_tuple)]


class GeneratorParams(Options):
    """One of `prompt` and `messages` is required; `prompt` is text, a template, or token ids."""

    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1, max_length=4096)
    prompt: str | TemplatePrompt | TokensPrompt | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = Field(None, validation_alias=_either("max_tokens"))
    temperature: float | None = None
    top_p: float | None = Field(None, validation_alias=_either("top_p"))
    top_k: int | None = Field(None, validation_alias=_either("top_k"))
    min_p: float | None = Field(None, validation_alias=_either("min_p"))
    repetition_penalty: float | None = Field(None, validation_alias=_either("repetition_penalty"))
    presence_penalty: float = Field(0.0, validation_alias=_either("presence_penalty"))
    frequency_penalty: float = Field(0.0, validation_alias=_either("frequency_penalty"))
    logit_bias: dict[int, float] = Field(default_factory=dict, validation_alias=_either("logit_bias"))
    seed: int | None = None
    stop_sequences: Strings = Field((), validation_alias=_either("stop_sequences", "stop"))
    stop_token_ids: Ids = Field((), validation_alias=_either("stop_token_ids"))
    streaming: bool = Field(True, validation_alias=AliasChoices("streaming", "stream"))
    structured: Any = None
    multimodal: Any = None
    draft_model: Any = Field(None, validation_alias=_either("draft_model"))

    @model_validator(mode="after")
    def _supported(self) -> GeneratorParams:
        for name in ("structured", "multimodal", "draft_model"):
            if getattr(self, name) is not None:
                raise UnsupportedParameter(f"{name} is not supported", field=name)
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Exactly one of prompt and messages is required", field="prompt")
        if self.messages == []:
            raise InvalidRequest("messages must not be empty", field="messages")
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
                return ChatPrompt(tuple(self.messages or ()))

    def to_sampling(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed,
            stop=self.stop_sequences,
            stop_token_ids=self.stop_token_ids,
        )


class CreateGeneratorOptions(Options):
    """`signal` is an `asyncio.Event`: when it is set, the stream is cancelled. `timeout_ms` as in the ancestor."""

    signal: Any = None
    stream_id: str | None = Field(None, validation_alias=_either("stream_id"), min_length=1, max_length=256)
    timeout_ms: float | None = Field(None, validation_alias=_either("timeout_ms"), gt=0)
    priority: Literal["critical", "urgent", "high", "default", "normal", "low", "background"] = "default"

    @property
    def core_priority(self) -> Priority:
        return _ANCESTOR_PRIORITIES.get(self.priority) or cast(Priority, self.priority)


class TokenizeRequest(Options):
    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1)
    text: str
    add_bos: bool = Field(True, validation_alias=_either("add_bos", "add_special_tokens", "addSpecialTokens"))


def parse(model: type[M], given: M | Mapping[str, object] | str | None, *, text_field: str = "model") -> M:
    """Check what a caller gave. A string stands for `{text_field: string}`.

    Raises `InvalidRequest` with every issue at once.
    """
    if isinstance(given, model):
        return given
    data = {text_field: given} if isinstance(given, str) else dict(cast("Mapping[str, object]", given or {}))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _invalid(model, error) from None


def _invalid(model: type[BaseModel], error: ValidationError) -> InvalidRequest:
    issues: list[dict[str, object]] = []
    for problem in error.errors(include_url=False, include_context=False):
        path = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"]
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(path, model.model_fields)
            message = "unknown parameter" + (f"; did you mean {hint}?" if hint else "")
        issues.append({"field": path, "message": message, "given": repr(problem["input"])[:80]})
    text = "; ".join(f"{issue['field']}: {issue['message']}" for issue in issues)
    return InvalidRequest(text, field=str(issues[0]["field"]), issues=issues)
