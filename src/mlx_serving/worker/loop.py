"""The heart of the worker: take commands, do a step, tell what happened, again."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from mlx_serving.core.suggest import did_you_mean
from mlx_serving.errors import EngineError, InvalidEnvelope, MessageTooLarge, ProtocolError, UnknownMethod
from mlx_serving.wire import jsonrpc
from mlx_serving.wire.framing import Frame, Line, Message, Oversized
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.handlers import Handlers
from mlx_serving.worker.heartbeat import Progress
from mlx_serving.worker.pipe import EndOfInput, Outbox
from mlx_serving.worker.routes import Reply, Route

Command: TypeAlias = Message | EndOfInput | Callable[[], None]


class Inbox:
    """Commands from any thread, taken by the one that owns MLX."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def put(self, command: Command) -> None:
        self._queue.put(command)

    def take(self, *, block: bool) -> Iterator[Command]:
        """Everything that is there; waits for the first one if `block`."""
        try:
            yield self._queue.get(block=block)
            while True:
                yield self._queue.get(block=False)
        except queue.Empty:
            return


class Loop:
    """`linger`: at the end of input finish what was accepted (a person pipes commands in); else stop at once."""

    def __init__(
        self, inbox: Inbox, outbox: Outbox, generation: Generation, progress: Progress, *, linger: bool
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._generation = generation
        self._progress = progress
        self._linger = linger
        self._stopping = False
        self._ended = False

    def stop(self) -> None:
        self._stopping = True

    def run(self, handlers: Handlers) -> None:
        while not self._stopping:
            idle = len(self._generation) == 0
            if self._ended and idle and not handlers.owes_answers:
                return
            self._progress.busy = not idle
            for command in self._inbox.take(block=idle):
                self._progress.busy = True
                self._handle(command, handlers.routes)
                self._progress.advance()
                if self._stopping:
                    return
            frame = self._generation.step()
            self._progress.advance()
            if frame is not None:
                self._outbox.notify(frame)
            handlers.finish_unloading()  # a stream may have ended in the step, by an abort or by a refusal

    def _handle(self, command: Command, routes: dict[str, Route[Any, Any]]) -> None:
        match command:
            case Line():
                self._dispatch(command.data, routes)
            case Oversized():
                error = MessageTooLarge(
                    f"A message of {command.size} bytes or more exceeds the limit of {command.limit} bytes",
                    limit=command.limit,
                    given=command.size,
                )
                self._outbox.send(jsonrpc.encode_error(None, error))
            case Frame():
                error = InvalidEnvelope("Binary frames are what the worker sends, not what it reads")
                self._outbox.send(jsonrpc.encode_error(None, error))
            case EndOfInput():
                if self._linger:
                    self._ended = True
                else:
                    self._stopping = True
            case _:
                command()

    def _dispatch(self, line: bytes, routes: dict[str, Route[Any, Any]]) -> None:
        try:
            request = jsonrpc.parse_request(line)
        except jsonrpc.Rejected as rejected:
            self._outbox.send(jsonrpc.encode_error(rejected.id, rejected.error))
            return
        reply: Reply[Any] = Reply(self._outbox, request.id)
        route = routes.get(request.method)
        if route is None:
            hint = did_you_mean(request.method, routes)
            reply.fail(
                UnknownMethod(f"There is no method {request.method}" + (f"; did you mean {hint}?" if hint else ""))
            )
            return
        try:
            route.handle(jsonrpc.parse_params(request.params, route.method.params), reply)
        except EngineError as error:
            reply.fail(error)
        except Exception as error:  # noqa: BLE001  a defect in one handler must not end every stream
            reply.fail(ProtocolError(f"{request.method} failed inside the worker: {type(error).__name__}: {error}"))
