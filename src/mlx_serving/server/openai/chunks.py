"""What goes back: whole completions, and the chunks of a stream.

All chunks of a choice differ in one string only, unless log-probabilities were asked for, so everything around it is
encoded once per choice; a token costs one string encoding and one concatenation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from mlx_serving.core.choices import Completion, Usage
from mlx_serving.core.generation import FinishReason, Logprobs, ToolCallDelta
from mlx_serving.server.http import sse
from mlx_serving.server.openai.logprobs import TextLogprobs, chat_logprobs

_encode = msgspec.json.Encoder().encode
# A mark that JSON encoding leaves as it is, and that no other part of a chunk can contain: ids are hexadecimal.
_MARK = "\x7f<text>\x7f"


ChunkedApi = Literal["chat", "completions"]
"""Those whose streams are chunks of one kind."""

ID_PREFIXES: Mapping[ChunkedApi, str] = {"chat": "chatcmpl-", "completions": "cmpl-"}


@dataclass(frozen=True, slots=True)
class Heading:
    """What every part of one answer repeats. `created` is Unix seconds; `service_tier` is for those who asked for
    one."""

    completion_id: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str | None = None

    def document(self, kind: str) -> dict[str, object]:
        tier = {} if self.service_tier is None else {"service_tier": self.service_tier}
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            **tier,
        }


class ChoiceChunks(Protocol):
    """How one choice of a stream is worded. Every method returns bytes that are ready to send."""

    def opening(self) -> bytes:
        """What the choice begins with; may be empty."""
        ...

    def piece(self, text: str, logprobs: Sequence[Logprobs] = ()) -> bytes:
        """An event with new text, and the log-probabilities of the tokens that came with it."""
        ...

    def thought(self, text: str) -> bytes:
        """An event with more of the reasoning."""
        ...

    def calls(self, pieces: Sequence[ToolCallDelta]) -> bytes:
        """An event with more of the calls of tools."""
        ...

    def ending(self, reason: FinishReason) -> bytes:
        """The event that ends the choice."""
        ...


class Answer(Protocol):
    """How one API words a completion. Every method returns bytes that are ready to send."""

    def whole(self, choices: Sequence[Completion], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        ...

    def choice(self, index: int) -> ChoiceChunks:
        """The chunks of one choice."""
        ...

    def closing(self, usage: Usage) -> bytes:
        """The events that end the stream, when all its choices have ended."""
        ...


class ChatAnswer:
    """`chat.completion` and `chat.completion.chunk`. `logprobs`: whether log-probabilities were asked for."""

    def __init__(self, heading: Heading, *, include_usage: bool, logprobs: bool) -> None:
        self._heading = heading
        self._logprobs = logprobs
        self._frame = _ChunkFrame(heading.document("chat.completion.chunk"), include_usage=include_usage)

    def whole(self, choices: Sequence[Completion], usage: Usage) -> bytes:
        documents = [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": chat_logprobs(choice.logprobs) if self._logprobs else None,
                "finish_reason": choice.finish_reason.value,
            }
            for index, choice in enumerate(choices)
        ]
        return _whole(self._heading.document("chat.completion"), documents, usage)

    def choice(self, index: int) -> ChoiceChunks:
        return _ChatChunks(self._frame, index)

    def closing(self, usage: Usage) -> bytes:
        return self._frame.closing(usage)


class TextAnswer:
    """`text_completion`, streamed and whole. `logprobs`: whether log-probabilities were asked for."""

    def __init__(self, heading: Heading, *, include_usage: bool, logprobs: bool) -> None:
        self._heading = heading
        self._logprobs = logprobs
        self._frame = _ChunkFrame(heading.document("text_completion"), include_usage=include_usage)

    def whole(self, choices: Sequence[Completion], usage: Usage) -> bytes:
        documents = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": TextLogprobs().document(choice.logprobs) if self._logprobs else None,
                "finish_reason": choice.finish_reason.value,
            }
            for index, choice in enumerate(choices)
        ]
        return _whole(self._heading.document("text_completion"), documents, usage)

    def choice(self, index: int) -> ChoiceChunks:
        return _TextChunks(self._frame, index)

    def closing(self, usage: Usage) -> bytes:
        return self._frame.closing(usage)


def answer_of(api: ChunkedApi, heading: Heading, *, include_usage: bool, logprobs: bool) -> Answer:
    """How that endpoint words it."""
    wording = ChatAnswer if api == "chat" else TextAnswer
    return wording(heading, include_usage=include_usage, logprobs=logprobs)


class _ChatChunks:
    def __init__(self, frame: _ChunkFrame, index: int) -> None:
        self._frame = frame
        self._index = index
        self._before, self._after = frame.around(index, {"delta": {"content": _MARK}, "finish_reason": None})

    def opening(self) -> bytes:
        return self._frame.chunk(self._index, {"delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def piece(self, text: str, logprobs: Sequence[Logprobs] = ()) -> bytes:
        if not logprobs:
            return self._before + _encode(text) + self._after
        told = chat_logprobs(logprobs)
        return self._frame.chunk(self._index, {"delta": {"content": text}, "logprobs": told, "finish_reason": None})

    def thought(self, text: str) -> bytes:
        return self._frame.chunk(self._index, {"delta": {"reasoning_content": text}, "finish_reason": None})

    def calls(self, pieces: Sequence[ToolCallDelta]) -> bytes:
        told = [_call_piece(piece) for piece in pieces]
        return self._frame.chunk(self._index, {"delta": {"tool_calls": told}, "finish_reason": None})

    def ending(self, reason: FinishReason) -> bytes:
        return self._frame.chunk(self._index, {"delta": {}, "finish_reason": reason.value})


class _TextChunks:
    def __init__(self, frame: _ChunkFrame, index: int) -> None:
        self._frame = frame
        self._index = index
        self._logprobs = TextLogprobs()
        self._before, self._after = frame.around(index, {"text": _MARK, "finish_reason": None})

    def opening(self) -> bytes:
        return b""

    def piece(self, text: str, logprobs: Sequence[Logprobs] = ()) -> bytes:
        if not logprobs:
            return self._before + _encode(text) + self._after
        told = self._logprobs.document(logprobs)
        return self._frame.chunk(self._index, {"text": text, "logprobs": told, "finish_reason": None})

    def thought(self, text: str) -> bytes:
        raise AssertionError("the output of raw prompts is not parsed")

    def calls(self, pieces: Sequence[ToolCallDelta]) -> bytes:
        raise AssertionError("the output of raw prompts is not parsed")

    def ending(self, reason: FinishReason) -> bytes:
        return self._frame.chunk(self._index, {"text": "", "finish_reason": reason.value})


class _ChunkFrame:
    """Chunks of one choice each. With `include_usage`, all say `usage: null` but a last one, which has it and no
    choice."""

    def __init__(self, document: Mapping[str, object], *, include_usage: bool) -> None:
        self._document = document
        self._include_usage = include_usage

    def chunk(self, index: int, choice: Mapping[str, object]) -> bytes:
        document = {**self._document, "choices": [{"index": index, "logprobs": None, **choice}]}
        if self._include_usage:
            document["usage"] = None
        return sse.event(_encode(document))

    def around(self, index: int, choice: Mapping[str, object]) -> tuple[bytes, bytes]:
        """The bytes before and after the mark in a chunk."""
        # From the right: the choice comes after the model, whose name is not ours.
        before, _, after = self.chunk(index, choice).rpartition(_encode(_MARK))
        return before, after

    def closing(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return sse.DONE
        return sse.event(_encode({**self._document, "choices": [], "usage": _usage(usage)})) + sse.DONE


def _message(choice: Completion) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return message


def _call_piece(piece: ToolCallDelta) -> dict[str, object]:
    if piece.id is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


def _whole(document: Mapping[str, object], choices: Sequence[Mapping[str, object]], usage: Usage) -> bytes:
    return _encode({**document, "choices": choices, "usage": _usage(usage)})


def _usage(usage: Usage) -> dict[str, object]:
    told: dict[str, object] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.speculation is not None:
        told["completion_tokens_details"] = {
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.drafted_tokens - usage.accepted_tokens,
            "speculation": usage.speculation,
        }
    return told
