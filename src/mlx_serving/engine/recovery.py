"""A Backend layer under which streams survive their worker: the shell around `core.recovery`.

When the worker dies under a request, or its model is replaced, the same request goes down the stack again, with what
was delivered so far; there it waits for the next worker and its model.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from mlx_serving.core.generation import Backend, Delta, GenerationRequest, GenerationStats
from mlx_serving.core.recovery import Recovery
from mlx_serving.errors import Aborted, EngineError, InvalidRequest
from mlx_serving.telemetry.events import (
    ErrorOccurred,
    EventBus,
    GenerationCompleted,
    GenerationStarted,
    StreamRecovered,
)


class RecoveryBackend:
    """`forget` is called with the id of a request that has ended for good."""

    def __init__(self, inner: Backend, forget: Callable[[str], None], events: EventBus) -> None:
        self._inner = inner
        self._forget = forget
        self._events = events
        self._active: dict[str, str] = {}  # request id -> the name of its model
        self._ended = asyncio.Event()

    @property
    def active_streams(self) -> int:
        """Streams that have not ended, wherever they are."""
        return len(self._active)

    async def until_unused(self, model: str) -> None:
        """Wait until no stream of the model is left."""
        while model in self._active.values():
            await self._ended.wait()

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `InvalidRequest` for a request_id that is in use."""
        stream_id = request.request_id
        if stream_id in self._active:
            raise InvalidRequest(f"A stream with the id {stream_id} is active", field="stream_id", given=stream_id)
        self._active[stream_id] = request.model
        stream = _Stream(self._inner, request, self._events)
        try:
            await stream.enter()
            self._events.publish(GenerationStarted(stream_id=stream_id, model_id=request.model))
            yield stream
        finally:
            try:
                await stream.leave()
            finally:
                del self._active[stream_id]
                self._ended.set()
                self._ended = asyncio.Event()
                self._forget(stream_id)
            if stream.error is not None and not isinstance(stream.error, Aborted):
                self._events.publish(ErrorOccurred(error=stream.error, context=f"stream {stream_id}"))
        if stream.stats is not None:
            self._events.publish(GenerationCompleted(stream_id=stream_id, stats=stream.stats))


class _Stream:
    """The deltas of one request, over as many attempts as it takes."""

    def __init__(self, inner: Backend, request: GenerationRequest, events: EventBus) -> None:
        self._inner = inner
        self._events = events
        self._request = request
        self._recovery = Recovery(request, secrets.randbits(63), time.monotonic())
        self._attempt = AsyncExitStack()
        self._deltas: AsyncIterator[Delta] | None = None
        self.error: EngineError | None = None  # what ended it after it was accepted
        self.stats: GenerationStats | None = None

    async def enter(self) -> None:
        """Returns when a worker has accepted the request, the first or a later one."""
        while True:
            try:
                self._deltas = await self._attempt.enter_async_context(
                    self._inner.generate(self._recovery.next_request())
                )
            except EngineError as error:
                await self._wait(error)
            else:
                self._recovery.admitted()
                return

    async def leave(self) -> None:
        await self._attempt.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while True:
            assert self._deltas is not None
            try:
                delta = await anext(self._deltas)
            except EngineError as error:
                await self._go_on(error)
                continue
            delta = self._recovery.advance(delta, time.monotonic())
            if delta.stats is not None:
                self.stats = delta.stats
            return delta

    async def _go_on(self, error: EngineError) -> None:
        lost_at = time.monotonic()
        try:
            await self._wait(await self._leave_failed(error))
            await self.enter()
        except EngineError as last:
            self.error = last
            raise
        self._events.publish(
            StreamRecovered(
                stream_id=self._request.request_id,
                model_id=self._request.model,
                delivered=self._recovery.delivered,
                losses=self._recovery.losses,
                pause_s=round(time.monotonic() - lost_at, 3),
            )
        )

    async def _leave_failed(self, error: EngineError) -> EngineError:
        """Leave the attempt. Returns its error in the words of the layer below that knows the reason."""
        try:
            await self._attempt.__aexit__(type(error), error, error.__traceback__)
        except EngineError as known:
            return known
        return error

    async def _wait(self, error: EngineError) -> None:
        """Until the next attempt. Raises `error` if there is to be none."""
        wait_s = self._recovery.retry_after(error)
        if wait_s is None:
            raise error
        if wait_s:
            await asyncio.sleep(wait_s)
