"""The responses of the Responses API as this server sends them: the schemas of /openapi.json.

Answers are encoded by `responses_answer`; tests hold the two against each other.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from mlx_serving.server.openai.documents import Document, TokenLogprob
from mlx_serving.server.service_tier import ServedTier

_Item: TypeAlias = dict[str, object]  # a class with a field `object` cannot say so itself
_Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class OutputTextPart(Document):
    type: Literal["output_text"]
    text: str
    annotations: list[object]
    logprobs: list[TokenLogprob]


class OutputMessage(Document):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: _Status
    content: list[OutputTextPart]


class ReasoningTextPart(Document):
    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(Document):
    id: str
    type: Literal["reasoning"]
    status: _Status
    summary: list[object]
    content: list[ReasoningTextPart]
    encrypted_content: str | None = None


class OutputFunctionCall(Document):
    id: str
    type: Literal["function_call"]
    status: _Status
    call_id: str
    name: str
    arguments: str


class InputTokensDetails(Document):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Document):
    reasoning_tokens: int


class ResponseUsage(Document):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Document):
    reason: Literal["max_output_tokens"]


class ResponseFailure(Document):
    code: str
    message: str


class ResponseDocument(Document):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputMessage | OutputReasoning | OutputFunctionCall]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, object]
    safety_identifier: str | None
    service_tier: ServedTier
    store: bool
    temperature: float | None
    text: dict[str, object]
    tool_choice: str | dict[str, object]
    tools: list[dict[str, object]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    user: str | None


class InputItemList(Document):
    object: Literal["list"] = "list"
    data: list[_Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(Document):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class DeletedResponse(Document):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
