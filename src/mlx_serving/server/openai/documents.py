"""The responses of OpenAI's API as this server sends them: the schemas of /openapi.json.

Answers are encoded by `openai_chunks`; tests hold the two against each other.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from mlx_serving.core.serving import ServedModelState
from mlx_serving.server.service_tier import ServedTier

_Index: TypeAlias = Annotated[int, Field(ge=0, description="Of the choice: prompt * n + answer.")]


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorObject(Document):
    message: str
    type: str
    param: str | None = Field(description="The first parameter that is wrong.")
    code: str
    details: dict[str, object] | None = Field(
        default=None, description="Facts for programs, such as `issues`, the list of everything that is wrong."
    )


class ErrorDocument(Document):
    """Every failure. In a stream that has begun, it is the last event."""

    error: ErrorObject


class PromptTokensDetails(Document):
    cached_tokens: int = Field(description="Of the prompt, not computed: what the model makes of them was kept.")


class CompletionTokensDetails(Document):
    accepted_prediction_tokens: int = Field(description="Drafted, and part of the answer.")
    rejected_prediction_tokens: int = Field(description="Drafted in vain; no part of completion_tokens.")
    speculation: str = Field(description="Who drafted: ngram or draft; else why nobody did.")


class Usage(Document):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = Field(
        default=None, description="Unless speculation was off."
    )


class _Heading(Document):
    id: str
    created: int = Field(description="Unix seconds.")
    model: str
    system_fingerprint: str
    service_tier: ServedTier | None = Field(default=None, description="If the request named one.")


class TopLogprob(Document):
    token: str = Field(description="Bytes that are no character by themselves are written as \\xe2.")
    logprob: float = Field(description="Natural logarithm; of the model's own distribution, before any sampling.")
    bytes: list[int] | None = Field(description="null for a special token, which is no part of the text.")


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Document):
    """One entry for each token."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(Document):
    """One entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] = Field(description="With the token itself.")
    text_offset: list[int] = Field(description="In characters.")


class CalledFunction(Document):
    name: str
    arguments: str = Field(description="JSON text, as the model wrote it: it need not fit the tool's schema.")


class ToolCall(Document):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Document):
    role: Literal["assistant"]
    content: str | None = Field(description="null where the answer is nothing but calls.")
    refusal: None
    reasoning_content: str | None = Field(default=None, description="What the model thought before; only if it did.")
    tool_calls: list[ToolCall] | None = Field(default=None, description="Only if there are any.")


class ChatChoice(Document):
    index: _Index
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(_Heading):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class CalledFunctionPiece(Document):
    name: str | None = None
    arguments: str


class ToolCallPiece(Document):
    """The first piece of each `index` has the id, the type and the name; `arguments` add up."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionPiece


class ChatDelta(Document):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChatChunkChoice(Document):
    index: _Index
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunk(_Heading):
    """One event of a streamed chat: the role first, then text, then the finish reason, then the usage if asked for."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(Document):
    index: _Index
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(_Heading):
    """A text completion, and one event of a streamed one."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None


class LoadProgressDocument(Document):
    stage: str
    done: int = Field(description="Bytes, while weights are read and loaded.")
    total: int


class ModelDocument(Document):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds.")
    owned_by: Literal["mlx-serving"] = "mlx-serving"
    state: ServedModelState
    context_length: int | None = Field(description="In tokens; null before the model was loaded.")
    max_model_len: int | None = Field(description="The same, as vLLM calls it.")
    root: str = Field(description="Where it comes from: hub id, directory, GGUF file or alias.")
    parent: str | None = Field(default=None, description="Of an alias: the model that it means now.")
    capabilities: list[str] | None = Field(
        description="What it can be asked for: `completions`, `chat` if it has a template, `vision` if it takes "
        "pictures, or `embeddings`, or `rerank` and `score`; null as long as it was not loaded."
    )
    default: bool = Field(description="Whether it answers requests that name no model.")
    profile: dict[str, object] = Field(
        default_factory=dict, description="What holds under this name where a request is silent."
    )
    progress: LoadProgressDocument | None = Field(default=None, description="Of a load under way.")


class ModelList(Document):
    object: Literal["list"] = "list"
    data: list[ModelDocument]
