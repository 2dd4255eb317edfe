"""What clients of the Responses API get: a response, or the events of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from mlx_serving.core.choices import Usage
from mlx_serving.core.generation import Delta, FinishReason, Logprobs
from mlx_serving.core.output.answer_parts import AnswerParts, Began, Ended, Grew, Part, PartEvent, PartKind
from mlx_serving.errors import EngineError, InvalidRequest, Overloaded
from mlx_serving.server.errors import DEFECT_MESSAGE
from mlx_serving.server.http import sse
from mlx_serving.server.openai.logprobs import chat_logprobs
from mlx_serving.server.responses.requests import encoded
from mlx_serving.server.single_generation import Ending

_encode = msgspec.json.Encoder().encode

OnDone = Callable[[Mapping[str, object], bytes, Iterable[Part]], None]


class ResponseAnswer:
    """`facts` are what every part of the answer repeats; `on_done` gets the response when it is complete, as a document
    and as bytes, before its client does. With `encode_reasoning` what was thought is sent in a form to be given back as
    well. See `single_generation.SingleAnswer`."""

    def __init__(
        self, facts: Mapping[str, object], item_id: str, on_done: OnDone, *, encode_reasoning: bool, logprobs: bool
    ) -> None:
        self._facts = facts
        self._item_id = item_id
        self._on_done = on_done
        self._encode_reasoning = encode_reasoning
        self._logprobs = logprobs
        self._parts = AnswerParts()
        self._frames: dict[int, tuple[bytes, bytes]] = {}
        self.events = 0
        self._reasoning_tokens = 0

    # -- streamed

    def opening(self, prompt_tokens: int) -> bytes:
        response = self._response("in_progress", (), None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def piece(self, delta: Delta) -> bytes:
        return b"".join([event for each in self._fed(delta) for event in self._word(each)])

    def closing(self, ending: Ending) -> bytes:
        cut_off = ending.reason is FinishReason.LENGTH
        events = [event for each in self._parts.finish() for event in self._word(each, cut_off=cut_off)]
        response, _ = self._done(ending)
        return b"".join([*events, self._event(f"response.{response['status']}", response=response)])

    def failure(self, error: EngineError | None) -> bytes:
        match error:
            case Overloaded():
                code = "rate_limit_exceeded"
            case InvalidRequest():
                code = "invalid_prompt"
            case _:
                code = "server_error"
        told = {"code": code, "message": DEFECT_MESSAGE if error is None else error.message}
        response = {**self._response("failed", self._items(cut_off=True), None), "error": told}
        return self._event("response.failed", response=response)

    def _fed(self, delta: Delta) -> Iterator[PartEvent]:
        if delta.reasoning:
            self._reasoning_tokens += len(delta.token_ids)
        return self._parts.feed(delta)

    def _word(self, event: PartEvent, *, cut_off: bool = False) -> Iterator[bytes]:
        part = event.part
        place: dict[str, object] = {"item_id": self._id(part), "output_index": part.number}
        match event:
            case Began():
                yield self._event("response.output_item.added", output_index=part.number, item=self._begun(part))
                if part.kind != "call":
                    place["content_index"] = 0
                    yield self._event("response.content_part.added", **place, part=_content(part.kind, ""))
            case Grew():
                yield self._growth(event)
            case Ended():
                yield from self._end(part, place)
                item = self._item(part, "incomplete" if cut_off else "completed")
                yield self._event("response.output_item.done", output_index=part.number, item=item)

    def _growth(self, event: Grew) -> bytes:
        """Of a part, these events differ in their number, the text and its log-probabilities, which are encoded into
        what is the same in all of them."""
        part = event.part
        if part.number not in self._frames:
            self._frames[part.number] = self._frame(part)
        before, between = self._frames[part.number]
        logprobs = b',"logprobs":' + _encode(self._told(event.logprobs)) if part.kind == "text" else b""
        number = self.events
        self.events += 1
        return b"%b%d%b%b%b}\n\n" % (before, number, between, _encode(event.text), logprobs)

    def _frame(self, part: Part) -> tuple[bytes, bytes]:
        """The bytes before the number, and those between it and the text."""
        kind = _GROWTHS[part.kind]
        place: dict[str, object] = {"item_id": self._id(part), "output_index": part.number}
        if part.kind != "call":
            place["content_index"] = 0
        before = f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":'
        return before.encode(), b"," + _encode(place)[1:-1] + b',"delta":'

    def _end(self, part: Part, place: dict[str, object]) -> Iterator[bytes]:
        if part.kind == "call":
            yield self._event(
                "response.function_call_arguments.done", **place, name=part.name, arguments=part.text or "{}"
            )
            return
        logprobs = self._told(part.logprobs)
        place["content_index"] = 0
        if part.kind == "reasoning":
            yield self._event("response.reasoning_text.done", **place, text=part.text)
        else:
            yield self._event("response.output_text.done", **place, text=part.text, logprobs=logprobs)
        yield self._event("response.content_part.done", **place, part=_content(part.kind, part.text, logprobs))

    def _event(self, kind: str, **fields: object) -> bytes:
        number = self.events
        self.events += 1
        return sse.named_event(kind, _encode({"type": kind, "sequence_number": number, **fields}))

    # -- whole

    def add(self, delta: Delta) -> None:
        for _ in self._fed(delta):
            pass

    def whole(self, ending: Ending) -> bytes:
        for _ in self._parts.finish():
            pass
        return self._done(ending)[1]

    def _done(self, ending: Ending) -> tuple[Mapping[str, object], bytes]:
        cut_off = ending.reason is FinishReason.LENGTH
        status = "incomplete" if cut_off else "completed"
        response = self._response(status, self._items(cut_off=cut_off), self._usage(ending.usage))
        if cut_off:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        body = _encode(response)
        self._on_done(response, body, self._parts.parts)
        return response, body

    def _response(self, status: str, output: Iterable[object], usage: object) -> dict[str, object]:
        return {**self._facts, "status": status, "output": list(output), "usage": usage}

    def _usage(self, usage: Usage) -> Mapping[str, object]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
            "total_tokens": usage.total_tokens,
        }

    # -- items

    def _items(self, *, cut_off: bool) -> list[Mapping[str, object]]:
        """What is cut off is the last one."""
        parts = self._parts.parts
        return [self._item(part, "incomplete" if cut_off and part is parts[-1] else "completed") for part in parts]

    def _begun(self, part: Part) -> Mapping[str, object]:
        empty: dict[str, object] = {"content": []} if part.kind != "call" else {"arguments": ""}
        return {**self._item(part, "in_progress"), **empty}

    def _item(self, part: Part, status: str) -> Mapping[str, object]:
        heading: dict[str, object] = {"id": self._id(part), "status": status}
        match part.kind:
            case "reasoning":
                item = {**heading, "type": "reasoning", "summary": [], "content": [_content("reasoning", part.text)]}
                return {**item, "encrypted_content": encoded(part.text)} if self._encode_reasoning else item
            case "text":
                content = _content("text", part.text, self._told(part.logprobs))
                return {**heading, "type": "message", "role": "assistant", "content": [content]}
            case "call":
                called = {"call_id": part.call_id, "name": part.name, "arguments": part.text or "{}"}
                return {**heading, "type": "function_call", **called}

    def _id(self, part: Part) -> str:
        return f"{_ID_PREFIXES[part.kind]}_{self._item_id}{part.number:02}"

    def _told(self, logprobs: Iterable[Logprobs]) -> object:
        return chat_logprobs(logprobs)["content"] if self._logprobs else []


_GROWTHS: Mapping[PartKind, str] = {
    "reasoning": "response.reasoning_text.delta",
    "text": "response.output_text.delta",
    "call": "response.function_call_arguments.delta",
}
_ID_PREFIXES: Mapping[str, str] = {"reasoning": "rs", "text": "msg", "call": "fc"}


def _content(kind: str, text: str, logprobs: object = ()) -> Mapping[str, object]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
