"""The models of all workers as one registry: a name is known to every worker, and loaded in those that need it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from mlx_serving.core.placement import deal
from mlx_serving.core.serving import ServedModel, ServedModelState
from mlx_serving.engine.model_manager import ModelSpec
from mlx_serving.engine.worker_pool import PooledWorker, WorkerPool
from mlx_serving.wire.methods import LoadModelResult

_BEST_FIRST: Sequence[ServedModelState] = ("ready", "draining", "loading", "failed", "absent")


class PooledModels:
    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._managers = [worker.models for worker in pool.workers]

    def register(self, spec: ModelSpec) -> None:
        """Make a model known under its name. Raises `InvalidRequest` when the name is in use for another spec."""
        for manager in self._managers:
            manager.require_replaceable(spec)
        for manager in self._managers:
            manager.register(spec)

    def forget(self, name: str) -> None:
        for manager in self._managers:
            manager.forget(name)

    def names(self) -> list[str]:
        return self._managers[0].names()

    def spec(self, name: str) -> ModelSpec:
        """Raises `ModelNotFound`."""
        return self._managers[0].spec(name)

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncGenerator[LoadModelResult]:
        """Use a model, in a worker of the pool's choice: see `ModelManager.lease`."""
        async with self.lease_in_worker(name) as (_, facts):
            yield facts

    @asynccontextmanager
    async def lease_in_worker(self, name: str) -> AsyncGenerator[tuple[PooledWorker, LoadModelResult]]:
        """The same, and the worker that has it."""
        self.spec(name)
        worker = self._pool.worker_for(name)
        async with worker.models.lease(name) as facts:
            yield worker, facts

    def preload(self, *names: str) -> None:
        """Start loading these, without waiting for it, over the workers so that none has nothing to do. How it went is
        an event. Raises `ModelNotFound`."""
        for number, name in deal(names, len(self._managers)):
            self._managers[number].preload(name)

    async def unload(self, name: str, *, force: bool) -> None:
        """Returns when all workers have let go of the model: see `ModelManager.unload`."""
        await asyncio.gather(*(manager.unload(name, force=force) for manager in self._managers))

    def loaded(self) -> dict[str, LoadModelResult]:
        """Those that any worker has."""
        loaded: dict[str, LoadModelResult] = {}
        for manager in reversed(self._managers):
            loaded |= manager.loaded()
        return {name: loaded[name] for name in self.names() if name in loaded}

    def served(self, default: str | None) -> list[ServedModel]:
        """All that may be named, each as it is in the worker that has got furthest with it."""
        by_worker = [manager.served(default) for manager in self._managers]
        return [min(views, key=lambda view: _BEST_FIRST.index(view.state)) for views in zip(*by_worker, strict=True)]
