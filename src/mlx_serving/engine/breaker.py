"""A Backend layer that spares a worker which keeps failing: the shell around `core.circuit_breaker`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from mlx_serving.core import circuit_breaker as circuit
from mlx_serving.core.circuit_breaker import CircuitBreakerPolicy, CircuitEvent
from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.errors import CircuitOpen, EngineError, WorkerDied, WorkerGaveUp
from mlx_serving.telemetry.events import CircuitChanged, EventBus


class BreakerBackend:
    """One death of the worker counts once, however many streams it took along. A request and its forks are one
    call: they are let in together, and the request speaks for them."""

    def __init__(self, inner: Backend, policy: CircuitBreakerPolicy, events: EventBus) -> None:
        self._inner = inner
        self.policy = policy
        self._events = events
        self._state: circuit.CircuitState = circuit.Closed()
        self._counted: EngineError | None = None
        self._admitted: set[str] = set()

    @property
    def is_open(self) -> bool:
        return isinstance(self._state, circuit.Open)

    @property
    def state(self) -> str:
        return _name(self._state)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `CircuitOpen` instead of asking the worker."""
        if request.fork_of in self._admitted:
            async with self._inner.generate(request) as deltas:
                yield deltas
            return
        epoch = self._admit()
        self._admitted.add(request.request_id)
        failure: BaseException | None = None
        watched: _Watched | None = None
        try:
            async with self._inner.generate(request) as deltas:
                watched = _Watched(deltas)
                yield watched
        except BaseException as error:
            failure = error
            raise
        finally:
            self._admitted.discard(request.request_id)
            # A caller may take the error of its stream inside of the block, and leave it as if all was well.
            self._settle(watched.failure if watched is not None and watched.failure is not None else failure, epoch)

    def _admit(self) -> int:
        for effect in self._dispatch(circuit.CallRequested()):
            match effect:
                case circuit.Admit():
                    return effect.epoch
                case circuit.Reject():
                    raise CircuitOpen(
                        "The worker failed repeatedly and is given time to recover", retry_after=effect.retry_after
                    )
                case circuit.Transition():
                    pass
        raise AssertionError("a call is admitted or rejected")

    def _settle(self, failure: BaseException | None, epoch: int) -> None:
        if isinstance(failure, WorkerDied):
            if failure is self._counted or isinstance(failure, WorkerGaveUp):
                # The same death again, or no worker that could die: it tells nothing more about the worker.
                self._dispatch(circuit.CallAbandoned(epoch))
                return
            self._counted = failure
        self._dispatch(circuit.result_of(failure, epoch))

    def _dispatch(self, event: CircuitEvent) -> tuple[circuit.CircuitEffect, ...]:
        self._state, effects = circuit.step(self._state, event, time.monotonic(), self.policy)
        for effect in effects:
            if isinstance(effect, circuit.Transition):
                self._events.publish(CircuitChanged(previous=_name(effect.previous), current=_name(effect.current)))
        return effects


class _Watched:
    """Deltas that remember how they failed."""

    def __init__(self, deltas: AsyncIterator[Delta]) -> None:
        self._deltas = deltas
        self.failure: EngineError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        try:
            return await anext(self._deltas)
        except EngineError as error:
            self.failure = error
            raise


def _name(state: circuit.CircuitState) -> str:
    match state:
        case circuit.Closed():
            return "closed"
        case circuit.Open():
            return "open"
        case circuit.HalfOpen():
            return "half-open"
