"""A worker that dies for want of memory is followed by one that takes less, and everybody is told."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from mlx_serving.core.crash_finding import CrashKind, Finding
from mlx_serving.core.memory_budget import MemoryPolicy
from mlx_serving.core.worker_lifecycle import WorkerPolicy
from mlx_serving.engine.memory_history import MemoryHistory
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_process import WorkerCommand
from mlx_serving.telemetry.events import EventBus, MemoryShareChanged
from mlx_serving.wire import methods
from mlx_serving.wire.settings import WorkerSettings

from ..event_log import LIMIT_S, EventLog
from .harness import QUICK_BACKOFF, send

KILLED = Finding(CrashKind.KILLED, "It was killed.", "Look who did it.")
OUT_OF_MEMORY = Finding(CrashKind.OUT_OF_MEMORY, "It ran out of memory.", "Use less.")
SETTINGS = WorkerSettings(memory=MemoryPolicy(limit_bytes=1 << 30))


@asynccontextmanager
async def supervised(memory_kills: Callable[[], int | None]) -> AsyncGenerator[tuple[Supervisor, EventBus]]:
    bus = EventBus()
    command = WorkerCommand(SETTINGS, blas="none")
    supervisor = Supervisor(command, WorkerPolicy(backoff=QUICK_BACKOFF), bus, memory_kills)
    try:
        yield supervisor, bus
    finally:
        async with asyncio.timeout(LIMIT_S):
            await supervisor.stop()


class Histories:
    def __init__(self, memory_kills: Callable[[], int | None]) -> None:
        bus = EventBus()
        self.log = EventLog(bus)
        self.history = MemoryHistory(bus, memory_kills)

    def life(self, finding: Finding | None) -> float:
        self.history.spawned()
        self.history.exited(finding)
        return self.history.kv_share


def test_a_death_for_memory_is_told_with_its_reason() -> None:
    histories = Histories(lambda: 0)
    assert [histories.life(OUT_OF_MEMORY), histories.life(None), histories.life(OUT_OF_MEMORY)] == [0.75, 0.75, 0.5625]
    first, second = histories.log.of(MemoryShareChanged)
    assert (first.previous, first.current, first.reason) == (1.0, 0.75, "It ran out of memory.")
    assert (second.previous, second.current) == (0.75, 0.5625)


@pytest.mark.parametrize(("kills", "share"), [(0, 1.0), (None, 0.75)])
def test_an_unexplained_kill_counts_where_the_system_does_not(kills: int | None, share: float) -> None:
    assert Histories(lambda: kills).life(KILLED) == share


@pytest.mark.parametrize(("counts", "expected"), [((3, 3), False), ((3, 4), True), ((None, None), False)])
def test_kills_are_those_since_the_worker_began(counts: tuple[int | None, int | None], expected: bool) -> None:
    told = iter(counts)
    history = Histories(lambda: next(told)).history
    history.spawned()
    assert history.has_killed() is expected


async def test_a_worker_that_the_system_killed_for_memory_comes_back_with_a_smaller_budget() -> None:
    async with supervised(itertools.count().__next__) as (supervisor, bus):
        log = EventLog(bus)
        client = await supervisor.client()
        whole = (await client.call(methods.RUNTIME_INFO, methods.RuntimeInfoParams())).memory.kv_budget
        send(supervisor.health().pid, signal.SIGKILL)
        await log.wait_for_state("ready", 2)
        health = supervisor.health()
        assert health.kv_share == 0.75
        assert health.last_crash is not None
        assert health.last_crash.finding == "The system killed the worker because memory ran out."
        assert [event.current for event in log.of(MemoryShareChanged)] == [0.75]
        client = await supervisor.client()
        less = (await client.call(methods.RUNTIME_INFO, methods.RuntimeInfoParams())).memory.kv_budget
        assert less == int(0.75 * whole)


async def test_a_worker_that_somebody_killed_comes_back_as_it_was() -> None:
    async with supervised(lambda: 0) as (supervisor, bus):
        log = EventLog(bus)
        await supervisor.client()
        send(supervisor.health().pid, signal.SIGKILL)
        await log.wait_for_state("ready", 2)
        assert supervisor.health().kv_share == 1.0
        assert log.of(MemoryShareChanged) == []
