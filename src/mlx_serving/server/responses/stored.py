"""The answers of the Responses API that are kept: to be looked at, and to go on from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import TypeAdapter, ValidationError

from mlx_serving.core.output.answer_parts import Part
from mlx_serving.core.response_index import Kept
from mlx_serving.core.response_store import ResponseStore, StorePolicy
from mlx_serving.engine.response_cache import ResponseBodies
from mlx_serving.errors import InvalidRequest, NotFound
from mlx_serving.server.function_tools import arguments_object
from mlx_serving.server.responses.schema import (
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


class _Record(msgspec.Struct, array_like=True):
    """A response as the file has it."""

    owner: str
    body: bytes
    inputs: tuple[dict[str, Any], ...]
    conversation: tuple[dict[str, Any], ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode
_items: TypeAdapter[tuple[InputItem, ...]] = TypeAdapter(tuple[InputItem, ...])


class StoredResponses:
    """Each belongs to the key it was asked for with: nobody else learns that it is there.

    All are in memory; `bodies` is a file that has them as well, if they are to be there after the next start. It is
    read with the first use, and what cannot be written there is in memory all the same. With a file, what counts as
    size is what a response takes there, and its time to live goes on while no server runs.
    """

    def __init__(self, policy: StorePolicy, bodies: ResponseBodies | None = None) -> None:
        self._store: ResponseStore[StoredResponse] = ResponseStore(policy)
        self._bodies = bodies
        self._now = time.monotonic if bodies is None else time.time
        self._opening: asyncio.Task[None] | None = None
        self._writing: set[asyncio.Task[None]] = set()

    def keep(
        self,
        response_id: str,
        owner: str,
        body: bytes,
        earlier: tuple[InputItem, ...],
        items: tuple[InputItem, ...],
        parts: Iterable[Part],
    ) -> None:
        """Keep a response, its input and what was answered. `earlier` was asked for before."""
        inputs = tuple(_documents(items, response_id))
        value = StoredResponse(body, inputs, (*earlier, *items, *answered(parts)))
        if self._bodies is None:
            # What was said earlier is shared with the responses before.
            size = 2 * len(body) + len(msgspec.json.encode(inputs))
            self._store.put(response_id, owner, value, size, self._now())
        else:
            record = _written(owner, value)
            self._store.put(response_id, owner, value, len(record), self._now())
            self._write(self._bodies, response_id, record)

    async def get(self, response_id: str, owner: str) -> StoredResponse:
        """Raises `NotFound`."""
        value = await self._find(response_id, owner)
        if value is None:
            raise _not_found(response_id)
        return value

    async def earlier(self, response_id: str | None, owner: str) -> tuple[InputItem, ...]:
        """What was said up to the end of a response. Raises `InvalidRequest` for one that is not kept."""
        if response_id is None:
            await self._opened()
            return ()
        value = await self._find(response_id, owner)
        if value is None:
            field = "previous_response_id"
            raise InvalidRequest(
                f"{field}: the response {response_id[:80]!r} is not stored here, or not any more", field=field
            )
        return value.conversation

    async def delete(self, response_id: str, owner: str) -> None:
        """Raises `NotFound`."""
        await self._opened()
        if not self._store.delete(response_id, owner, self._now()):
            raise _not_found(response_id)
        if self._bodies is not None:
            await asyncio.shield(self._spawn(self._bodies.drop(self._store.take_gone())))

    async def close(self) -> None:
        """What was to be written is written when this returns."""
        while self._writing:
            await asyncio.wait(self._writing)
        if self._bodies is not None:
            await self._bodies.close()

    async def _find(self, response_id: str, owner: str) -> StoredResponse | None:
        await self._opened()
        value = self._store.get(response_id, owner, self._now())
        if value is not None and self._bodies is not None:
            self._write(self._bodies, response_id, _written(owner, value))  # with the time of this use
        return value

    def _write(self, bodies: ResponseBodies, response_id: str, record: bytes) -> None:
        gone = self._store.take_gone()
        if response_id in gone:  # it is larger than all may be
            work = bodies.drop(gone)
        else:
            work = bodies.write(response_id, Kept(0, len(record), self._now()), record, gone)
        self._spawn(work)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """In the order of the calls."""
        task = asyncio.create_task(work, name="stored responses")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    async def _opened(self) -> None:
        if self._bodies is None:
            return
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(self._bodies), name="open the stored responses")
        await asyncio.shield(self._opening)

    async def _open(self, bodies: ResponseBodies) -> None:
        unreadable: list[str] = []
        for response_id, kept in await bodies.open():
            data = await bodies.read(response_id)
            try:
                record = _decode(data or b"")
                conversation = _items.validate_python(record.conversation)
            except (msgspec.MsgspecError, ValidationError):  # somebody else has written it
                unreadable.append(response_id)
            else:
                value = StoredResponse(record.body, record.inputs, conversation)
                self._store.put(response_id, record.owner, value, kept.size, kept.stored_at)
        await bodies.drop([*unreadable, *self._store.take_gone()])


def _written(owner: str, value: StoredResponse) -> bytes:
    conversation = _items.dump_python(value.conversation, mode="json", by_alias=True, exclude_none=True)
    return _encode(_Record(owner, value.body, tuple(dict(each) for each in value.inputs), conversation))


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
