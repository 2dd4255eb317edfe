"""What to generate, from what and how, and what to tokenize, as people write it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import AliasChoices, Discriminator, Field, Tag, field_validator, model_validator

from mlx_serving.core import sampling_defaults
from mlx_serving.core.generation import GenerationRequest, Priority, Prompt, Structure, TextPrompt, TokenPrompt
from mlx_serving.errors import InvalidRequest
from mlx_serving.facade.chat_options import ChatFields
from mlx_serving.facade.option_base import Options, either, unsupported
from mlx_serving.facade.sampling_options import SamplingFields
from mlx_serving.facade.speculation import SpeculationFields
from mlx_serving.facade.structures import as_structure

_ANCESTOR_PRIORITIES: Mapping[str, Priority] = {"urgent": "high", "default": "normal", "background": "background"}


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
    tokens: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(min_length=1)


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


class CreateGeneratorOptions(Options):
    """`signal` is an `asyncio.Event`: when it is set, the stream is cancelled. `timeout_ms` as in the ancestor."""

    signal: Any = None
    stream_id: str | None = Field(default=None, validation_alias=either("stream_id"), min_length=1, max_length=256)
    timeout_ms: float | None = Field(default=None, validation_alias=either("timeout_ms"), gt=0)
    priority: Literal["critical", "urgent", "high", "default", "normal", "low", "background"] = "default"

    @property
    def core_priority(self) -> Priority:
        return _ANCESTOR_PRIORITIES.get(self.priority) or cast(Priority, self.priority)


class GeneratorParams(SamplingFields, SpeculationFields, ChatFields):
    """One of `prompt` and `messages` is required; `prompt` is text, a template, or token ids. `structured`, or
    `output_type`, is the form that the answer must have: see `facade.structures.as_structure`. What is kept of prompts
    and answers is used only by those of the same `cache_salt`. What goes with messages only is in `ChatFields`."""

    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1, max_length=4096)
    prompt: PromptValue | None = None
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

    def to_request(self, how: CreateGeneratorOptions) -> GenerationRequest:
        return GenerationRequest(
            request_id=how.stream_id or str(uuid.uuid4()),
            model=self.model,
            prompt=self.to_prompt(),
            sampling=self.to_sampling(),
            structure=self.structured,
            parse_output=self.is_parsed,
            tool_choice=self.to_tool_choice(),
            reasoning_budget=self.budget,
            speculation=self.to_speculation(),
            priority=how.core_priority,
            cache_salt=self.cache_salt,
            timeout_s=None if how.timeout_ms is None else how.timeout_ms / 1000,
        )

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


class TokenizeRequest(Options):
    model: str = Field(validation_alias=AliasChoices("model", "model_id", "modelId"), min_length=1)
    text: str
    add_bos: bool = Field(default=True, validation_alias=either("add_bos", "add_special_tokens", "addSpecialTokens"))
