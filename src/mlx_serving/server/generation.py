"""One generation over HTTP, whole or streamed: it ends when the backend is done, the client leaves, or time is over.

It may have several choices: each is a stream of the backend.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_serving.core.choices import Choices, Completion, Transcript, Usage
from mlx_serving.core.generation import Backend, Delta, FinishReason, GenerationRequest, GenerationStats
from mlx_serving.errors import Aborted, EngineError, ProtocolError
from mlx_serving.server.errors import DEFECT, encode_error, error_code, json_response
from mlx_serving.server.http import sse
from mlx_serving.server.http.access_log import AccessRecord
from mlx_serving.server.http.in_flight import InFlight
from mlx_serving.server.http.keep_alive import EventStream, KeepAlive
from mlx_serving.server.http.merged_streams import NumberedDelta, merged_streams
from mlx_serving.server.openai.chunks import Answer, ChoiceChunks
from mlx_serving.server.resume.journal import Journal, Noted
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.server")
_LAST_WORDS_S = 5.0


@dataclass(frozen=True, slots=True)
class Generation:
    """A request's sequences, who generates them, how the answer is worded, and the line of the log it appears in."""

    requests: tuple[GenerationRequest, ...]
    choices: Choices
    backend: Backend
    in_flight: InFlight
    answer: Answer
    record: AccessRecord
    journal: Journal | None = None
    noted: Noted | None = None

    @asynccontextmanager
    async def admitted(self, receive: Receive) -> AsyncGenerator[None]:
        """See `InFlight.admit`."""
        name = self.requests[0].request_id
        async with self.in_flight.admit(receive, self.requests[0].timeout_s, name):
            with nullcontext() if self.journal is None or self.noted is None else self.journal.noting(self.noted):
                yield

    def streams(self) -> AbstractAsyncContextManager[AsyncIterator[NumberedDelta]]:
        """See `merged_streams`."""
        return merged_streams(self.backend, self.requests)

    def usage(self, stats: Sequence[GenerationStats]) -> Usage:
        """What all sequences cost, noted in the log."""
        usage = self.choices.usage(stats)
        self.record.usage = usage
        return usage


async def whole_response(generation: Generation, receive: Receive) -> Response:
    """The complete answer. Raises `EngineError`; leaves the backend at once when the client leaves."""
    transcripts = [Transcript() for _ in generation.requests]
    ended: dict[int, Completion] = {}
    async with generation.admitted(receive), generation.streams() as deltas:
        async for number, delta in deltas:
            transcripts[number].add(delta)
            if generation.noted is not None:
                generation.noted.add(number, delta)
            if delta.finish_reason is not None:
                ended[number] = transcripts[number].completed(*end_of(delta))
    completions = [ended[number] for number in range(len(ended))]
    usage = generation.usage([completion.stats for completion in completions])
    return json_response(generation.answer.whole(generation.choices.select(completions), usage))


class EventSink(Protocol):
    """Where the events of an answer go."""

    async def write(self, body: bytes) -> None:
        """Returns when there is room for more."""
        ...


class EventsResponse(Response, ABC):
    """An answer as server-sent events.

    What fails before the stream begins raises, and becomes an ordinary error response. What fails later is the last
    event, without `[DONE]`.
    """

    def __init__(self, keep_alive: KeepAlive, record: AccessRecord) -> None:
        super().__init__(media_type="text/event-stream")
        self._keep_alive = keep_alive
        self._record = record

    @abstractmethod
    async def send_events(self, receive: Receive, stream: EventStream) -> None:
        """Open the stream, write to it, close it."""

    def failure(self, error: EngineError | None) -> bytes:
        """The event that ends a stream which failed; None is a defect of ours."""
        return sse.event(DEFECT if error is None else encode_error(error))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with EventStream(send, self._keep_alive) as stream:
            try:
                await self.send_events(receive, stream)
                return
            except EngineError as error:
                if not stream.begun:
                    raise
                failure, code = self.failure(error), error_code(error)
            except Exception:
                if not stream.begun:
                    raise
                _log.exception("stream failed", request_id=self._record.request_id)
                failure, code = self.failure(None), "internal_error"
            self._record.error = code
            # A client that reads nothing is not waited for: leaving the answer unfinished closes its connection.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await stream.close(failure)


class StreamedResponse(EventsResponse):
    """The stream begins when the backend has accepted the request, or with a first comment before that."""

    def __init__(self, generation: Generation, keep_alive: KeepAlive) -> None:
        super().__init__(keep_alive, generation.record)
        self._generation = generation

    async def send_events(self, receive: Receive, stream: EventStream) -> None:
        async with self._generation.admitted(receive):
            async with self._generation.streams() as deltas:
                await stream.open()
                closing = await write_events(self._generation, deltas, stream)
            # Only now: once an answer is complete, servers report a disconnect, which disturbs the leaving.
            await stream.close(closing)


async def write_events(generation: Generation, deltas: AsyncIterator[NumberedDelta], stream: EventSink) -> bytes:
    """Returns the closing events, which are not sent yet."""
    noted = generation.noted
    choices = [generation.answer.choice(number) for number in range(len(generation.requests))]
    opening = b"".join(choice.opening() for choice in choices)
    if opening:
        await stream.write(opening)
    if noted is not None:
        noted.opened()
    ended: dict[int, GenerationStats] = {}
    async for number, delta in deltas:
        if noted is not None:
            noted.add(number, delta)
        body = worded(choices[number], delta)
        if delta.finish_reason is not None:
            _, ended[number] = end_of(delta)
        if body:
            await stream.write(body)
        if noted is not None:
            noted.sent(number)
    usage = generation.usage([ended[number] for number in range(len(choices))])
    return generation.answer.closing(usage)


def worded(choice: ChoiceChunks, delta: Delta) -> bytes:
    """The events that say what the delta says; may be empty. Raises as `end_of`."""
    body = choice.thought(delta.reasoning) if delta.reasoning else b""
    body += choice.piece(delta.text, delta.logprobs) if delta.text or delta.logprobs else b""
    body += choice.calls(delta.tool_calls) if delta.tool_calls else b""
    if delta.finish_reason is not None:
        body += choice.ending(end_of(delta)[0])
    return body


def end_of(delta: Delta) -> tuple[FinishReason, GenerationStats]:
    """Why a stream ended, and its stats. Raises `Aborted` for one that was cut off."""
    if delta.finish_reason is None or delta.finish_reason is FinishReason.ABORT:
        raise Aborted("The generation was aborted")
    if delta.stats is None:
        raise ProtocolError("The engine ended a stream without its stats")
    return delta.finish_reason, delta.stats
