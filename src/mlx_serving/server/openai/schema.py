"""The request bodies of OpenAI's API as far as this server acts on them.

Types are strict and unknown fields are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from mlx_serving.core.images.image import ImageSource
from mlx_serving.core.images.parts import Pictures
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.server.json_values import as_array
from mlx_serving.server.openai.sampling import SamplingFields
from mlx_serving.server.openai.tools import CalledTool, ToolFields
from mlx_serving.server.request_fields import Body, Hidden, field_of, nested_at_most, string_or
from mlx_serving.server.service_tier import AskedTier
from mlx_serving.server.speculation import SpeculationFields
from mlx_serving.server.structured_output import StructureFields

_MAX_TEMPLATE_DEPTH = 16
# Arguments of the template call that are the server's to give.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
        "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
        "tokenizer_kwargs", "tools", "truncation",
    }
)  # fmt: skip


def _prompt_kind(value: object) -> str | None:
    """The first element says what a list is; the others must be the same."""
    if isinstance(value, str):
        return "<text>"
    elements = as_array(value)
    if elements is None:
        return None
    first = elements[0] if elements else None
    return "<texts>" if isinstance(first, str) else "<tokens>" if as_array(first) is None else "<lists>"


def _unreserved(kwargs: dict[str, object]) -> dict[str, object]:
    reserved = sorted(_RESERVED_TEMPLATE_KWARGS & kwargs.keys())
    if reserved:
        raise PydanticCustomError("reserved", "must not contain {names}", {"names": ", ".join(reserved)})
    return kwargs


_TemplateKwargs: TypeAlias = Annotated[
    dict[str, object], AfterValidator(_unreserved), nested_at_most(_MAX_TEMPLATE_DEPTH)
]
_Text: TypeAlias = Annotated[str, Field(min_length=1)]
_Tokens: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]
PromptValue: TypeAlias = Annotated[
    Annotated[_Text, Tag("<text>")]
    | Annotated[_Tokens, Tag("<tokens>")]
    | Annotated[list[_Text], Tag("<texts>")]
    | Annotated[list[_Tokens], Tag("<lists>")],
    Discriminator(
        _prompt_kind,
        custom_error_type="wrong_type",
        custom_error_message="must be a string, a list of token ids, or a list of several of either",
    ),
]


_MetadataKey: TypeAlias = Annotated[str, Field(max_length=64)]
_MetadataValue: TypeAlias = Annotated[str, Field(max_length=512)]
Metadata: TypeAlias = Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=16)]


class StreamOptions(Body):
    include_usage: bool | None = Field(default=None, description="Send a last chunk with the token counts.")


class GenerationFields(SpeculationFields, StructureFields, SamplingFields):
    model: str | None = Field(default=None, description="A name that GET /v1/models lists; the default model if none.")
    n: int | None = Field(default=None, description="Answers to each prompt, at most 128; 1 if none is given.")
    stream: bool | None = Field(default=None, description="Send the text as server-sent events while it is generated.")
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="An end user's identifier; appears in the server's log.")
    safety_identifier: str | None = Field(default=None, description="Another name for user.")
    metadata: Metadata | None = Field(default=None, description="Appears in the server's log.")
    prompt_cache_key: str | None = Field(default=None, description="Changes what a prompt costs, never the answer.")
    service_tier: AskedTier | None = Field(
        default=None,
        description="flex waits for others, priority goes before them, as far as the key allows; the answer tells "
        "which it was.",
    )
    cache_salt: str | None = Field(
        default=None,
        max_length=4096,
        description="What is kept of prompts and answers is used only by requests of the same salt.",
    )


class TextPart(Body):
    type: Literal["text"]
    text: str
    # Anthropic's, which gateways hand on, and OpenAI's: they change what a prompt costs, never the answer.
    cache_control: Hidden = None
    prompt_cache_breakpoint: Hidden = None


ImageDetail: TypeAlias = Literal["auto", "low", "high"]


class ImageUrl(Body):
    url: str = Field(min_length=1, description="A data URI; a URL, or a path, where the server is configured for it.")
    detail: ImageDetail | None = Field(default=None, description="With low, the model sees a smaller picture.")


def _url_or_object(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict | ImageUrl) else None


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: Annotated[
        Annotated[ImageUrl, Tag("<object>")] | Annotated[str, Field(min_length=1), Tag("<text>")],
        Discriminator(
            _url_or_object, custom_error_type="wrong_type", custom_error_message="must be an object or a string"
        ),
    ]
    cache_control: Hidden = None
    prompt_cache_breakpoint: Hidden = None

    def source(self, path: str) -> ImageSource:
        """`path` is where the part is in the request."""
        if isinstance(self.image_url, str):
            return ImageSource(self.image_url, field=f"{path}.image_url")
        return ImageSource(self.image_url.url, detail=self.image_url.detail or "auto", field=f"{path}.image_url.url")


def _part_kind(value: object) -> str:
    return "<image>" if field_of(value, "type") == "image_url" else "<text>"


Part: TypeAlias = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image>")], Discriminator(_part_kind)
]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<list>")],
    string_or("text and image_url parts"),
]


class Message(Body):
    """One turn. `developer` is another word for `system`; several text parts are joined by line breaks where there
    are no pictures among them."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(default=None, description="Required but for an assistant that calls tools.")
    reasoning_content: str | None = Field(default=None, description="What an assistant thought, or `reasoning`.")
    reasoning: str | None = None
    tool_calls: list[CalledTool] | None = Field(default=None, description="What an assistant called.")
    name: str | None = None
    tool_call_id: str | None = Field(default=None, description="Of a `tool` message: the call it answers.")
    parsed: Hidden = None  # what OpenAI's client made of the content, and sends back beside it

    @model_validator(mode="after")
    def _tool_call_id_belongs_to_tool(self) -> Message:
        if self.role != "tool" and self.tool_call_id is not None:
            raise PydanticCustomError("misplaced", "must not have a tool_call_id unless its role is 'tool'")
        calls = self.tool_calls or self.reasoning_content or self.reasoning
        if self.role != "assistant" and calls:
            raise PydanticCustomError("misplaced", "must not have calls or reasoning unless its role is 'assistant'")
        return self

    def parts(self, path: str) -> Iterable[str | ImageSource]:
        """`path` is where the message is in the request."""
        if self.content is None or isinstance(self.content, str):
            return (self.content or "",)
        return [
            part.text if isinstance(part, TextPart) else part.source(f"{path}.content[{index}]")
            for index, part in enumerate(self.content)
        ]

    def for_template(self, path: str, pictures: Pictures) -> Mapping[str, object]:
        message: dict[str, object] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": pictures.content(self.parts(path)),
        }
        if thought := self.reasoning_content or self.reasoning:
            message["reasoning_content"] = thought
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class Prediction(Body):
    type: Literal["content"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(min_length=1), Tag("<list>")],
        string_or("text parts"),
    ]

    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(ToolFields, GenerationFields):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, description="Another name for max_tokens.")
    logprobs: bool | None = Field(default=None, description="Send the log-probability of every token.")
    top_logprobs: int | None = Field(
        default=None, description="With logprobs: of this many of the likeliest tokens, too; at most 20."
    )
    prediction: Prediction | None = Field(
        default=None, description="What the answer is thought to be, much of it: drafted from where it agrees."
    )
    chat_template_kwargs: (
        Annotated[dict[str, object], AfterValidator(_unreserved), nested_at_most(_MAX_TEMPLATE_DEPTH)] | None
    ) = Field(default=None, description="Extra variables for the model's chat template.")

    def wanted(self) -> Speculation:
        wanted = super().wanted()
        return wanted if self.prediction is None else replace(wanted, prediction=self.prediction.text())


class CompletionRequest(GenerationFields):
    """Body of POST /v1/completions."""

    prompt: PromptValue = Field(description="Of several prompts, each gets its own answers: prompt by prompt.")
    best_of: int | None = Field(
        default=None,
        description="Generate so many answers and return the `n` best: those of the highest log-probability per token.",
    )
    max_tokens: int | None = Field(
        default=None,
        description="Tokens to generate at most; if none is given, what the model's profile says, else 16.",
    )
    logprobs: int | None = Field(
        default=None,
        description="Send the log-probability of every token, and of this many of the likeliest ones; at most 20.",
    )
