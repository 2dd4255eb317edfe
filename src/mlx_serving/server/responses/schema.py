"""The request body of OpenAI's Responses API as far as this server acts on it. Types are strict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from mlx_serving.core.images.image import ImageSource
from mlx_serving.core.reasoning_effort import ReasoningEffort
from mlx_serving.server.function_tools import arguments_object
from mlx_serving.server.openai.schema import ImageDetail, Metadata
from mlx_serving.server.request_fields import Body, Hidden, JsonObject, by_type, field_of, of_type, string_or, unserved
from mlx_serving.server.service_tier import AskedTier

ENCODED_PREFIX = "mlx-serving:"
_ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")
_Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


def _json_object(text: str) -> str:
    if arguments_object(text) is None:
        raise PydanticCustomError("no_json_object", "must be the JSON text of an object")
    return text


def _item_kind(value: object) -> str | None:
    kind = field_of(value, "type")
    if kind is None and field_of(value, "role") is not None:
        kind = "message"
    return f"<{kind}>" if kind in _ITEM_TYPES else None


class InputText(Body):
    type: Literal["input_text"]
    text: str


class InputImage(Body):
    type: Literal["input_image"]
    image_url: str = Field(
        min_length=1, description="A data URI; a URL, or a path, where the server is configured for it."
    )
    detail: ImageDetail | None = Field(default=None, description="With low, the model sees a smaller picture.")
    file_id: Annotated[Hidden, unserved()] = None
    prompt_cache_breakpoint: Hidden = None

    def source(self, path: str) -> ImageSource:
        """`path` is where the part is in the request."""
        return ImageSource(self.image_url, detail=self.detail or "auto", field=f"{path}.image_url")


class OutputText(Body):
    type: Literal["output_text"]
    text: str
    annotations: Annotated[Hidden, unserved([])] = None
    logprobs: list[object] | None = Field(default=None, description="Of an earlier answer; says nothing to the model.")


class Refusal(Body):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


MessagePart: TypeAlias = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[InputImage, Tag("<input_image>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[Refusal, Tag("<refusal>")],
    by_type("a part", "input_text", "input_image", "output_text", "refusal"),
]
_OutputPart: TypeAlias = Annotated[
    Annotated[InputText, Tag("<input_text>")] | Annotated[InputImage, Tag("<input_image>")],
    by_type("a part", "input_text", "input_image"),
]


def _parts(
    content: str | Sequence[InputText | InputImage | OutputText | Refusal], path: str
) -> Iterable[str | ImageSource]:
    if isinstance(content, str):
        return (content,)
    return [
        part.source(f"{path}[{index}]") if isinstance(part, InputImage) else part.text
        for index, part in enumerate(content)
    ]


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[MessagePart], Tag("<list>")], string_or("content parts")
    ]
    id: str | None = None
    status: _Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    def parts(self, path: str) -> Iterable[str | ImageSource]:
        """`path` is where the item is in the request."""
        return _parts(self.content, f"{path}.content")


class FunctionCallItem(Body):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: Annotated[str, AfterValidator(_json_object)] = Field(description="The JSON text of an object.")
    id: str | None = None
    status: _Status | None = None
    caller: Annotated[Hidden, unserved({"type": "direct"})] = None
    namespace: Annotated[Hidden, unserved()] = None


class FunctionCallOutputItem(Body):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[_OutputPart], Tag("<list>")],
        string_or("text and image parts"),
    ]
    id: str | None = None
    status: _Status | None = None
    caller: Annotated[Hidden, unserved({"type": "direct"})] = None
    name: Annotated[Hidden, unserved()] = None
    namespace: Annotated[Hidden, unserved()] = None

    def parts(self, path: str) -> Iterable[str | ImageSource]:
        """`path` is where the item is in the request."""
        return _parts(self.output, f"{path}.output")


class SummaryText(Body):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Body):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Body):
    """What was thought before an earlier answer; models whose template shows it see it again."""

    type: Literal["reasoning"]
    summary: list[SummaryText] = Field(default_factory=list[SummaryText])
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = Field(default=None, pattern=f"^{ENCODED_PREFIX}")
    id: str | None = None
    status: _Status | None = None


InputItem: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _item_kind,
        custom_error_type="unsupported",
        custom_error_message=f"must be an item of the type {', '.join(_ITEM_TYPES)}: others are not supported by this "
        "server",
    ),
]


class FunctionTool(Body):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_-]+$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = Field(default=None, description="Whether arguments must be as the schema says; true if none.")
    defer_loading: Annotated[Hidden, unserved(False)] = None
    allowed_callers: Annotated[Hidden, unserved(["direct"])] = None
    output_schema: Annotated[Hidden, unserved()] = None


class NamedFunction(Body):
    type: Literal["function"]
    name: str


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedFunction] = Field(min_length=1)


def _choice_kind(value: object) -> str | None:
    kind = "word" if isinstance(value, str) else field_of(value, "type")
    return f"<{kind}>" if kind in ("word", "function", "allowed_tools") else None


FunctionChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedFunction, Tag("<function>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")],
    Discriminator(
        _choice_kind,
        custom_error_type="unsupported",
        custom_error_message="must be none, auto, required, or a choice of the type function or allowed_tools: others "
        "are not supported by this server",
    ),
]


class PlainFormat(Body):
    type: Literal["text", "json_object"]


class SchemaFormat(Body):
    type: Literal["json_schema"]
    name: str = Field(min_length=1, max_length=64)
    schema_: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = Field(default=None, description="Answers are always as the schema says.")


class TextConfig(Body):
    format: (
        Annotated[
            Annotated[PlainFormat, Tag("<text>")]
            | Annotated[PlainFormat, Tag("<json_object>")]
            | Annotated[SchemaFormat, Tag("<json_schema>")],
            by_type("a format", "text", "json_object", "json_schema"),
        ]
        | None
    ) = None
    verbosity: Annotated[Hidden, unserved("medium")] = None


class ReasoningConfig(Body):
    effort: ReasoningEffort | None = None
    summary: Literal["auto"] | None = Field(default=None, description="Reasoning is sent as it is, without a summary.")
    generate_summary: Annotated[Hidden, unserved("auto")] = None
    context: Annotated[Hidden, unserved("auto")] = None
    mode: Annotated[Hidden, unserved("standard")] = None


class ResponseStreamOptions(Body):
    include_obfuscation: Annotated[Hidden, unserved(False)] = None


class ResponsesRequest(Body):
    """Body of POST /v1/responses."""

    model: str | None = Field(default=None, description="A name that GET /v1/models lists; the default model if none.")
    input: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[InputItem], Field(min_length=1), Tag("<list>")],
        string_or("items"),
    ]
    instructions: str | None = Field(default=None, description="What the model is told first; not kept for the next.")
    previous_response_id: str | None = Field(default=None, description="Go on from this answer, if it was stored.")
    store: bool | None = Field(default=None, description="Keep the answer for a while; true if none is given.")
    stream: bool | None = Field(default=None, description="Send the answer as server-sent events.")
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(default=None, description="Tokens to generate at most.")
    max_tool_calls: int | None = Field(default=None, ge=1, description="Of tools that servers run: there are none.")
    temperature: float | None = Field(default=None, description="0 always takes the likeliest token; at most 2.")
    top_p: float | None = Field(default=None, description="Sample from the likeliest tokens of this probability.")
    top_logprobs: int | None = Field(
        default=None, description="Send the log-probabilities of this many of the likeliest tokens; at most 20."
    )
    tools: list[Annotated[FunctionTool, of_type("a tool", "function")]] | None = None
    tool_choice: FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    truncation: Annotated[Literal["disabled"] | None, Field(description="What is too long is refused.")] = None
    metadata: Metadata | None = Field(default=None, description="Comes back with the response.")
    user: str | None = Field(default=None, description="An end user's identifier; appears in the server's log.")
    safety_identifier: str | None = Field(default=None, description="Another name for user.")
    cache_salt: str | None = Field(
        default=None,
        max_length=4096,
        description="What is kept of prompts and answers is used only by requests of the same salt.",
    )
    prompt_cache_key: str | None = Field(default=None, description="Changes what a prompt costs, never the answer.")
    service_tier: AskedTier | None = Field(
        default=None, description="flex waits for others, priority goes before them, as far as the key allows."
    )
