"""The answers of the Responses API that are kept: to be looked at, and to go on from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from mlx_serving.core.answer_parts import Part
from mlx_serving.core.response_store import ResponseStore, StorePolicy
from mlx_serving.errors import InvalidRequest, NotFound
from mlx_serving.server.function_tools import arguments_object
from mlx_serving.server.responses_schema import (
    FunctionCallItem,
    InputItem,
    MessageItem,
    ReasoningItem,
    ReasoningText,
)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`body` is what its client got. `conversation` is everything up to its end, the items of earlier ones included."""

    body: bytes
    inputs: tuple[Mapping[str, object], ...]
    conversation: tuple[InputItem, ...]


class StoredResponses:
    """Each belongs to the key it was asked for with: nobody else learns that it is there."""

    def __init__(self, policy: StorePolicy) -> None:
        self._store: ResponseStore[StoredResponse] = ResponseStore(policy)

    def keep(
        self,
        response_id: str,
        owner: str,
        body: bytes,
        earlier: tuple[InputItem, ...],
        items: tuple[InputItem, ...],
        parts: Iterable[Part],
    ) -> None:
        """Keep a response, its input and what was answered."""
        inputs = tuple(_documents(items, response_id))
        value = StoredResponse(body, inputs, (*earlier, *items, *answered(parts)))
        self._store.put(response_id, owner, value, 2 * len(body) + len(msgspec.json.encode(inputs)), time.monotonic())

    def get(self, response_id: str, owner: str) -> StoredResponse:
        """Raises `NotFound`."""
        value = self._store.get(response_id, owner, time.monotonic())
        if value is None:
            raise _not_found(response_id)
        return value

    def earlier(self, response_id: str | None, owner: str) -> tuple[InputItem, ...]:
        """What was said up to the end of a response. Raises `InvalidRequest` for one that is not kept."""
        if response_id is None:
            return ()
        value = self._store.get(response_id, owner, time.monotonic())
        if value is None:
            field = "previous_response_id"
            raise InvalidRequest(
                f"{field}: the response {response_id[:80]!r} is not stored here, or not any more", field=field
            )
        return value.conversation

    def delete(self, response_id: str, owner: str) -> None:
        """Raises `NotFound`."""
        if not self._store.delete(response_id, owner, time.monotonic()):
            raise _not_found(response_id)


def answered(parts: Iterable[Part]) -> Iterator[InputItem]:
    """An answer as items of the conversation. A call that was cut off is left out: it has no arguments."""
    for part in parts:
        match part.kind:
            case "reasoning":
                yield ReasoningItem(type="reasoning", content=[ReasoningText(type="reasoning_text", text=part.text)])
            case "text":
                yield MessageItem(role="assistant", content=part.text)
            case "call" if arguments_object(part.text) is not None:
                arguments = part.text or "{}"
                yield FunctionCallItem(type="function_call", call_id=part.call_id, name=part.name, arguments=arguments)
            case _:
                pass


def _documents(items: Iterable[InputItem], response_id: str) -> Iterator[Mapping[str, object]]:
    """Input items as they are listed: all have an id, and content in parts."""
    for number, item in enumerate(items):
        document = item.model_dump(mode="json", exclude_none=True)
        document.setdefault("id", f"item_{response_id.removeprefix('resp_')}{number:02}")
        if isinstance(item, MessageItem) and isinstance(item.content, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            extra: dict[str, object] = {"annotations": []} if item.role == "assistant" else {}
            document["content"] = [{"type": kind, "text": item.content, **extra}]
        if isinstance(item, MessageItem | FunctionCallItem):
            document.setdefault("status", "completed")
        yield document


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"The response {response_id[:80]!r} is not stored here, or not any more", response=response_id[:80])
