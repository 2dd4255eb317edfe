"""The models of all workers as one registry: a name is known to every worker, and loaded in those that need it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from mlx_serving.core.placement import Holding, deal
from mlx_serving.core.serving import ServedModel, ServedModelState
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.engine.model_manager import ModelManager
from mlx_serving.engine.replacement import Version
from mlx_serving.engine.worker_pool import PooledWorker, WorkerPool
from mlx_serving.telemetry.events import EventBus, ModelVersionChanged
from mlx_serving.wire.methods import LoadModelResult

_HELD = (Holding.LOADING, Holding.READY, Holding.LEAVING)
_BEST_FIRST: Sequence[ServedModelState] = ("ready", "draining", "loading", "failed", "absent")


class PooledModels:
    def __init__(self, pool: WorkerPool, events: EventBus) -> None:
        self._pool = pool
        self._events = events
        self._managers = [worker.models for worker in pool.workers]
        self._replacing: dict[str, asyncio.Lock] = {}
        self._withdrawn: set[str] = set()

    def register(self, spec: ModelSpec) -> None:
        """Make a model known under its name. Raises `InvalidRequest` when the name is in use for another spec."""
        for manager in self._managers:
            manager.require_replaceable(spec)
        for manager in self._managers:
            manager.register(spec)
        self._withdrawn.discard(spec.name)

    def adjust(self, spec: ModelSpec) -> None:
        """Have a model stay in memory as `spec` says. Raises `ModelNotFound`."""
        for manager in self._managers:
            manager.adjust(spec)

    def withdraw(self, name: str, unused: Callable[[], Awaitable[None]]) -> None:
        """Tell of a model no more, and forget it when nobody uses it, which `unused` waits for. Until then those who go
        on with it can lease it. Raises `ModelNotFound`."""
        self.spec(name)
        self._withdrawn.add(name)
        self._managers[0].spawn(self._withdraw(name, unused), f"withdraw {name}")

    async def _withdraw(self, name: str, unused: Callable[[], Awaitable[None]]) -> None:
        await unused()
        if name in self._withdrawn:  # else it is wanted again
            await self.unload(name, force=False)
        if name in self._withdrawn:
            self._withdrawn.discard(name)
            self.forget(name)

    def forget(self, name: str) -> None:
        for manager in self._managers:
            manager.forget(name)

    def directory_of_absent(self, name: str) -> Path | None:
        """Where the files of a model are that was loaded once, and that no worker has now."""
        found = [manager.directory_of_absent(name) for manager in self._managers]
        return found[0] if all(found) else None

    def names(self) -> list[str]:
        return [name for name in self._managers[0].names() if name not in self._withdrawn]

    def spec(self, name: str) -> ModelSpec:
        """Raises `ModelNotFound`."""
        return self._managers[0].spec(name)

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncGenerator[LoadModelResult]:
        """Use a model, in a worker of the pool's choice: see `ModelManager.lease`."""
        async with self.lease_in_worker(name) as (_, facts):
            yield facts

    @asynccontextmanager
    async def lease_in_worker(
        self, name: str, beside: str | None = None
    ) -> AsyncGenerator[tuple[PooledWorker, LoadModelResult]]:
        """The same, and the worker that has it; better one that has the model `beside` as well."""
        self.spec(name)
        if beside is not None:
            self.spec(beside)
        worker = self._pool.worker_for(name, beside)
        async with worker.models.lease(name) as facts:
            yield worker, facts

    async def bring(self, name: str) -> None:
        """Have a worker of the pool's choice load a model: see `ModelManager.bring`."""
        self.spec(name)
        await self._pool.worker_for(name).models.bring(name)

    def preload(self, *names: str) -> None:
        """Start loading these, without waiting for it, over the workers so that none has nothing to do. How it went is
        an event. Raises `ModelNotFound`."""
        for number, name in deal(names, len(self._managers)):
            self._managers[number].preload(name)

    async def unload(self, name: str, *, force: bool) -> None:
        """Returns when all workers have let go of the model: see `ModelManager.unload`."""
        await asyncio.gather(*(manager.unload(name, force=force) for manager in self._managers))

    async def replace(self, spec: ModelSpec, *, load: bool) -> None:
        """Have a name that is known mean another version of its model. Who uses the old one goes on with the new one.

        Every worker that has the old one loads the new one: see `Replacement.prepare` for how. Then all change at the
        same moment. `load` has one worker load it though none has the old one. If that fails anywhere, the old one
        serves as before, and this raises `ModelLoadError`, `ModelNotFound` or `WorkerDied`.
        """
        name = spec.name
        async with self._replacing.setdefault(name, asyncio.Lock()):
            self.spec(name)
            holders = [manager for manager in self._managers if manager.holding(name) in _HELD]
            if load and not holders:
                holders = [self._pool.worker_for(name).models]
            prepared: dict[ModelManager, Version] = {}
            try:
                for manager in holders:
                    prepared[manager] = await manager.versions.prepare(spec)
                self.spec(name)  # it may have been forgotten meanwhile
            except BaseException:
                for manager, version in prepared.items():
                    manager.versions.discard(version)
                raise
            for manager in self._managers:  # no await from here on: whoever looks sees one version or the other
                manager.versions.install(spec, prepared.get(manager))
        self._events.publish(ModelVersionChanged(model_id=name, reference=spec.reference, revision=spec.revision))

    def facts(self, name: str) -> list[LoadModelResult]:
        """What each worker that has a model knows of it."""
        by_worker = (manager.loaded() for manager in self._managers)
        return [loaded[name] for loaded in by_worker if name in loaded]

    def takes_images(self, name: str) -> bool | None:
        """Whether a model does; None while no worker has it."""
        facts = self.facts(name)
        return any(each.is_vision_model for each in facts) if facts else None

    def all_facts(self) -> list[LoadModelResult]:
        """The same of all models."""
        return [facts for manager in self._managers for facts in manager.loaded().values()]

    def loaded(self) -> dict[str, LoadModelResult]:
        """Those that any worker has."""
        loaded: dict[str, LoadModelResult] = {}
        for manager in reversed(self._managers):
            loaded |= manager.loaded()
        return {name: loaded[name] for name in self.names() if name in loaded}

    def served(self, default: str | None) -> list[ServedModel]:
        """All that may be named, each as it is in the worker that has got furthest with it."""
        by_worker = [manager.served(default) for manager in self._managers]
        best = [min(views, key=lambda view: _BEST_FIRST.index(view.state)) for views in zip(*by_worker, strict=True)]
        return [view for view in best if view.name not in self._withdrawn]
