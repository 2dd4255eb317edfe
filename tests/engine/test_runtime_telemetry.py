"""What an engine tells of its worker, with and without one that answers."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.engine.runtime_telemetry import TelemetryReader
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import WorkerDied

from .harness import complete, request, running, serving, supervised, worker_pid
from .peer import connected
from .stand_ins import GOOD, stand_in


class Worker:
    """In place of a supervisor: whose worker is ready, or not."""

    def __init__(self, client: WorkerClient | None) -> None:
        self._client = client

    @property
    def ready_client(self) -> WorkerClient | None:
        return self._client


async def test_a_working_engine_tells_of_itself_and_of_its_worker(core: EngineCore) -> None:
    await complete(core, request(max_tokens=8))
    told = await core.telemetry()
    assert (told.worker_state, told.worker_restarts, told.active_streams) == ("ready", 0, 0)
    assert told.uptime_s > 0
    assert told.runtime is not None
    assert told.runtime.process.pid == await worker_pid(core)
    assert told.runtime.generation.total_tokens >= 8
    assert told.runtime.scheduler.models["tiny"].done.decoded_tokens >= 7


async def test_asking_starts_no_worker(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        told = await core.telemetry()
        assert (told.worker_state, told.runtime) == ("stopped", None)
        assert (await core.health()).worker.pid is None


async def test_many_who_ask_at_once_are_one_question() -> None:
    async with connected() as (client, peer):
        reader = TelemetryReader(Worker(client))
        asking = [asyncio.create_task(reader.read()) for _ in range(5)]
        question = await peer.request()
        assert question["method"] == "runtime/telemetry"
        asking[0].cancel()  # which takes nobody along
        client.abandon(WorkerDied("gone"))
        assert await asyncio.gather(*asking[1:]) == [None] * 4
        assert await reader.read() is None  # who asks later is a question of its own


async def test_a_worker_that_does_not_answer_soon_is_not_waited_for() -> None:
    async with connected() as (client, _):
        assert await TelemetryReader(Worker(client), patience_s=0.01).read() is None


async def test_the_connection_is_ready_between_the_handshake_and_the_end(tmp_path: Path) -> None:
    async with supervised(stand_in(tmp_path, GOOD)) as (supervisor, _):
        assert supervisor.ready_client is None
        client = await supervisor.client()
        assert supervisor.ready_client is client
        pid = supervisor.health().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await supervisor.client() is client  # nobody has noticed yet
        await supervisor.stop()
        assert supervisor.ready_client is None
