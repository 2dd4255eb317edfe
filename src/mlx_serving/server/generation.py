"""One generation over HTTP, whole or streamed: it ends when the backend is done, the client leaves, or time is over."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_serving.core.generation import Backend, Delta, FinishReason, GenerationRequest, GenerationStats
from mlx_serving.errors import Aborted, EngineError, ProtocolError
from mlx_serving.server import sse
from mlx_serving.server.access_log import AccessRecord
from mlx_serving.server.errors import DEFECT, encode_error, error_code, json_response
from mlx_serving.server.in_flight import InFlight
from mlx_serving.server.openai_chunks import Answer
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.server")


@dataclass(frozen=True, slots=True)
class Generation:
    """A request, who generates it, how the answer is worded, and the line of the log it appears in."""

    request: GenerationRequest
    backend: Backend
    in_flight: InFlight
    answer: Answer
    record: AccessRecord

    @asynccontextmanager
    async def deltas(self, receive: Receive) -> AsyncGenerator[AsyncIterator[Delta]]:
        """Raises what `InFlight.admit` and `Backend.generate` raise."""
        async with (
            self.in_flight.admit(receive, self.request.timeout_s),
            self.backend.generate(self.request) as deltas,
        ):
            yield deltas

    def end(self, delta: Delta) -> tuple[FinishReason, GenerationStats]:
        """Why the stream ended and its stats, noted in the log. Raises `Aborted` for one that was cut off."""
        if delta.finish_reason is None or delta.finish_reason is FinishReason.ABORT:
            raise Aborted("The generation was aborted")
        if delta.stats is None:
            raise ProtocolError("The engine ended a stream without its stats")
        self.record.prompt_tokens = delta.stats.prompt_tokens
        self.record.completion_tokens = delta.stats.tokens_generated
        return delta.finish_reason, delta.stats


async def whole_response(generation: Generation, receive: Receive) -> Response:
    """The complete answer. Raises `EngineError`; leaves the backend at once when the client leaves."""
    text: list[str] = []
    async with generation.deltas(receive) as deltas:
        async for delta in deltas:
            text.append(delta.text)
            if delta.finish_reason is not None:
                return json_response(generation.answer.whole("".join(text), *generation.end(delta)))
    raise _unfinished()


class StreamedResponse(Response):
    """The answer as server-sent events.

    What fails before the backend has accepted the request raises, and becomes an ordinary error response. What fails
    later is the last event of the stream, without `[DONE]`.
    """

    def __init__(self, generation: Generation) -> None:
        super().__init__(media_type="text/event-stream")
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False
        try:
            async with self._generation.deltas(receive) as deltas:
                await send({"type": "http.response.start", "status": 200, "headers": list(sse.RESPONSE_HEADERS)})
                began = True
                await self._send_events(deltas, send)
                return
        except EngineError as error:
            if not began:
                raise
            failure, code = encode_error(error), error_code(error)
        except Exception:
            if not began:
                raise
            _log.exception("stream failed", request_id=self._generation.record.request_id)
            failure, code = DEFECT, "internal_error"
        self._generation.record.error = code
        await send({"type": "http.response.body", "body": sse.event(failure), "more_body": False})

    async def _send_events(self, deltas: AsyncIterator[Delta], send: Send) -> None:
        answer = self._generation.answer
        opening = answer.opening()
        if opening:
            await send({"type": "http.response.body", "body": opening, "more_body": True})
        async for delta in deltas:
            if delta.finish_reason is None:
                if delta.text:
                    await send({"type": "http.response.body", "body": answer.piece(delta.text), "more_body": True})
            else:
                ending = answer.ending(*self._generation.end(delta))
                if delta.text:
                    ending = answer.piece(delta.text) + ending
                await send({"type": "http.response.body", "body": ending, "more_body": False})
                return
        raise _unfinished()


def _unfinished() -> ProtocolError:
    return ProtocolError("The engine ended a stream without saying why")
