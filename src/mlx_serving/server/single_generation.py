"""One sequence for an API whose answers have parts: what is thought, said and called. See `generation`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive

from mlx_serving.core.choices import Choices, Usage
from mlx_serving.core.generation import Backend, Delta, FinishReason, GenerationRequest, GenerationStats
from mlx_serving.errors import EngineError
from mlx_serving.server.errors import json_response
from mlx_serving.server.generation import EventSink, EventsResponse, end_of
from mlx_serving.server.http.access_log import AccessRecord
from mlx_serving.server.http.in_flight import InFlight
from mlx_serving.server.http.keep_alive import EventStream, KeepAlive
from mlx_serving.server.http.merged_streams import NumberedDelta, merged_streams
from mlx_serving.server.resume.journal import Journal, Noted


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an answer ended, the stop string that ended it if one did, and its cost."""

    reason: FinishReason
    stop: str | None
    usage: Usage


class SingleAnswer(Protocol):
    """How one API words one sequence. What returns bytes returns them ready to send. `events` counts those that are
    numbered, as a client has them that goes on."""

    events: int

    def opening(self, prompt_tokens: int) -> bytes:
        """The events that a stream begins with, of an answer to a prompt of so many tokens."""
        ...

    def piece(self, delta: Delta) -> bytes:
        """The events of a delta; may be empty."""
        ...

    def closing(self, ending: Ending) -> bytes:
        """The events that end a stream."""
        ...

    def add(self, delta: Delta) -> None:
        """Take in a delta of an answer that is not streamed."""
        ...

    def whole(self, ending: Ending) -> bytes:
        """The body of an answer that is not streamed."""
        ...

    def failure(self, error: EngineError | None) -> bytes:
        """The event that ends a stream which failed; None is a defect of ours."""
        ...


@dataclass(frozen=True, slots=True)
class SingleGeneration:
    """A request, who generates its answer, how it is worded, and the line of the log it appears in."""

    request: GenerationRequest
    backend: Backend
    in_flight: InFlight
    answer: SingleAnswer
    record: AccessRecord
    journal: Journal | None = None
    noted: Noted | None = None

    @asynccontextmanager
    async def admitted(self, receive: Receive) -> AsyncGenerator[None]:
        """See `InFlight.admit`."""
        async with self.in_flight.admit(receive, self.request.timeout_s, self.request.request_id):
            with nullcontext() if self.journal is None or self.noted is None else self.journal.noting(self.noted):
                yield

    def streams(self) -> AbstractAsyncContextManager[AsyncIterator[NumberedDelta]]:
        """See `merged_streams`."""
        return merged_streams(self.backend, (self.request,))

    async def whole_response(self, receive: Receive) -> Response:
        """The complete answer. Raises `EngineError`; leaves the backend at once when the client leaves."""
        ending: Ending | None = None
        async with self.admitted(receive), self.streams() as deltas:
            async for _, delta in deltas:
                self.answer.add(delta)
                if self.noted is not None:
                    self.noted.add(0, delta)
                if delta.finish_reason is not None:
                    ending = self._ending(delta)
        assert ending is not None  # a stream without an end raises
        return json_response(self.answer.whole(ending))

    async def write_events(self, deltas: AsyncIterator[NumberedDelta], stream: EventSink) -> bytes:
        """Returns the closing ones, which are not sent yet."""
        await stream.write(self.answer.opening(self.record.served.prompt_tokens or 0))
        if self.noted is not None:
            self.noted.opened(self.answer.events)
        closing = b""
        async for _, delta in deltas:
            if self.noted is not None:
                self.noted.add(0, delta)
            body = self.answer.piece(delta)
            if delta.finish_reason is not None:
                closing = body + self.answer.closing(self._ending(delta))
            elif body:
                await stream.write(body)
            if self.noted is not None and delta.finish_reason is None:
                self.noted.sent(0, self.answer.events)
        return closing

    def _ending(self, delta: Delta) -> Ending:
        reason, stats = end_of(delta)
        return Ending(reason, delta.stop, self._usage(stats))

    def _usage(self, stats: GenerationStats) -> Usage:
        usage = Choices().usage([stats])
        self.record.usage = usage
        return usage


class SingleStream(EventsResponse):
    """The answer as server-sent events. The stream begins when the backend has accepted the request, or with a first
    comment before that."""

    def __init__(self, generation: SingleGeneration, keep_alive: KeepAlive) -> None:
        super().__init__(keep_alive, generation.record)
        self._generation = generation

    def failure(self, error: EngineError | None) -> bytes:
        return self._generation.answer.failure(error)

    async def send_events(self, receive: Receive, stream: EventStream) -> None:
        async with self._generation.admitted(receive):
            async with self._generation.streams() as deltas:
                await stream.open()
                closing = await self._generation.write_events(deltas, stream)
            await stream.close(closing)  # see `generation.StreamedResponse`
