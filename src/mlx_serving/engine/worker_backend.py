"""The innermost Backend: one request becomes one stream of the worker. Its model must be loaded."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_never

from mlx_serving.core import stream
from mlx_serving.core.generation import (
    ChatPrompt,
    Delta,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    TextPrompt,
    TokenPrompt,
)
from mlx_serving.core.stream import StreamEvent, StreamPolicy
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import Aborted, EngineError, InvalidRequest, WorkerDied
from mlx_serving.telemetry.events import ErrorOccurred, EventBus, GenerationCompleted, GenerationStarted
from mlx_serving.wire import jsonrpc, methods
from mlx_serving.wire.notifications import Completed, Row

_MAX_ID_CHARS = 256  # of a stream on the pipe


class WorkerBackend:
    def __init__(self, supervisor: Supervisor, policy: StreamPolicy, events: EventBus) -> None:
        self._supervisor = supervisor
        self._policy = policy
        self._events = events
        self._streams: dict[str, _Stream] = {}
        self._numbers = itertools.count(1)
        supervisor.add_listener(self)

    @property
    def active_streams(self) -> int:
        return len(self._streams)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `InvalidRequest` for a request_id that is in use."""
        client = await self._supervisor.client()
        if request.request_id in self._streams:
            raise InvalidRequest(
                f"A stream with the id {request.request_id} is active", field="stream_id", given=request.request_id
            )
        # An id may come again while the abort of its last stream is still on its way: on the pipe each is its own.
        pipe_id = f"{next(self._numbers)}-{request.request_id}"[:_MAX_ID_CHARS]
        flow = _Stream(request, pipe_id, client, self._policy)
        self._streams[request.request_id] = flow
        try:
            await flow.open()
            self._events.publish(GenerationStarted(stream_id=request.request_id, model_id=request.model))
            yield flow.deltas()
        finally:
            flow.leave()
            del self._streams[request.request_id]
            if flow.opened and flow.error is not None and not isinstance(flow.error, Aborted):
                self._events.publish(ErrorOccurred(error=flow.error, context=f"stream {request.request_id}"))
        if flow.stats is not None:
            self._events.publish(GenerationCompleted(stream_id=request.request_id, stats=flow.stats))

    # -- WorkerListener

    def worker_lost(self, error: WorkerDied) -> None:
        for flow in tuple(self._streams.values()):
            flow.dispatch(stream.WorkerLost(error))


class _Stream:
    """The shell of one `core.stream`: rows become events, effects become deltas in a queue."""

    def __init__(self, request: GenerationRequest, pipe_id: str, client: WorkerClient, policy: StreamPolicy) -> None:
        self._request = request
        self._pipe_id = pipe_id
        self._client = client
        self._policy = policy
        self._state: stream.StreamState = stream.start(time.monotonic())
        self._ready: deque[Delta] = deque()
        self.error: EngineError | None = None
        self._ended = False
        self._wake = asyncio.Event()
        self.opened = False
        self.stats: GenerationStats | None = None

    async def open(self) -> None:
        """Submit the request; returns when the worker has accepted it. Raises what the worker answered."""
        self._client.open_stream(self._pipe_id, self._on_row)
        try:
            result = await self._client.call(methods.GENERATE, _params(self._request, self._pipe_id))
        except EngineError as error:
            self.dispatch(stream.Errored(error))
            raise
        self.dispatch(stream.Accepted(result.prompt_tokens))
        if self.error is not None and not self._ready:  # lost in the same moment, before anything was delivered
            raise self.error
        self.opened = True

    def leave(self) -> None:
        """The consumer is gone: abort what is not finished."""
        self.dispatch(stream.AbortRequested())
        self._client.close_stream(self._pipe_id)

    async def deltas(self) -> AsyncIterator[Delta]:
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self.error is not None:
                raise self.error
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()

    def dispatch(self, event: StreamEvent) -> None:
        self._state, effects = stream.step(self._state, event, time.monotonic(), self._policy)
        for effect in effects:
            self._carry_out(effect)
        self._wake.set()

    def _carry_out(self, effect: stream.StreamEffect) -> None:
        match effect:
            case stream.Deliver():
                self._ready.append(effect.delta)
            case stream.EndWith():
                self._end(effect.reason, effect.stats)
            case stream.Raise():
                self.error = effect.error
            case stream.SendAbort():
                self._client.post(methods.ABORT, methods.AbortParams(stream_id=self._pipe_id))
            case stream.Opened() | stream.Release():
                pass  # entering and leaving the context manager are these
            case stream.Resubmit():
                raise AssertionError("the policy does not recover streams")
            case _:
                assert_never(effect)

    def _end(self, reason: FinishReason, stats: GenerationStats | None) -> None:
        self._ended = True
        self.stats = stats
        if reason is FinishReason.ABORT:
            self.error = Aborted("The stream was aborted", stream_id=self._request.request_id)
        else:
            self._ready.append(Delta("", (), reason, stats))

    def _on_row(self, row: Row) -> None:
        if row.token_ids or row.text:
            self.dispatch(stream.Delivered(Delta(row.text, tuple(row.token_ids))))
        match row.end:
            case None:
                pass
            case Completed():
                measured = row.end.stats
                stats = GenerationStats(
                    prompt_tokens=measured.prompt_tokens,
                    tokens_generated=measured.tokens_generated,
                    time_to_first_token=measured.time_to_first_token,
                    tokens_per_second=measured.tokens_per_second,
                    total_time=measured.total_time,
                )
                self.dispatch(stream.Completed(row.end.finish_reason, stats))
            case _:
                self.dispatch(stream.Errored(jsonrpc.to_engine_error(row.end.error)))


def _params(request: GenerationRequest, pipe_id: str) -> methods.GenerateParams:
    chosen = request.sampling
    params = methods.GenerateParams(
        model_id=request.model,
        stream_id=pipe_id,
        max_tokens=chosen.max_tokens,
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        top_k=chosen.top_k,
        min_p=chosen.min_p,
        repetition_penalty=chosen.repetition_penalty,
        presence_penalty=chosen.presence_penalty,
        frequency_penalty=chosen.frequency_penalty,
        logit_bias=dict(chosen.logit_bias),
        seed=chosen.seed,
        stop_sequences=list(chosen.stop),
        stop_token_ids=list(chosen.stop_token_ids),
        priority=request.priority,
        caller=request.caller[:256],
    )
    match request.prompt:
        case TextPrompt():
            params.prompt = request.prompt.text
        case TokenPrompt():
            params.prompt_tokens = list(request.prompt.token_ids)
        case ChatPrompt():
            params.messages = [dict(message) for message in request.prompt.messages]
            params.template_kwargs = dict(request.prompt.template_kwargs)
    return params
