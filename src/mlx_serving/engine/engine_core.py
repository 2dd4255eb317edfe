"""The engine without a surface: one supervised worker, the models in it, and the stack of Backends above.

`facade.Engine` dresses it for programs, `server` for HTTP.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from mlx_serving.config.served_models import public_name
from mlx_serving.core import retry
from mlx_serving.core.batch_queue import BatchQueueStats
from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.core.retry import RetryPolicy
from mlx_serving.core.serving import EngineTelemetry, HealthReport, ServedModel
from mlx_serving.engine.batch_queue import BatchQueue
from mlx_serving.engine.breaker import BreakerBackend
from mlx_serving.engine.model_manager import ModelManager, ModelSpec
from mlx_serving.engine.recovery import RecoveryBackend
from mlx_serving.engine.runtime_telemetry import TelemetryReader
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import EngineError, InvalidRequest
from mlx_serving.telemetry.events import EventBus
from mlx_serving.wire import methods
from mlx_serving.wire.methods import LoadModelResult, Method

P = TypeVar("P")
R = TypeVar("R")

CALL_TIMEOUT_S = 60.0
"""How long a call may take that is no generation."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What `assembly` puts together. `backend` is the outermost layer."""

    supervisor: Supervisor
    models: ModelManager
    streams: RecoveryBackend
    breaker: BreakerBackend
    backend: Backend
    batch_queue: BatchQueue
    telemetry: TelemetryReader
    events: EventBus
    retry: RetryPolicy
    default_model: str
    preload: tuple[str, ...]


class EngineCore:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started_at = time.monotonic()

    @property
    def events(self) -> EventBus:
        return self._parts.events

    @property
    def models(self) -> ModelManager:
        return self._parts.models

    @property
    def default_model(self) -> str:
        return self._parts.default_model

    async def start(self) -> None:
        """Start the worker and wait for it; models marked for it begin to load. Raises `WorkerDied`."""
        await self.start_worker()
        for name in self._parts.preload:
            self._parts.models.preload(name)

    async def start_worker(self) -> None:
        """Start the worker and wait for it; nothing is loaded. Raises `WorkerDied`."""
        await self._parts.supervisor.client()

    async def stop(self) -> None:
        """End the worker and everything in flight. Safe to call twice."""
        self._parts.models.close()
        await self._parts.supervisor.stop()
        await self._parts.models.wait_closed()

    def restart_worker(self) -> None:
        """Replace the worker by a fresh one: at once, without draining. What is in flight goes on in it."""
        self._parts.supervisor.restart()

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `core.generation.Backend`."""
        return self._parts.backend.generate(request)

    # -- models

    def served_models(self) -> list[ServedModel]:
        return self._parts.models.served(self._parts.default_model)

    async def load_served(self, reference: str, *, name: str | None, revision: str | None) -> ServedModel:
        """Load a model and serve it under `name`, by default one made from its reference.

        Raises `ModelLoadError`, `ModelNotFound`, `WorkerDied`, and `InvalidRequest` for a name that is another model's.
        """
        spec = ModelSpec(name or public_name(reference), reference, revision)
        if spec.name in self._parts.models.names():
            known = self._parts.models.spec(spec.name)
            if (known.reference, known.revision) != (reference, revision):
                raise InvalidRequest(
                    f"{spec.name} is the name of {known.reference} already: give another name",
                    field="name",
                    given=spec.name,
                )
            spec = known
        await self.load(spec)
        return next(model for model in self.served_models() if model.name == spec.name)

    async def load(self, spec: ModelSpec) -> LoadModelResult:
        """The same, from a full spec. A new name whose load fails is forgotten again."""
        known = spec.name in self._parts.models.names()
        self._parts.models.register(spec)
        try:
            async with self._parts.models.lease(spec.name) as facts:
                return facts
        except EngineError:
            if not known:
                self._parts.models.forget(spec.name)
            raise

    async def unload_served(self, name: str, *, force: bool) -> None:
        """Take a model out of the worker; its name stays, and the next request loads it again."""
        await self._parts.models.unload(name, force=force)

    # -- calls

    async def call(self, method: Method[P, R], params: P) -> R:
        """An idempotent call: repeated when the worker dies under it, as the retry policy allows."""

        async def once() -> R:
            client = await self._parts.supervisor.client()
            return await client.call(method, params, timeout_s=CALL_TIMEOUT_S)

        return await self._retrying(once)

    async def call_with_model(self, name: str, method: Method[P, R], make_params: Callable[[str], P]) -> R:
        """The same for a call that needs a model loaded; `make_params` gets the name that the worker knows it by."""

        async def call(client: WorkerClient, model_id: str) -> R:
            return await client.call(method, make_params(model_id), timeout_s=CALL_TIMEOUT_S)

        return await self._with_model(name, call)

    async def tokenize(self, name: str, text: str, *, add_special_tokens: bool = True) -> methods.TokenizeResult:
        """Text to the ids of a model, as `call_with_model`. Calls at the same time share messages to the worker."""

        async def call(client: WorkerClient, model_id: str) -> methods.TokenizeResult:
            params = methods.TokenizeParams(model_id=model_id, text=text, add_special_tokens=add_special_tokens)
            return await self._parts.batch_queue.tokenize(client, params)

        return await self._with_model(name, call)

    def batch_stats(self) -> BatchQueueStats:
        """How calls shared messages."""
        return self._parts.batch_queue.stats()

    def reset_batch_stats(self) -> None:
        self._parts.batch_queue.reset_stats()

    def flush_batches(self) -> None:
        """Send at once what waits to share a message."""
        self._parts.batch_queue.flush()

    async def _with_model(self, name: str, call: Callable[[WorkerClient, str], Awaitable[R]]) -> R:
        async def once() -> R:
            async with self._parts.models.lease(name) as facts:
                return await call(await self._parts.supervisor.client(), facts.model_id)

        return await self._retrying(once)

    async def _retrying(self, once: Callable[[], Awaitable[R]]) -> R:
        attempt = 0.0
        while True:
            try:
                return await once()
            except EngineError as error:
                if not retry.should_retry(error, attempt, self._parts.retry):
                    raise
                spent = retry.spent(error)
            await asyncio.sleep(retry.delay(self._parts.retry.backoff, attempt, random.random()))  # noqa: S311
            attempt += spent

    async def runtime_info(self) -> methods.RuntimeInfoResult:
        """What the worker says of itself, now."""
        binary = [methods.STEP_FRAMES, methods.PROTOCOL_VERSION]
        return await self.call(methods.RUNTIME_INFO, methods.RuntimeInfoParams(protocols=binary))

    async def runtime_state(self) -> methods.RuntimeStateResult:
        return await self.call(methods.RUNTIME_STATE, methods.NoParams())

    def progress(self) -> int:
        """A count that rises as long as the worker, or the next one, gets on with its work. What stays the same while
        requests wait is a hang."""
        return self._parts.supervisor.progress

    async def telemetry(self) -> EngineTelemetry:
        """Load, work, memory: what is counted here and what the worker tells. Does not start a worker."""
        runtime = await self._parts.telemetry.read()
        worker = self._parts.supervisor.health()
        return EngineTelemetry(
            uptime_s=time.monotonic() - self._started_at,
            active_streams=self._parts.streams.active_streams,
            worker_state=worker.state,
            worker_restarts=worker.restarts,
            batch_queue=self.batch_stats(),
            runtime=runtime,
        )

    # -- health

    async def health(self) -> HealthReport:
        """What is known here, without asking the worker: the answer must come when the worker cannot give one."""
        worker = self._parts.supervisor.health()
        served = self.served_models()
        reasons: list[str] = []
        status = "healthy"
        failed = [model for model in served if model.state == "failed"]
        if worker.state != "ready":
            status = "degraded"
            reasons.append("the worker was given up" if worker.state == "gave up" else f"the worker is {worker.state}")
        if self._parts.breaker.is_open:
            status = "degraded"
            reasons.append("the circuit breaker is open")
        if failed:
            status = "degraded"
            reasons += [f"model {model.name} failed to load: {model.error}" for model in failed]
        if worker.kv_share < 1:
            status = "degraded"
            reasons.append(f"KV caches get {worker.kv_share:.0%} of their memory: a worker has died for want of it")
        if worker.state in ("gave up", "stopped"):
            status = "unhealthy"
        return HealthReport(
            status=status,
            uptime_s=time.monotonic() - self._started_at,
            active_streams=self._parts.streams.active_streams,
            loaded_models=tuple(model.name for model in served if model.state in ("ready", "draining")),
            worker=worker,
            reasons=tuple(reasons),
        )
