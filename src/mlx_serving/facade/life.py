"""An engine that lives: it begins, tells of itself, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from mlx_serving.assembly import build
from mlx_serving.config.model_entries import ServedModel
from mlx_serving.config.model_names import EMBEDDED_MODEL
from mlx_serving.config.schema import Config
from mlx_serving.config.served_models import ModelsConfig
from mlx_serving.core.batch_queue import BatchQueueStats
from mlx_serving.core.serving import EngineTelemetry, HealthReport
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import EngineClosed, EngineError
from mlx_serving.facade.emitter import Callback, Emitter
from mlx_serving.facade.home_loop import HomeLoop
from mlx_serving.telemetry.events import Event
from mlx_serving.wire import methods


class LivingEngine:
    """What `Engine` is before it does anything. It starts with the first call, or with `start`."""

    def __init__(self, config: Config | Mapping[str, object] | None = None, *, python_path: str | None = None) -> None:
        """`config` as in the configuration file. Raises pydantic's ValidationError for one that does not fit, and
        `InvalidConfig` when it names a BLAS library that is not there.

        `python_path` is the interpreter of the worker; without one it is ours.
        """
        checked = config if isinstance(config, Config) else Config.model_validate(dict(config or {}))
        if "models" not in checked.model_fields_set:
            # A program says itself what it wants loaded; the embedded model stays a name that loads when it is used.
            embedded = ModelsConfig(served=(ServedModel(model=EMBEDDED_MODEL, preload=False),))
            checked = checked.model_copy(update={"models": embedded})
        if python_path is not None:
            checked = checked.model_copy(update={"worker": replace(checked.worker, python=python_path)})
        self._core = build(checked)
        self._config = checked
        self._batch_width = 2 * checked.scheduler.max_num_seqs
        self._emitter = Emitter(self._core.events)
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._home = HomeLoop()

    @property
    def core(self) -> EngineCore:
        """The engine without this surface, as the HTTP server uses it."""
        return self._core

    async def start(self) -> None:
        """Start the worker. Raises `WorkerDied` when it cannot be started, `EngineClosed` after `shutdown`, and
        `InvalidRequest` in another event loop than that of the first use, as all methods do."""
        self._home.enter()
        if self._closed:
            raise EngineClosed("The engine was shut down")
        if self._starting is None:
            self._starting = asyncio.create_task(self._core.start())
        try:
            await asyncio.shield(self._starting)
        except EngineError:
            self._starting = None
            raise

    async def shutdown(self) -> None:
        """End the worker. Streams in flight end with an error."""
        self._home.enter()
        self._closed = True
        await self._core.stop()
        if (starting := self._starting) is not None:
            await asyncio.wait((starting,))
            starting.exception()  # whoever waited for the start may have left before it failed

    async def dispose(self) -> None:
        """Shut down and forget all listeners."""
        await self.shutdown()
        self._emitter.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.dispose()

    # -- the runtime

    async def get_runtime_info(self) -> methods.RuntimeInfoResult:
        await self.start()
        return await self._core.runtime_info()

    async def get_telemetry(self) -> EngineTelemetry:
        """Load, work, memory, of the engine and its worker. Does not start one."""
        self._home.enter()
        return await self._core.telemetry()

    def get_batch_stats(self) -> BatchQueueStats:
        """How small calls shared messages to the worker."""
        return self._core.batch_stats()

    def reset_batch_stats(self) -> None:
        self._core.reset_batch_stats()

    def flush_batches(self) -> None:
        """Send at once the small calls that wait to share a message."""
        self._core.flush_batches()

    async def health_check(self) -> HealthReport:
        return await self._core.health()

    # -- events

    def on(self, event: str, callback: Callback) -> None:
        """Call `callback` with every event of that name (`model:loaded`, `runtime:status`, …; `*` for all)."""
        self._emitter.on(event, callback)

    def once(self, event: str, callback: Callback) -> None:
        self._emitter.once(event, callback)

    def off(self, event: str, callback: Callback | None = None) -> None:
        self._emitter.off(event, callback)

    def emit(self, event: Event) -> None:
        self._emitter.emit(event)

    # The ancestor's spelling.
    getRuntimeInfo = get_runtime_info  # noqa: N815
    getTelemetry = get_telemetry  # noqa: N815
    getBatchStats = get_batch_stats  # noqa: N815
    resetBatchStats = reset_batch_stats  # noqa: N815
    flushBatches = flush_batches  # noqa: N815
    healthCheck = health_check  # noqa: N815
