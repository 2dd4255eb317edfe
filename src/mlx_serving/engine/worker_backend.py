"""The innermost Backend: one request becomes one stream of the worker that lives now. Its model must be loaded."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import assert_never

from mlx_serving.core import stream
from mlx_serving.core.flow_control import FlowControl, FlowPolicy, FlowSignal
from mlx_serving.core.generation import Delta, EmbeddingInputs, FinishReason, GenerationRequest
from mlx_serving.core.inquest import Inquest
from mlx_serving.core.stream import StreamEvent
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.translation import delta_of, embed_params, generate_params, stats_of
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import Aborted, EngineError, RequestCrashedWorker, WorkerDied
from mlx_serving.wire import jsonrpc, methods
from mlx_serving.wire.notifications import Completed, Row

_MAX_ID_CHARS = 256  # of a stream on the pipe


class WorkerBackend:
    """`inquest` finds the requests that kill workers, over all attempts to serve them, in this worker, which it knows
    by `number`, and in others."""

    def __init__(self, supervisor: Supervisor, inquest: Inquest, flow_policy: FlowPolicy, number: int = 0) -> None:
        self._supervisor = supervisor
        self._inquest = inquest
        self._number = number
        self.flow_policy = flow_policy
        self._streams: dict[str, _Stream] = {}
        self._numbers = itertools.count(1)
        self._left = asyncio.Event()  # whoever waits to enter looks again
        supervisor.add_listener(self)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `RequestCrashedWorker` for a request that is found to kill workers.

        A request_id must not be in use.
        """
        client = await self._enter(request.request_id)
        # An id may come again while the abort of its last stream is still on its way: on the pipe each is its own.
        pipe_id = f"{next(self._numbers)}-{request.request_id}"[:_MAX_ID_CHARS]
        fork_of = self._pipe_id_of(request.fork_of)
        flow = _Stream(request, pipe_id, client, self._inquest, self._look_again, FlowControl(self.flow_policy))
        self._streams[request.request_id] = flow
        try:
            await flow.open(fork_of)
            yield flow.deltas()
        finally:
            flow.leave()
            del self._streams[request.request_id]
            self._inquest.leave(request.request_id, aborting=flow.is_aborting)
            self._look_again()

    def forget(self, request_id: str) -> None:
        """A request has ended for good, wherever it was: who was not let in because of it may be now."""
        self._inquest.forget(request_id)
        self._look_again()

    async def _enter(self, request_id: str) -> WorkerClient:
        """Wait for a worker that the request may be given to."""
        while True:
            client = await self._supervisor.client()
            if self._inquest.enter(request_id, self._number):
                return client
            await self._left.wait()

    def _look_again(self) -> None:
        self._left.set()
        self._left = asyncio.Event()

    def _pipe_id_of(self, request_id: str | None) -> str | None:
        flow = None if request_id is None else self._streams.get(request_id)
        return None if flow is None else flow.pipe_id

    # -- WorkerListener

    def worker_lost(self, error: WorkerDied) -> None:
        condemned = self._inquest.died(error.origin, self._number)
        for request_id, flow in tuple(self._streams.items()):
            if request_id == condemned:
                flow.dispatch(stream.Errored(_blamed(error, self._inquest.losses(request_id))))
            else:
                flow.dispatch(stream.WorkerLost(error))
        self._look_again()


class _Stream:
    """The shell of one `core.stream`: rows become events, effects become deltas in a queue."""

    def __init__(
        self,
        request: GenerationRequest,
        pipe_id: str,
        client: WorkerClient,
        inquest: Inquest,
        on_cleared: Callable[[], None],
        flow: FlowControl,
    ) -> None:
        self.pipe_id = pipe_id
        self._request = request
        self._client = client
        self._inquest = inquest
        self._on_cleared = on_cleared
        self._cleared = False
        self._flow = flow
        self._state: stream.StreamState = stream.Opening()
        self._ready: deque[Delta] = deque()
        self._error: EngineError | None = None
        self._ended = False
        self._wake = asyncio.Event()

    @property
    def is_aborting(self) -> bool:
        """Whether the worker has not confirmed that it ended."""
        return isinstance(self._state, stream.Aborting)

    async def open(self, fork_of: str | None) -> None:
        """Submit the request; returns when the worker has accepted it. Raises what the worker answered."""
        self._client.open_stream(self.pipe_id, self._on_row)
        on_trial = self._inquest.is_on_trial(self._request.request_id)
        try:
            accepted = await self._submit(fork_of, on_trial=on_trial)
        except EngineError as error:
            self.dispatch(stream.Errored(error))
        else:
            if self._request.served is not None:
                self._request.served.prompt_tokens = accepted.prompt_tokens
            self.dispatch(stream.Accepted())
        if self._error is not None and not self._ready:  # refused, or lost before anything was delivered
            raise self._error

    async def _submit(self, fork_of: str | None, *, on_trial: bool) -> methods.GenerateResult:
        inputs = self._request.prompt
        if isinstance(inputs, EmbeddingInputs):
            params = embed_params(self._request, inputs, self.pipe_id, on_trial=on_trial)
            return await self._client.call(methods.EMBED, params)
        params = generate_params(self._request, self.pipe_id, fork_of, on_trial=on_trial)
        return await self._client.call(methods.GENERATE, params)

    def leave(self) -> None:
        """The consumer is gone: abort what is not finished."""
        self.dispatch(stream.AbortRequested())
        self._client.close_stream(self.pipe_id)

    async def deltas(self) -> AsyncIterator[Delta]:
        while True:
            while self._ready:
                delta = self._ready.popleft()
                self._signal(self._flow.on_consumed(len(delta.token_ids)))
                yield delta
            if self._error is not None:
                raise self._error
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()

    def dispatch(self, event: StreamEvent) -> None:
        self._state, effects = stream.step(self._state, event)
        for effect in effects:
            self._carry_out(effect)
        self._wake.set()

    def _carry_out(self, effect: stream.StreamEffect) -> None:
        match effect:
            case stream.Deliver():
                self._ready.append(effect.delta)
                self._signal(self._flow.on_buffered(len(effect.delta.token_ids)))
            case stream.EndWith():
                self._end(effect)
            case stream.Raise():
                self._error = effect.error
            case stream.SendAbort():
                self._client.post(methods.ABORT, methods.AbortParams(stream_id=self.pipe_id))
            case stream.Opened() | stream.Release():
                pass  # entering and leaving the context manager are these
            case _:
                assert_never(effect)

    def _signal(self, signal: FlowSignal | None) -> None:
        """Tell the worker that the consumer has fallen behind, or caught up. It ignores streams that have ended."""
        match signal:
            case None:
                pass
            case FlowSignal.PAUSE:
                self._client.post(methods.PAUSE, methods.StreamParams(stream_id=self.pipe_id))
            case FlowSignal.RESUME:
                self._client.post(methods.RESUME, methods.StreamParams(stream_id=self.pipe_id))
            case _:
                assert_never(signal)

    def _end(self, ending: stream.EndWith) -> None:
        self._ended = True
        if ending.reason is FinishReason.ABORT:
            self._error = Aborted("The stream was aborted", stream_id=self._request.request_id)
        else:
            self._ready.append(Delta("", (), ending.reason, ending.stats, stop=ending.stop))

    def _on_row(self, row: Row) -> None:
        if row.token_ids or row.text or row.aside is not None:
            self._clear(len(row.token_ids) if row.aside is None else len(row.token_ids) + len(row.aside.vectors))
            self.dispatch(stream.Delivered(delta_of(row)))
        match row.end:
            case None:
                pass
            case Completed():
                self.dispatch(stream.Completed(row.end.finish_reason, stats_of(row.end.stats), row.end.stop))
            case _:
                self.dispatch(stream.Errored(jsonrpc.to_engine_error(row.end.error)))

    def _clear(self, tokens: int) -> None:
        if not self._cleared and self._inquest.deliver(self._request.request_id, tokens):
            self._cleared = True
            self._on_cleared()


def _blamed(error: WorkerDied, losses: float) -> RequestCrashedWorker:
    return RequestCrashedWorker(
        f"This request kills the worker that serves it, also when it is tried alone: {error.message}",
        origin=error.origin,
        **{**error.details, "losses": losses},
    )
