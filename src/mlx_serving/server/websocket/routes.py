"""Chats over a WebSocket: several at a time on one connection, told apart by ids that the client chooses.

    client: {"type": "request", "id": …, "body": the body of POST /v1/chat/completions}
            {"type": "cancel", "id": …}
    server: {"type": "chunk", "id": …, "data": a chat.completion.chunk}    of a streamed answer, and in the end
            {"type": "done", "id": …}
            {"type": "completion", "id": …, "data": a chat.completion}     of one that is not streamed
            {"type": "cancelled", "id": …}
            {"type": "error", "id": …, "error": …}                         null: of what belongs to no request

An id is free again when its answer has ended. A client that does not read holds up its own answers only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from fastapi import APIRouter
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from mlx_serving.errors import EngineError, Forbidden, InvalidRequest, Overloaded
from mlx_serving.server.errors import DEFECT, encode_error, error_code, error_headers, json_response
from mlx_serving.server.generation import whole_response, write_events
from mlx_serving.server.http import sse
from mlx_serving.server.http.access_log import AccessRecord, current_record, log_request, set_record
from mlx_serving.server.http.body import parse_json_object
from mlx_serving.server.json_values import as_object
from mlx_serving.server.keys.auth import check_api_key
from mlx_serving.server.openai.routes import prepared_chat
from mlx_serving.server.service import Service
from mlx_serving.telemetry.logger import get_logger

PATH = "/v1/ws"
MAX_REQUESTS = 128
"""At a time on one connection."""
MAX_ID_CHARS = 128

_log = get_logger("mlx_serving.server")
_encode = msgspec.json.Encoder().encode


def websocket_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.websocket(PATH)
    async def chats(websocket: WebSocket) -> None:
        try:
            _check_origin(websocket.headers, service.settings.cors_origins)
            check_api_key(service, websocket.headers)
        except EngineError as error:
            refusal = json_response(encode_error(error), error.http_status, error_headers(error))
            await websocket.send_denial_response(refusal)
            return
        await websocket.accept()
        await _Connection(service, websocket).serve()

    return router


def _check_origin(headers: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raise `Forbidden` for a page of another site: browsers let it open connections to here."""
    origin = headers.get("origin")
    if origin is None or origin in allowed or "*" in allowed:
        return
    if urlsplit(origin).netloc != headers.get("host", ""):
        raise Forbidden("Pages of other sites may not connect", given=origin[:200])


class _Connection:
    def __init__(self, service: Service, websocket: WebSocket) -> None:
        self._service = service
        self._websocket = websocket
        self._running: dict[str, _Exchange] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Returns when the connection is closed, and everything that it asked for has ended."""
        try:
            while (message := await self._websocket.receive())["type"] == "websocket.receive":
                await self._take(message)
        except WebSocketDisconnect:
            pass  # found out while something was sent
        finally:
            for exchange in self._running.values():
                exchange.end.set()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _take(self, message: Message) -> None:
        text = message.get("text")
        addressee = None
        try:
            given = parse_json_object(message["bytes"] if text is None else text.encode())
            request_id = _id(given)
            # An error for an id in use would look like the end of the request that has it.
            addressee = None if request_id in self._running else request_id
            if _kind(given) == "cancel":
                self._cancel(request_id)
            else:
                self._begin(request_id, _body(given))
        except EngineError as error:
            await self._send(_error(addressee, encode_error(error)))

    def _begin(self, request_id: str, body: Mapping[str, object]) -> None:
        if request_id in self._running:
            raise InvalidRequest(f"id: a request with the id {request_id!r} is being answered", field="id")
        if len(self._running) >= MAX_REQUESTS:
            raise Overloaded(f"At most {MAX_REQUESTS} requests at a time on one connection", retry_after=1.0)
        exchange = self._running[request_id] = _Exchange(request_id)
        task = asyncio.create_task(self._answer(exchange, body), name=f"websocket-{request_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancel(self, request_id: str) -> None:
        """Who cancels what has just ended has its answer already."""
        exchange = self._running.get(request_id)
        if exchange is not None:
            exchange.cancelled = True
            exchange.end.set()

    async def _answer(self, exchange: _Exchange, body: Mapping[str, object]) -> None:
        connected = current_record()
        record = AccessRecord(holder=None if connected is None else connected.holder)
        set_record(record)
        try:
            last = await self._last_words(exchange, record, body)
            del self._running[exchange.request_id]  # before the client learns that it is free
            await self._send(last)
        except WebSocketDisconnect:
            self._running.pop(exchange.request_id, None)
            record.error = record.error or "aborted"
        finally:
            if self._service.settings.access_log:
                log_request("WEBSOCKET", PATH, record)

    async def _last_words(self, exchange: _Exchange, record: AccessRecord, body: Mapping[str, object]) -> bytes:
        """Answers, up to the last message, which is returned."""
        request_id = exchange.request_id
        try:
            generation, streamed = prepared_chat(self._service, record, self._websocket.headers, body)
            if not streamed:
                whole = await whole_response(generation, exchange.receive)
                return _told("completion", request_id, bytes(whole.body))
            sink = _Sink(self, request_id)
            async with generation.admitted(exchange.receive):
                async with generation.streams() as deltas:
                    closing = await write_events(generation, deltas, sink)
                await sink.write(closing)
            return _told("done", request_id)
        except EngineError as error:
            record.error = error_code(error)
            return _told("cancelled", request_id) if exchange.cancelled else _error(request_id, encode_error(error))
        except WebSocketDisconnect:
            raise
        except Exception:  # noqa: BLE001  one request's defect is not the others'
            record.error = "internal_error"
            _log.exception("request failed", request_id=record.request_id)
            return _error(request_id, DEFECT)

    async def send_chunk(self, request_id: str, data: bytes) -> None:
        await self._send(_told("chunk", request_id, data))

    async def _send(self, message: bytes) -> None:
        """Waits while the client does not read. Raises `WebSocketDisconnect` when it is gone."""
        try:
            await self._websocket.send_text(message.decode())
        except RuntimeError as error:  # starlette's, for what is sent after the end
            raise WebSocketDisconnect(1006) from error


class _Exchange:
    """One request and the end of its answer from outside: cancelled, or left by its client."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.cancelled = False
        self.end = asyncio.Event()

    async def receive(self) -> Message:
        """As a request over HTTP learns that its client has left."""
        await self.end.wait()
        return {"type": "http.disconnect"}


class _Sink:
    """Server-sent events become messages."""

    def __init__(self, connection: _Connection, request_id: str) -> None:
        self._connection = connection
        self._request_id = request_id

    async def write(self, body: bytes) -> None:
        for data in sse.data_of(body):
            if data != b"[DONE]":
                await self._connection.send_chunk(self._request_id, data)


def _id(given: Mapping[str, object]) -> str:
    request_id = given.get("id")
    if not isinstance(request_id, str) or not 1 <= len(request_id) <= MAX_ID_CHARS:
        raise InvalidRequest(f"id must be a string of 1 to {MAX_ID_CHARS} characters", field="id", limit=MAX_ID_CHARS)
    return request_id


def _kind(given: Mapping[str, object]) -> Literal["request", "cancel"]:
    kind = given.get("type")
    if kind != "request" and kind != "cancel":
        raise InvalidRequest("type must be request or cancel", field="type")
    allowed = {"type", "id", "body"} if kind == "request" else {"type", "id"}
    unknown = next((name for name in given if name not in allowed), None)
    if unknown is not None:
        raise InvalidRequest(f"{unknown[:80]} is not a parameter of a {kind}", field=unknown[:80])
    return "request" if kind == "request" else "cancel"


def _body(given: Mapping[str, object]) -> Mapping[str, object]:
    body = as_object(given.get("body"))
    if body is None:
        raise InvalidRequest("body must be an object, as for POST /v1/chat/completions", field="body")
    return body


def _told(kind: str, request_id: str, data: bytes | None = None) -> bytes:
    heading = b'{"type":"' + kind.encode() + b'","id":' + _encode(request_id)
    return heading + (b"}" if data is None else b',"data":' + data + b"}")


def _error(request_id: str | None, document: bytes) -> bytes:
    """`document` is `{"error": …}`."""
    return b'{"type":"error","id":' + _encode(request_id) + b"," + document[1:]
