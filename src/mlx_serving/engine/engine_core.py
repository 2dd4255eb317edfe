"""The engine without a surface: supervised workers, the models in them, and the stack of Backends above.

`facade.Engine` dresses it for programs, `server` for HTTP.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

from mlx_serving.config.model_names import default_name
from mlx_serving.core.alias_table import AliasView
from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.core.health import concerns, status_of
from mlx_serving.core.model_profile import NO_PROFILE, ModelProfile
from mlx_serving.core.retry import RetryPolicy
from mlx_serving.core.serving import EngineTelemetry, HealthReport, ReuseStats, ServedModel
from mlx_serving.core.weight_options import AS_THEY_ARE, WeightOptions
from mlx_serving.engine.aliases import Aliases
from mlx_serving.engine.calls import CallingCore
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.engine.parts import Parts
from mlx_serving.engine.pooled_models import PooledModels
from mlx_serving.engine.response_cache import ResponseCacheBackend
from mlx_serving.engine.sharing import SharingBackend
from mlx_serving.engine.worker_pool import PooledWorker
from mlx_serving.errors import EngineError, InvalidRequest, WorkerDied
from mlx_serving.telemetry.events import EventBus
from mlx_serving.wire.methods import LoadModelResult


class EngineCore(CallingCore):
    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._started_at = time.monotonic()

    @property
    def events(self) -> EventBus:
        return self._parts.events

    @property
    def models(self) -> PooledModels:
        return self._parts.models

    @property
    def aliases(self) -> Aliases:
        return self._parts.aliases

    @property
    def workers(self) -> Sequence[PooledWorker]:
        return self._parts.pool.workers

    @property
    def default_model(self) -> str:
        return self._parts.default_model

    async def start(self) -> None:
        """Start the workers and wait for them; models marked for it begin to load. Raises `WorkerDied` when there is
        no worker that could be started."""
        await self.start_workers()
        self._parts.models.preload(*self._parts.preload)

    async def start_workers(self) -> None:
        """Start the workers and wait for them; nothing is loaded. Raises `WorkerDied` when none could be started."""
        await self._parts.pool.start()

    async def stop(self) -> None:
        """End the workers and everything in flight. Safe to call twice."""
        await self._parts.pool.stop()
        await self._parts.prefetch.close()
        self._parts.images.close()
        if self._parts.responses is not None:
            await self._parts.responses.close()

    async def restart_workers(self) -> None:
        """Replace each worker by a fresh one, one after the other and without draining: what is in flight goes on.
        Returns when the last one is ready. Raises `WorkerDied` when one does not come back."""
        await self._parts.pool.restart()

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """See `core.generation.Backend`."""
        return self._parts.backend.generate(request)

    def adopt(
        self,
        *,
        backend: Backend,
        sharing: SharingBackend | None,
        responses: ResponseCacheBackend | None,
        retry: RetryPolicy,
        default_model: str,
    ) -> None:
        """Go on with other outer layers and these settings; what is in flight keeps the layers it came through."""
        self._parts = replace(
            self._parts,
            backend=backend,
            sharing=sharing,
            responses=responses,
            retry=retry,
            default_model=default_model,
        )

    async def change_models(
        self,
        *,
        added: Sequence[ModelSpec],
        removed: Sequence[str],
        replaced: Sequence[ModelSpec],
        load: Collection[str],
    ) -> dict[str, EngineError]:
        """Serve other models. What is removed stays for those who use it, and goes after them. What is replaced and in
        memory is there in its new version when this returns; `load` begins to load.

        Returns why versions could not be replaced: of these, the old ones stay.
        """
        models, failed = self._parts.models, dict[str, EngineError]()
        replaced = list(replaced)
        for name in set(removed) & set(models.names()):
            self._parts.prefetch.forget(name)
            models.withdraw(name, partial(self._parts.streams.until_unused, name))
        for spec in added:
            if spec.name in models.names() and models.spec(spec.name) != spec:
                replaced.append(spec)  # somebody has loaded another one under that name
            else:
                models.register(spec)
        for spec in replaced:
            try:
                await models.replace(spec, load=False)
            except EngineError as error:
                failed[spec.name] = error
        models.preload(*load)
        return failed

    # -- models

    def served_models(self) -> list[ServedModel]:
        """All names that clients may use: models and aliases."""
        default = self._parts.default_model
        return self._parts.aliases.served(self._parts.models.served(default), default)

    def lease(self, name: str) -> AbstractAsyncContextManager[LoadModelResult]:
        """Use a model by any of its names: see `PooledModels.lease`."""
        return self._parts.models.lease(self._parts.aliases.resolve(name)[0])

    async def load_served(
        self,
        reference: str,
        *,
        name: str | None,
        revision: str | None,
        replace: bool = False,
        weights: WeightOptions | None = None,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> ServedModel:
        """Load a model and serve it under `name`, by default one made from its reference and its adapter.

        `reference` may be a name that is served: then it is that model, wherever it is loaded from. `weights` say in
        which form, `pinned` and `keep_alive_s` (seconds, negative for ever) how it stays in memory; None is as
        configured for the name, or as they are. `replace`: a name that is in use gets this version of its model, see
        `PooledModels.replace`; what was configured for the name besides stays.
        Raises `ModelLoadError`, `ModelNotFound`, `WorkerDied`, and `InvalidRequest` for a
        name that is an alias, or another model's that is not to be replaced.
        """
        form = weights or AS_THEY_ARE
        served = self._parts.models.names()
        meant = reference if reference in served else self._parts.aliases.resolve(reference)[0]
        own_name = name or default_name(meant, form.adapter)
        self._parts.aliases.require_no_alias(own_name, served)
        if meant in served:
            source = self._parts.models.spec(meant)
            reference, revision = source.reference, source.revision if revision is None else revision
            form = source.weights if weights is None else form
        spec = ModelSpec(own_name, reference, revision, weights=form, warm_up=True)
        known = self._parts.models.spec(spec.name) if spec.name in self._parts.models.names() else None
        if known is not None and replace:
            version = known.with_reference(reference, revision, weights).staying(pinned, keep_alive_s)
            await self._parts.models.replace(version, load=True)
        elif known is not None and (known.reference, known.revision, weights or known.weights) != (
            reference,
            revision,
            known.weights,
        ):
            raise InvalidRequest(
                f"{spec.name} is the name of {known.reference}, as {known.weights}, already: give another name, or "
                "replace that model",
                field="name",
                given=spec.name,
            )
        else:
            await self.load((known or spec).staying(pinned, keep_alive_s))
        return next(model for model in self.served_models() if model.name == spec.name)

    async def load(self, spec: ModelSpec) -> LoadModelResult:
        """The same, from a full spec. If it fails, a new name is forgotten again, and a known model stays in memory as
        it was to stay before."""
        models = self._parts.models
        known = models.spec(spec.name) if spec.name in models.names() else None

        async def once() -> LoadModelResult:
            async with models.lease(spec.name) as facts:
                return facts

        models.register(spec)
        try:
            return await self._retrying(once, WorkerDied)
        except EngineError:
            if known is None:
                models.forget(spec.name)
            elif models.spec(spec.name) == known:
                models.adjust(known)
            raise

    async def unload_served(self, name: str, *, force: bool) -> None:
        """Take a model out of the worker; its name stays, and the next request loads it again. Raises `ModelNotFound`,
        also for an alias."""
        self._parts.aliases.require_model(name)
        await self._parts.models.unload(name, force=force)

    def list_aliases(self) -> list[AliasView]:
        """See `Aliases.views`."""
        return self._parts.aliases.views()

    async def set_alias(
        self, name: str, model: str, *, revision: str | None = None, profile: ModelProfile = NO_PROFILE
    ) -> AliasView:
        """See `Aliases.set`."""
        moving = partial(self._parts.aliases.set, name, model, revision=revision, profile=profile)
        return await self._retrying(moving, WorkerDied)

    async def roll_back_alias(self, name: str) -> AliasView | None:
        """See `Aliases.roll_back`."""
        return await self._retrying(partial(self._parts.aliases.roll_back, name), WorkerDied)

    def remove_alias(self, name: str) -> None:
        """See `Aliases.remove`."""
        self._parts.aliases.remove(name)

    # -- how things stand

    def progress(self) -> int:
        """A count that rises as long as the workers, or the next ones, get on with their work. What stays the same
        while requests wait is a hang."""
        return self._parts.pool.progress

    async def telemetry(self) -> EngineTelemetry:
        """Load, work, memory: what is counted here and what the workers tell. Does not start a worker."""
        workers = await self._parts.pool.telemetry()
        return EngineTelemetry(
            uptime_s=time.monotonic() - self._started_at,
            active_streams=self._parts.streams.active_streams,
            worker_state=workers[0].state,
            worker_restarts=workers[0].restarts,
            batch_queue=self.batch_stats(),
            runtime=workers[0].runtime,
            workers=workers,
        )

    def reuse(self) -> ReuseStats:
        """What was computed once for several."""
        sharing, responses = self._parts.sharing, self._parts.responses
        return ReuseStats(
            shared=None if sharing is None else sharing.shared,
            running=None if sharing is None else sharing.running,
            response_cache=None if responses is None else responses.stats,
        )

    async def clear_responses(self) -> int:
        """Forget the answers that are kept; returns how many there were."""
        return 0 if self._parts.responses is None else await self._parts.responses.clear()

    async def health(self) -> HealthReport:
        """What is known here, without asking the workers: the answer must come when they cannot give one."""
        workers = self._parts.pool.health()
        served = self._parts.models.served(self._parts.default_model)
        reasons = concerns(workers, served, circuit_open=self._parts.breaker.is_open)
        return HealthReport(
            status=status_of(workers, reasons),
            uptime_s=time.monotonic() - self._started_at,
            active_streams=self._parts.streams.active_streams,
            loaded_models=tuple(model.name for model in served if model.state in ("ready", "draining")),
            workers=workers,
            reasons=tuple(reasons),
        )
