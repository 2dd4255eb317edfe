"""The responses of Anthropic's API as this server sends them: the schemas of /openapi.json.

Answers are encoded by `anthropic_answer`; tests hold the two against each other.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlx_serving.server.openai.documents import Document


class AnthropicErrorObject(Document):
    type: str
    message: str
    details: dict[str, object] | None = Field(default=None, description="Facts for programs.")


class AnthropicErrorDocument(Document):
    """Every failure. In a stream that has begun, it is the last event."""

    type: Literal["error"]
    error: AnthropicErrorObject
    request_id: str


class TextAnswerBlock(Document):
    type: Literal["text"]
    text: str


class ThinkingAnswerBlock(Document):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseAnswerBlock(Document):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object]


class AnthropicUsage(Document):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    service_tier: Literal["standard"]


class MessageDocument(Document):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextAnswerBlock | ThinkingAnswerBlock | ToolUseAnswerBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: AnthropicUsage


class TokenCount(Document):
    input_tokens: int
