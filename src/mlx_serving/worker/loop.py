"""The heart of the worker: take commands, do a step, tell what happened, again."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from mlx_serving.core.suggest import did_you_mean
from mlx_serving.errors import EngineError, InvalidEnvelope, MessageTooLarge, UnknownMethod
from mlx_serving.wire import jsonrpc
from mlx_serving.wire.framing import Frame, Line, Message, Oversized
from mlx_serving.worker.embedding.embeddings import Embeddings
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.handlers import Handlers
from mlx_serving.worker.heartbeat import Progress
from mlx_serving.worker.memory import MemoryGuard
from mlx_serving.worker.pipe import EndOfInput, Outbox
from mlx_serving.worker.routes import Reply, Route, attempt

Command: TypeAlias = Message | EndOfInput | Callable[[], None]


class Inbox:
    """Commands from any thread, taken by the one that owns MLX."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def put(self, command: Command) -> None:
        self._queue.put(command)

    def wake(self) -> None:
        """End a wait in `take`."""
        self.put(_nothing)

    def take(self, patience_s: float | None) -> Iterator[Command]:
        """Everything that is there; waits up to `patience_s` seconds for the first one, for ever if that is None."""
        try:
            bounded = None if patience_s is None else min(patience_s, threading.TIMEOUT_MAX)
            yield self._queue.get(block=patience_s != 0, timeout=bounded)
            while True:
                yield self._queue.get(block=False)
        except queue.Empty:
            return


class Loop:
    """`linger`: at the end of input finish what was accepted (a person pipes commands in); else stop at once.

    No step is made while the other end leaves too much unread: then commands are all that can be done for it.
    """

    def __init__(
        self,
        inbox: Inbox,
        outbox: Outbox,
        generation: Generation,
        embeddings: Embeddings,
        memory: MemoryGuard,
        progress: Progress,
        *,
        linger: bool,
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._generation = generation
        self._embeddings = embeddings
        self._memory = memory
        self._progress = progress
        self._linger = linger
        self._stopping = False
        self._ended = False

    def stop(self) -> None:
        self._stopping = True

    def run(self, handlers: Handlers) -> None:
        while not self._stopping:
            if self._ended and self._is_done and not handlers.owes_answers:
                return
            patience_s = self._patience_s(handlers)
            self._progress.busy = patience_s == 0 or handlers.is_loading
            commands = self._inbox.take(patience_s)
            if commands:
                self._memory.refresh()  # who ended in the last step has left something for those who come
            for command in commands:
                self._progress.busy = True
                self._handle(command, handlers.routes)
                self._progress.advance()
                if self._stopping:
                    return
            if self._outbox.is_congested:
                continue
            self._memory.refresh()
            began = time.monotonic()
            frame = self._generation.step()
            self._progress.advance()
            if frame is not None:
                self._outbox.tell(frame)
            if not self._embeddings.is_idle:
                self._embed(0.0 if self._generation.is_idle else time.monotonic() - began)
            # A stream may have ended in the step, by an abort or by a refusal: a model may wait for that.
            for chore in handlers.chores:
                chore.work()

    def _embed(self, stream_step_s: float) -> None:
        """One pass between two steps of the streams."""
        frame = self._embeddings.step(stream_step_s)
        self._progress.advance()
        if frame is not None:
            self._outbox.notify(frame)

    @property
    def _is_done(self) -> bool:
        return len(self._generation) == 0 and self._embeddings.is_idle

    def _patience_s(self, handlers: Handlers) -> float | None:
        """How long to wait for a command: not at all while there is work that can be done, for ever if there is none
        before one comes."""
        if self._outbox.is_congested:
            return None
        is_idle = self._generation.is_idle and self._embeddings.is_idle
        if not is_idle or any(chore.is_due for chore in handlers.chores):
            return 0
        now = time.monotonic()
        due = [time for time in (self._generation.next_deadline, self._memory.next_look) if time is not None]
        return max(0.0, min(due) - now) if due else None

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
                    self._generation.resume_all()  # nobody is left who could
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
            params = jsonrpc.parse_params(request.params, route.method.params)
        except EngineError as error:
            reply.fail(error)
        else:
            attempt(route, params, reply)


def _nothing() -> None:
    pass
