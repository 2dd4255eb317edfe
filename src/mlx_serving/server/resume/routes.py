"""The rest of an answer that the last server did not finish."""

from __future__ import annotations

import asyncio
from functools import partial

from fastapi import APIRouter, Depends
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from mlx_serving.core.choices import Choices, Completion, Transcript
from mlx_serving.core.generation import Delta, GenerationStats
from mlx_serving.core.resumption import RequestLog
from mlx_serving.errors import EngineError, InvalidRequest
from mlx_serving.server.errors import json_response
from mlx_serving.server.generation import EventsResponse, end_of, worded
from mlx_serving.server.http.access_log import AccessRecord, access_record
from mlx_serving.server.http.keep_alive import EventStream
from mlx_serving.server.keys.auth import key_of, require_api_key
from mlx_serving.server.openai.chunks import Answer, Heading, answer_of
from mlx_serving.server.openapi import error_responses
from mlx_serving.server.resume.answers import kept_answer
from mlx_serving.server.resume.handover import Handover, Reader, Resumed, unknown
from mlx_serving.server.service import Service
from mlx_serving.server.single_generation import Ending, SingleAnswer

_WHOLE = {
    "name": "whole",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "The whole answer as one document, also if it was streamed.",
}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


PREFIX = "/v1/resumed/"


def resumed_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Resumed"], dependencies=[Depends(require_api_key(service))])

    @router.get(
        "/resumed/{completion_id}",
        summary="The rest of an answer that was cut off by the end of a server",
        description="In the words of the endpoint that was asked: a stream goes on where it was cut off, anything else "
        "comes whole, as does a stream with `?whole=true`. Only for the key that made the request. What was "
        "fetched to its end is forgotten.",
        openapi_extra={"parameters": [_WHOLE]},
        responses=error_responses(400, 401, 404, 500, 503),
    )
    async def resumed(request: Request, completion_id: str) -> Response:
        handover = service.handover
        if handover is None:
            raise unknown(completion_id)
        found = handover.find(completion_id)
        if found.key is not None and not await asyncio.to_thread(found.key.matches, key_of(request.headers)):
            raise unknown(completion_id)
        whole = _wants_whole(request) or not found.log.stream
        record = access_record(request)
        record.model, record.stream = found.log.model, not whole
        if whole:
            async with service.in_flight.admit(request.receive, None, completion_id):
                response = json_response(await _whole(service, found, record))
            response.background = BackgroundTask(handover.forget, completion_id)
            return response
        return _ResumedResponse(found, handover, service, record)

    return router


def _wants_whole(request: Request) -> bool:
    given = request.query_params.get("whole", "false")
    if given not in _TRUTH:
        raise InvalidRequest(f"whole must be true or false, got {given!r}", field="whole", given=given)
    return _TRUTH[given]


def _answer(log: RequestLog) -> Answer:
    assert log.api in ("chat", "completions")  # the others have one of another kind
    heading = Heading(log.completion_id, log.created, log.model, log.system_fingerprint, log.service_tier)
    return answer_of(log.api, heading, include_usage=log.include_usage, logprobs=log.logprobs)


async def _whole(service: Service, resumed: Resumed, record: AccessRecord) -> bytes:
    log = resumed.log
    while not log.ended:
        await resumed.until_changed()
    single = kept_answer(service, log)
    if single is not None:
        for delta in log.sequences[0].deltas:
            single.add(delta)
        return single.whole(_ending(log.sequences[0].deltas[-1], record))
    completions = [_completion(sequence.deltas) for sequence in log.sequences]
    usage = log.choices.usage([completion.stats for completion in completions])
    record.usage = usage
    return _answer(log).whole(log.choices.select(completions), usage)


def _completion(deltas: list[Delta]) -> Completion:
    transcript = Transcript()
    for delta in deltas:
        transcript.add(delta)
    return transcript.completed(*end_of(deltas[-1]))


def _ending(delta: Delta, record: AccessRecord) -> Ending:
    reason, stats = end_of(delta)
    record.usage = Choices().usage([stats])
    return Ending(reason, delta.stop, record.usage)


class _ResumedResponse(EventsResponse):
    def __init__(self, resumed: Resumed, handover: Handover, service: Service, record: AccessRecord) -> None:
        super().__init__(service.keep_alive, record)
        self._resumed = resumed
        self._handover = handover
        self._in_flight = service.in_flight
        self._single = kept_answer(service, resumed.log)

    def failure(self, error: EngineError | None) -> bytes:
        return super().failure(error) if self._single is None else self._single.failure(error)

    async def send_events(self, receive: Receive, stream: EventStream) -> None:
        completion_id = self._resumed.log.completion_id
        async with self._in_flight.admit(receive, None, completion_id):
            with self._resumed.reading() as reader:
                await stream.open()
                write = self._write_events if self._single is None else partial(self._write_parts, self._single)
                await stream.close(await write(stream, reader))
        self._handover.forget(completion_id)

    async def _write_events(self, stream: EventStream, reader: Reader) -> bytes:
        """Returns the closing ones, which are not sent yet."""
        cursors = reader.cursors
        log, answer = self._resumed.log, _answer(self._resumed.log)
        choices = [answer.choice(number) for number in range(len(log.sequences))]
        for choice, sequence in zip(choices, log.sequences, strict=True):
            for delta in sequence.deltas[: sequence.sent]:
                worded(choice, delta)  # the client has it; the choice counts what it has worded
        opening = b"" if log.opened else b"".join(choice.opening() for choice in choices)
        if opening:
            await stream.write(opening)
        while True:
            for number, sequence in enumerate(log.sequences):
                while cursors[number] < len(sequence.deltas):
                    delta = sequence.deltas[cursors[number]]
                    body = worded(choices[number], delta)
                    if body:
                        await stream.write(body)
                    cursors[number] += 1
            if log.ended and all(
                cursor == len(sequence.deltas) for cursor, sequence in zip(cursors, log.sequences, strict=True)
            ):
                break
            await self._resumed.until_changed()
        stats: list[GenerationStats] = [end_of(sequence.deltas[-1])[1] for sequence in log.sequences]
        usage = log.choices.usage(stats)
        self._record.usage = usage
        return answer.closing(usage)

    async def _write_parts(self, answer: SingleAnswer, stream: EventStream, reader: Reader) -> bytes:
        """As `_write_events`, of an answer that has parts."""
        log, sequence = self._resumed.log, self._resumed.log.sequences[0]
        opening = answer.opening(0)  # the end of the stream tells how long the prompt was
        for delta in sequence.deltas[: sequence.sent]:
            answer.piece(delta)
        if log.opened:
            answer.events = log.events
        else:
            await stream.write(opening)
            reader.events = answer.events
        while True:
            while reader.cursors[0] < len(sequence.deltas):
                delta = sequence.deltas[reader.cursors[0]]
                body = answer.piece(delta)
                if delta.finish_reason is not None:
                    return body + answer.closing(_ending(delta, self._record))
                if body:
                    await stream.write(body)
                reader.cursors[0] += 1
                reader.events = answer.events
            await self._resumed.until_changed()
