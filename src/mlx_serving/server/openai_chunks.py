"""What goes back: whole completions, and the chunks of a stream.

All chunks of a stream differ in one string only, so everything around it is encoded once per stream; a token costs one
string encoding and one concatenation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from mlx_serving.core.generation import FinishReason, GenerationStats
from mlx_serving.server import sse

_encode = msgspec.json.Encoder().encode
# A mark that JSON encoding leaves as it is, and that no other part of a chunk can contain: ids are hexadecimal.
_MARK = "\x7f<text>\x7f"


@dataclass(frozen=True, slots=True)
class Heading:
    """What every part of one answer repeats. `created` is Unix seconds."""

    completion_id: str
    created: int
    model: str
    system_fingerprint: str

    def document(self, kind: str) -> dict[str, object]:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def usage(stats: GenerationStats) -> dict[str, int]:
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.tokens_generated,
        "total_tokens": stats.prompt_tokens + stats.tokens_generated,
    }


class Answer(Protocol):
    """How one API words a completion. Every method returns bytes that are ready to send."""

    def whole(self, text: str, reason: FinishReason, stats: GenerationStats) -> bytes:
        """The body of an answer that is not streamed."""
        ...

    def opening(self) -> bytes:
        """What the stream begins with; may be empty."""
        ...

    def piece(self, text: str) -> bytes:
        """An event with new text."""
        ...

    def ending(self, reason: FinishReason, stats: GenerationStats) -> bytes:
        """The events that end the stream."""
        ...


class ChatAnswer:
    """`chat.completion` and `chat.completion.chunk`."""

    def __init__(self, heading: Heading, *, include_usage: bool) -> None:
        self._heading = heading
        self._frame = _ChunkFrame(heading.document("chat.completion.chunk"), include_usage=include_usage)
        self._before, self._after = self._frame.around({"delta": {"content": _MARK}, "finish_reason": None})

    def whole(self, text: str, reason: FinishReason, stats: GenerationStats) -> bytes:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": reason.value,
        }
        return _encode(self._heading.document("chat.completion") | {"choices": [choice], "usage": usage(stats)})

    def opening(self) -> bytes:
        return self._frame.chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def piece(self, text: str) -> bytes:
        return self._before + _encode(text) + self._after

    def ending(self, reason: FinishReason, stats: GenerationStats) -> bytes:
        return self._frame.ending({"delta": {}, "finish_reason": reason.value}, stats)


class TextAnswer:
    """`text_completion`, streamed and whole."""

    def __init__(self, heading: Heading, *, include_usage: bool) -> None:
        self._heading = heading
        self._frame = _ChunkFrame(heading.document("text_completion"), include_usage=include_usage)
        self._before, self._after = self._frame.around({"text": _MARK, "finish_reason": None})

    def whole(self, text: str, reason: FinishReason, stats: GenerationStats) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason.value}
        return _encode(self._heading.document("text_completion") | {"choices": [choice], "usage": usage(stats)})

    def opening(self) -> bytes:
        return b""

    def piece(self, text: str) -> bytes:
        return self._before + _encode(text) + self._after

    def ending(self, reason: FinishReason, stats: GenerationStats) -> bytes:
        return self._frame.ending({"text": "", "finish_reason": reason.value}, stats)


class _ChunkFrame:
    """Chunks of one choice. With `include_usage`, all say `usage: null` but a last one, which has it and no choice."""

    def __init__(self, document: Mapping[str, object], *, include_usage: bool) -> None:
        self._document = document
        self._include_usage = include_usage

    def chunk(self, choice: Mapping[str, object]) -> bytes:
        document = {**self._document, "choices": [{"index": 0, "logprobs": None, **choice}]}
        if self._include_usage:
            document["usage"] = None
        return sse.event(_encode(document))

    def around(self, choice: Mapping[str, object]) -> tuple[bytes, bytes]:
        """The bytes before and after the mark in a chunk."""
        # From the right: the choice comes after the model, whose name is not ours.
        before, _, after = self.chunk(choice).rpartition(_encode(_MARK))
        return before, after

    def ending(self, choice: Mapping[str, object], stats: GenerationStats) -> bytes:
        events = self.chunk(choice)
        if self._include_usage:
            events += sse.event(_encode({**self._document, "choices": [], "usage": usage(stats)}))
        return events + sse.DONE
