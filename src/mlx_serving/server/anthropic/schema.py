"""The request bodies of Anthropic's API as far as this server acts on them. Types are strict; other fields are refused.

`cache_control` is accepted wherever it may stand: it changes what a prompt costs, never what is answered.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, Tag

from mlx_serving.core.images.image import ImageSource
from mlx_serving.server.request_fields import Body, Hidden, JsonObject, by_type, of_type, string_or, unserved

MIN_THINKING_TOKENS = 1024


class CacheControl(Body):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Body):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[Hidden, unserved([])] = None


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: JsonObject
    cache_control: CacheControl | None = None
    caller: Annotated[Hidden, unserved({"type": "direct"})] = None
    toolset_name: Annotated[Hidden, unserved()] = None


_Texts: TypeAlias = list[Annotated[TextBlock, of_type("a block", "text")]]
TextOrBlocks: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[_Texts, Tag("<list>")], string_or("text blocks")
]


class Base64Source(Body):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str = Field(min_length=1)


class UrlSource(Body):
    type: Literal["url"]
    url: str = Field(min_length=1, description="Fetched where the server is configured for it.")


class ImageBlock(Body):
    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag("<base64>")] | Annotated[UrlSource, Tag("<url>")],
        by_type("a source", "base64", "url"),
    ]
    cache_control: CacheControl | None = None

    def at(self, path: str) -> ImageSource:
        """`path` is where the block is in the request."""
        if isinstance(self.source, UrlSource):
            return ImageSource(self.source.url, "url", field=f"{path}.source.url")
        return ImageSource(self.source.data, "base64", self.source.media_type, field=f"{path}.source.data")


_ResultBlock: TypeAlias = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")], by_type("a block", "text", "image")
]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1)
    content: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[list[_ResultBlock], Tag("<list>")],
            string_or("text and image blocks"),
        ]
        | None
    ) = None
    is_error: bool | None = Field(default=None, description="The model is told so by `Error: ` before the text.")
    cache_control: CacheControl | None = None
    toolset_name: Annotated[Hidden, unserved()] = None


class ThinkingBlock(Body):
    """Of an earlier answer; models whose template shows it see it again."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


UserBlock: TypeAlias = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    by_type("a block", "text", "image", "tool_result"),
]
AssistantBlock: TypeAlias = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")],
    by_type("a block", "text", "thinking", "tool_use"),
]


class UserMessage(Body):
    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[UserBlock], Field(min_length=1), Tag("<list>")],
        string_or("content blocks"),
    ]


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[AssistantBlock], Tag("<list>")], string_or("content blocks")
    ]


class SystemMessage(Body):
    role: Literal["system"]
    content: TextOrBlocks


AnthropicMessage: TypeAlias = Annotated[
    Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[SystemMessage, Tag("<system>")],
    by_type("a message", "user", "assistant", "system", key="role"),
]


class AnthropicTool(Body):
    """A tool of the caller's. Tools that a server would run are refused by their `type`."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_-]+$")
    description: str | None = None
    input_schema: JsonObject
    type: Literal["custom"] | None = None
    strict: bool | None = Field(default=None, description="Whether the input must be as the schema says.")
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = Field(
        default=None, description="The input of tools is always sent as it is generated."
    )
    allowed_callers: Annotated[Hidden, unserved(["direct"])] = None
    defer_loading: Annotated[Hidden, unserved(False)] = None
    input_examples: Annotated[Hidden, unserved([])] = None


class AutoChoice(Body):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Body):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Body):
    type: Literal["none"]


AnthropicToolChoice: TypeAlias = Annotated[
    Annotated[AutoChoice, Tag("<auto>")]
    | Annotated[AutoChoice, Tag("<any>")]
    | Annotated[NamedChoice, Tag("<tool>")]
    | Annotated[NoChoice, Tag("<none>")],
    by_type("a choice", "auto", "any", "tool", "none"),
]


class EnabledThinking(Body):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=MIN_THINKING_TOKENS, description="The model answers after so many tokens at most.")
    display: Literal["summarized", "omitted"] | None = Field(
        default=None, description="What is thought is sent as it is, or not at all."
    )


class AdaptiveThinking(Body):
    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class DisabledThinking(Body):
    type: Literal["disabled"]


Thinking: TypeAlias = Annotated[
    Annotated[EnabledThinking, Tag("<enabled>")]
    | Annotated[AdaptiveThinking, Tag("<adaptive>")]
    | Annotated[DisabledThinking, Tag("<disabled>")],
    by_type("a setting", "enabled", "adaptive", "disabled"),
]


class JsonFormat(Body):
    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Body):
    format: JsonFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="How much a model that thinks may think."
    )


class RequestMetadata(Body):
    user_id: str | None = Field(default=None, description="An end user's identifier; appears in the server's log.")


class CountTokensRequest(Body):
    """Body of POST /v1/messages/count_tokens."""

    model: str | None = Field(default=None, description="A name that GET /v1/models lists; the default model if none.")
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: TextOrBlocks | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None


class MessagesRequest(CountTokensRequest):
    """Body of POST /v1/messages."""

    max_tokens: int = Field(description="Tokens to generate at most.")
    temperature: float | None = Field(default=None, description="0 always takes the likeliest token; at most 2.")
    top_p: float | None = Field(default=None, description="Sample from the likeliest tokens of this probability.")
    top_k: int | None = Field(default=None, description="Sample from this many likeliest tokens; 0 is off.")
    stop_sequences: list[str] | None = Field(
        default=None, description="At most 16 strings that end the text and are no part of it."
    )
    stream: bool | None = Field(default=None, description="Send the answer as server-sent events.")
    metadata: RequestMetadata | None = None
    cache_salt: str | None = Field(
        default=None,
        max_length=4096,
        description="What is kept of prompts and answers is used only by requests of the same salt.",
    )
    service_tier: Literal["auto", "standard_only"] | None = Field(default=None, description="There is one tier.")
