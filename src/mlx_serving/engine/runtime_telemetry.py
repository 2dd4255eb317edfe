"""What the worker tells of itself, asked for without disturbing it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from mlx_serving.core.runtime_telemetry import RuntimeTelemetry
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import DeadlineExceeded, WorkerDied
from mlx_serving.wire import methods

_PATIENCE_S = 5.0


class WorkerHolder(Protocol):
    @property
    def ready_client(self) -> WorkerClient | None:
        """The connection to the worker if it is ready now."""
        ...


class TelemetryReader:
    """Asks once at a time, however many want to know: they get the same answer. Never starts a worker."""

    def __init__(self, worker: WorkerHolder, patience_s: float = _PATIENCE_S) -> None:
        self._worker = worker
        self._patience_s = patience_s
        self._asking: asyncio.Task[RuntimeTelemetry | None] | None = None

    async def read(self) -> RuntimeTelemetry | None:
        """None when no worker is ready, and when it does not answer soon: it may be loading a model."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="runtime-telemetry")
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    def _asked(self, _: asyncio.Task[RuntimeTelemetry | None]) -> None:
        self._asking = None

    async def _ask(self) -> RuntimeTelemetry | None:
        client = self._worker.ready_client
        if client is None:
            return None
        try:
            return await client.call(methods.RUNTIME_TELEMETRY, methods.NoParams(), timeout_s=self._patience_s)
        except (WorkerDied, DeadlineExceeded):
            return None
