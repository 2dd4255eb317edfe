"""Several workers as one Backend: each request goes to one of them, and after a loss to another that lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.core.inquest import Inquest
from mlx_serving.core.placement import Holding, PlacementPolicy, WorkerView, place
from mlx_serving.core.serving import WorkerHealth, WorkerTelemetry
from mlx_serving.engine.model_manager import ModelManager
from mlx_serving.engine.runtime_telemetry import TelemetryReader
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_backend import WorkerBackend
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import EngineError


@dataclass(frozen=True, slots=True, eq=False)
class PooledWorker:
    """One worker, the models in it, and the Backend that generates with them."""

    supervisor: Supervisor
    models: ModelManager
    streams: WorkerBackend
    backend: Backend
    telemetry: TelemetryReader


class WorkerPool:
    """`inquest` is the one that all of the workers' streams know. Workers are numbered by their places."""

    def __init__(self, workers: Sequence[PooledWorker], inquest: Inquest, policy: PlacementPolicy) -> None:
        self._workers = workers
        self._inquest = inquest
        self._policy = policy
        self._serving: dict[str, int] = {}  # by whom each request is served
        self._streams = [0] * len(workers)

    @property
    def workers(self) -> Sequence[PooledWorker]:
        return self._workers

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`."""
        number = self._worker_for(request)
        if request.fork_of is not None and self._serving.get(request.fork_of) != number:
            request = replace(request, fork_of=None)  # what it might share is in another worker
        self._serving[request.request_id] = number
        self._streams[number] += 1
        try:
            async with self._workers[number].backend.generate(request) as deltas:
                yield deltas
        finally:
            self._streams[number] -= 1
            del self._serving[request.request_id]

    def forget(self, request_id: str) -> None:
        """A request has ended for good, wherever it was."""
        for worker in self._workers:
            worker.streams.forget(request_id)

    def worker_for(self, model: str | None, beside: str | None = None) -> PooledWorker:
        """Who serves what is asked of this model now, or of no model in particular; `beside` it another one is needed.
        A busy model is loaded elsewhere too, for those who come later."""
        return self._workers[self._place(model, beside)]

    async def client(self) -> WorkerClient:
        """The connection to a worker that is ready, whatever models it has. Raises as `Supervisor.client`."""
        return await self.worker_for(None).supervisor.client()

    async def start(self) -> None:
        """Start all workers and wait for them. Raises `WorkerDied` when none of them could be started."""
        results = await asyncio.gather(*(each.supervisor.client() for each in self._workers), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures:
            if len(failures) == len(results) or not isinstance(failure, EngineError):
                raise failure

    async def stop(self) -> None:
        """End the workers and everything in flight. Safe to call twice."""
        for worker in self._workers:
            worker.models.close()
        await asyncio.gather(*(worker.supervisor.stop() for worker in self._workers))
        await asyncio.gather(*(worker.models.wait_closed() for worker in self._workers))

    async def restart(self) -> None:
        """Replace the workers by fresh ones, one after the other: the next when this one has its models again. What is
        in flight goes on elsewhere, or in the new one.

        Raises `WorkerDied` when one does not come back; those behind it are left as they are.
        """
        for number, worker in enumerate(self._workers):
            worker.supervisor.restart()
            await worker.supervisor.client()
            if number + 1 < len(self._workers):
                await worker.models.wait_settled()

    @property
    def progress(self) -> int:
        """A count that rises as long as any worker gets on with its work."""
        return sum(worker.supervisor.progress for worker in self._workers)

    def health(self) -> tuple[WorkerHealth, ...]:
        return tuple(
            replace(
                worker.supervisor.health(), models=tuple(worker.models.loaded()), active_streams=self._streams[number]
            )
            for number, worker in enumerate(self._workers)
        )

    async def telemetry(self) -> tuple[WorkerTelemetry, ...]:
        """What each worker tells of itself, as far as it answers. Starts none."""
        runtimes = await asyncio.gather(*(worker.telemetry.read() for worker in self._workers))
        return tuple(
            WorkerTelemetry(health.state, health.restarts, health.active_streams, runtime)
            for health, runtime in zip(self.health(), runtimes, strict=True)
        )

    def _worker_for(self, request: GenerationRequest) -> int:
        if self._inquest.is_suspect(request.request_id) and self._inquest.court is not None:
            return self._inquest.court
        if request.fork_of in self._serving:
            number = self._serving[request.fork_of]
            if number != self._inquest.court:
                return number
        return self._place(request.model, request.speculation.draft_model)

    def _place(self, model: str | None, beside: str | None = None) -> int:
        if len(self._workers) == 1:
            return 0
        for worker in self._workers:
            worker.supervisor.ensure_started()
        placement = place([self._view(number, model, beside) for number in range(len(self._workers))], self._policy)
        if placement.replica is not None and model is not None:
            self._workers[placement.replica].models.preload(model)
        return placement.worker

    def _view(self, number: int, model: str | None, beside: str | None) -> WorkerView:
        worker = self._workers[number]
        return WorkerView(
            ready=worker.supervisor.ready_client is not None,
            given_up=worker.supervisor.has_given_up,
            reserved=number == self._inquest.court,
            streams=self._streams[number],
            models=worker.models.held,
            holding=Holding.ABSENT if model is None else worker.models.holding(model),
            alone=beside is not None and worker.models.holding(beside) is not Holding.READY,
        )
