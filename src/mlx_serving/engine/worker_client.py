"""The parent's end of the pipe: calls that wait for their answer, and rows that go to their streams."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import TypeVar, cast

from mlx_serving.errors import DeadlineExceeded, EngineError, InvalidRequest, MessageTooLarge, ProtocolError, WorkerDied
from mlx_serving.telemetry.logger import get_logger
from mlx_serving.wire import jsonrpc
from mlx_serving.wire.framing import Frame, Line, MessageReader, Oversized
from mlx_serving.wire.methods import (
    PROTOCOL_VERSION,
    RUNTIME_INFO,
    STEP_FRAMES,
    Method,
    RuntimeInfoParams,
    RuntimeInfoResult,
)
from mlx_serving.wire.notifications import Heartbeat, MemoryWanted, ModelProgress, Notice, Row, StepFrame, decode_binary

P = TypeVar("P")
R = TypeVar("R")
OnRow = Callable[[Row], None]

_log = get_logger("mlx_serving.worker")

# What the worker may send in one message; far above any answer to a request that it would accept.
_MAX_INCOMING_BYTES = 256 << 20


class WorkerClient(asyncio.Protocol):
    """One connection to one child. When the child is lost, `abandon` fails what is under way, once."""

    def __init__(
        self,
        max_message_bytes: int,
        *,
        on_heartbeat: Callable[[Heartbeat], None],
        on_model_progress: Callable[[ModelProgress], None],
        on_memory_wanted: Callable[[MemoryWanted], None],
        on_broken: Callable[[ProtocolError], None],
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._on_heartbeat = on_heartbeat
        self._on_model_progress = on_model_progress
        self._on_memory_wanted = on_memory_wanted
        self._on_broken = on_broken
        self._reader = MessageReader(_MAX_INCOMING_BYTES)
        self._transport: asyncio.WriteTransport | None = None
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[jsonrpc.Response]] = {}
        self._streams: dict[str, OnRow] = {}
        self._unasked: set[str] = set()
        self._lost: WorkerDied | None = None
        self._abandoned = asyncio.Event()
        self._broken = False
        self.has_served = False  # whether any row came that somebody had asked for

    @classmethod
    async def connect(
        cls,
        connection: socket.socket,
        max_message_bytes: int,
        *,
        on_heartbeat: Callable[[Heartbeat], None],
        on_model_progress: Callable[[ModelProgress], None],
        on_memory_wanted: Callable[[MemoryWanted], None],
        on_broken: Callable[[ProtocolError], None],
    ) -> WorkerClient:
        client = cls(
            max_message_bytes,
            on_heartbeat=on_heartbeat,
            on_model_progress=on_model_progress,
            on_memory_wanted=on_memory_wanted,
            on_broken=on_broken,
        )
        await asyncio.get_running_loop().create_unix_connection(lambda: client, sock=connection)
        return client

    @property
    def active_streams(self) -> int:
        return len(self._streams)

    async def call(self, method: Method[P, R], params: P, *, timeout_s: float | None = None) -> R:
        """Send a request and wait for its result.

        Raises the error that the worker answered with, `WorkerDied` when it was lost meanwhile, `DeadlineExceeded`
        after `timeout_s`; `MessageTooLarge`, and `InvalidRequest` for what JSON cannot say, without sending anything.
        """
        request_id = next(self._ids)
        try:
            message = jsonrpc.encode_request(method.name, params, request_id)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest(f"The parameters of {method.name} cannot be sent as JSON: {error}") from None
        if len(message) > self._max_message_bytes:
            raise MessageTooLarge(
                f"The request takes {len(message)} bytes, the worker accepts {self._max_message_bytes}",
                limit=self._max_message_bytes,
                given=len(message),
            )
        future: asyncio.Future[jsonrpc.Response] = asyncio.get_running_loop().create_future()
        self._write(message)
        self._calls[request_id] = future
        try:
            async with asyncio.timeout(timeout_s):
                response = await future
        except TimeoutError:
            raise DeadlineExceeded(f"{method.name} took longer than {timeout_s} s", method=method.name) from None
        finally:
            self._calls.pop(request_id, None)
        if isinstance(response.error, jsonrpc.RpcError):
            raise jsonrpc.to_engine_error(response.error)
        return jsonrpc.parse_result(response.result, method.result)

    async def shake_hands(self, heartbeat_interval_s: float) -> RuntimeInfoResult:
        """Agree on how to speak; the worker's heart begins to beat. Raises `ProtocolError` when they cannot agree,
        `WorkerDied` when the worker is lost."""
        asked = RuntimeInfoParams(protocols=[STEP_FRAMES, PROTOCOL_VERSION], heartbeat_interval_s=heartbeat_interval_s)
        try:
            info = await self.call(RUNTIME_INFO, asked)
        except WorkerDied:
            raise
        except EngineError as error:
            raise ProtocolError(f"The worker's handshake failed: {error.message}") from error
        if info.notifications != STEP_FRAMES:
            raise ProtocolError(f"The worker offers {info.protocols}, but not {STEP_FRAMES}")
        return info

    def post(self, method: Method[P, R], params: P) -> None:
        """Send a notification: nobody waits for an answer. Does nothing when the worker is gone."""
        if self._lost is None:
            self._write(jsonrpc.encode_notification(method.name, params))

    def open_stream(self, stream_id: str, on_row: OnRow, *, unasked: bool = False) -> None:
        """Route the rows of a stream to `on_row`, called as they arrive, until `close_stream`. `unasked`: it is for no
        user, and says nothing about whether this worker has served any."""
        self._streams[stream_id] = on_row
        if unasked:
            self._unasked.add(stream_id)

    def close_stream(self, stream_id: str) -> None:
        self._streams.pop(stream_id, None)
        self._unasked.discard(stream_id)

    async def wait_lost(self) -> WorkerDied:
        """Returns when the child is lost."""
        await self._abandoned.wait()
        assert self._lost is not None
        return self._lost

    def abandon(self, error: WorkerDied) -> None:
        """The child is lost: fail every call under way with `error`, and every later one."""
        if self._lost is not None:
            return
        self._lost = error
        self._abandoned.set()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(error)
        if self._transport is not None:
            self._transport.close()

    def _write(self, message: bytes) -> None:
        if self._lost is not None:
            raise self._lost
        if self._transport is None:
            raise ProtocolError("The connection to the worker is not open")
        if not self._transport.is_closing():
            self._transport.write(message)
        # Else its end is about to be noticed, which fails the call; uvloop refuses to write to a closed transport.

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream socket's transport can write; uvloop's does not inherit from asyncio's classes.
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        try:
            for message in self._reader.feed(data):
                match message:
                    case Frame():
                        self._on_frame(message.data)
                    case Line():
                        self._on_response(jsonrpc.parse_response(message.data))
                    case Oversized():
                        raise ProtocolError(f"The worker sent a message of {message.size} bytes")
        except ProtocolError as error:
            # Nothing after this can be trusted, rows that look sound least of all: others may be missing before them.
            # The supervisor replaces the child.
            self._broken = True
            self._on_broken(error)

    def _on_frame(self, body: bytes) -> None:
        notification = decode_binary(body)
        match notification:
            case StepFrame():
                for row in notification.rows:
                    self.has_served = self.has_served or row.stream_id not in self._unasked
                    on_row = self._streams.get(row.stream_id)
                    if on_row is not None:  # else its consumer has left, and the abort is on its way
                        on_row(row)
            case Heartbeat():
                self._on_heartbeat(notification)
            case ModelProgress():
                self._on_model_progress(notification)
            case MemoryWanted():
                self._on_memory_wanted(notification)
            case Notice():
                _log.warning(f"{notification.part} {notification.what}", **notification.facts)

    def _on_response(self, response: jsonrpc.Response) -> None:
        if isinstance(response.method, str):
            return  # a notification in JSON, from before the frames were negotiated
        future = self._calls.get(response.id) if isinstance(response.id, int) else None
        if future is None:
            if isinstance(response.error, jsonrpc.RpcError) and response.id is None:
                _log.error("the worker rejected a message", code=response.error.code, message=response.error.message)
            return  # its caller has given up
        if not future.done():
            future.set_result(response)
