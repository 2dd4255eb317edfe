"""What Anthropic's clients get: a message, or the events of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from mlx_serving.core.choices import Usage
from mlx_serving.core.generation import Delta, FinishReason
from mlx_serving.core.output.answer_parts import AnswerParts, Began, Ended, Grew, Part, PartEvent, PartKind
from mlx_serving.errors import EngineError
from mlx_serving.server.anthropic import errors as anthropic_errors
from mlx_serving.server.errors import DEFECT_MESSAGE
from mlx_serving.server.function_tools import arguments_object
from mlx_serving.server.http import sse
from mlx_serving.server.single_generation import Ending

_encode = msgspec.json.Encoder().encode
_MARK = "<text>"  # nothing else in these events is not ours


class MessageAnswer:
    """`show_thinking`: whether what the model thinks is sent. `max_tokens` were asked for; `context_length` tells how
    many tokens the model's context holds, when the answer has ended. See `single_generation.SingleAnswer`."""

    def __init__(
        self,
        message_id: str,
        model: str,
        request_id: str,
        *,
        show_thinking: bool,
        max_tokens: int,
        context_length: Callable[[], int | None],
    ) -> None:
        self._heading = {"id": message_id, "type": "message", "role": "assistant", "model": model}
        self._request_id = request_id
        self._show_thinking = show_thinking
        self._max_tokens = max_tokens
        self._context_length = context_length
        self.events = 0  # none of them is numbered
        self._parts = AnswerParts()
        self._numbers: dict[int, int] = {}  # of the blocks, by those of the parts
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    # -- streamed

    def opening(self, prompt_tokens: int) -> bytes:
        usage = _usage(Usage(prompt_tokens, 0))
        message: dict[str, object] = {**self._heading, "content": [], **_END_UNKNOWN, "usage": usage}
        return _event("message_start", message=message) + _event("ping")

    def piece(self, delta: Delta) -> bytes:
        return b"".join(self._events(self._parts.feed(delta)))

    def closing(self, ending: Ending) -> bytes:
        events = list(self._events(self._parts.finish()))
        usage = _usage(ending.usage)
        del usage["service_tier"]
        return b"".join(
            [*events, _event("message_delta", delta=self._end(ending), usage=usage), _event("message_stop")]
        )

    def failure(self, error: EngineError | None) -> bytes:
        if error is None:
            body = anthropic_errors.encode_status(500, DEFECT_MESSAGE, self._request_id)
        else:
            body = anthropic_errors.encode_error(error, self._request_id)
        return sse.named_event("error", body)

    def _events(self, events: Iterator[PartEvent]) -> Iterator[bytes]:
        for event in events:
            if event.part.kind != "reasoning" or self._show_thinking:
                yield self._word(event)

    def _word(self, event: PartEvent) -> bytes:
        index = self._numbers.setdefault(event.part.number, len(self._numbers))
        match event:
            case Began():
                return _event("content_block_start", index=index, content_block=_empty(event.part))
            case Grew():
                before, after = self._around(event.part, index)
                return before + _encode(event.text) + after
            case Ended():
                signed = b""
                if event.part.kind == "reasoning":
                    signed = _event("content_block_delta", index=index, delta=_SIGNATURE)
                return signed + _event("content_block_stop", index=index)

    def _around(self, part: Part, index: int) -> tuple[bytes, bytes]:
        """The bytes before and after the text in the events in which the part grows: all else is the same in them."""
        if part.number not in self._frames:
            event = _event("content_block_delta", index=index, delta=_growth(part.kind, _MARK))
            before, _, after = event.partition(_encode(_MARK))
            self._frames[part.number] = before, after
        return self._frames[part.number]

    # -- whole

    def add(self, delta: Delta) -> None:
        for _ in self._parts.feed(delta):
            pass

    def whole(self, ending: Ending) -> bytes:
        shown = [part for part in self._parts.parts if part.kind != "reasoning" or self._show_thinking]
        content = [_block(part) for part in shown]
        return _encode({**self._heading, "content": content, **self._end(ending), "usage": _usage(ending.usage)})

    def _end(self, ending: Ending) -> Mapping[str, object]:
        reason = "stop_sequence" if ending.stop is not None else _STOP_REASONS[ending.reason]
        if reason == "max_tokens" and ending.usage.completion_tokens < self._max_tokens:
            holds = self._context_length()
            if holds is not None and ending.usage.total_tokens >= holds:
                reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": ending.stop}


_END_UNKNOWN: Mapping[str, object] = {"stop_reason": None, "stop_sequence": None}
# Whether what was thought may be given back needs no proof here.
_SIGNATURE: Mapping[str, object] = {"type": "signature_delta", "signature": ""}
_STOP_REASONS: Mapping[FinishReason, str] = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
}


def _usage(usage: Usage) -> dict[str, object]:
    """What was read from the cache does not count as input. Keeping is part of computing, and is not counted."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "service_tier": "standard",
    }


def _empty(part: Part) -> Mapping[str, object]:
    match part.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "text":
            return {"type": "text", "text": ""}
        case "call":
            return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}}


def _growth(kind: PartKind, text: str) -> Mapping[str, object]:
    match kind:
        case "reasoning":
            return {"type": "thinking_delta", "thinking": text}
        case "text":
            return {"type": "text_delta", "text": text}
        case "call":
            return {"type": "input_json_delta", "partial_json": text}


def _block(part: Part) -> Mapping[str, object]:
    match part.kind:
        case "reasoning":
            return {**_empty(part), "thinking": part.text}
        case "text":
            return {**_empty(part), "text": part.text}
        case "call":  # an answer that was cut off may have half an input, which is none
            return {**_empty(part), "input": arguments_object(part.text) or {}}


def _event(kind: str, **fields: object) -> bytes:
    return sse.named_event(kind, _encode({"type": kind, **fields}))
