"""The supervisor and the real worker."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest

from mlx_serving.errors import EngineClosed, WorkerDied
from mlx_serving.telemetry.events import RuntimeStatusChanged
from mlx_serving.wire import methods

from ..event_log import EventLog, until
from .harness import WATCHFUL, gone, send, supervised, zombies


async def test_a_handshake_makes_the_worker_ready() -> None:
    async with supervised() as (supervisor, bus):
        log = EventLog(bus)
        assert supervisor.health().state == "stopped"
        assert supervisor.info is None
        client = await supervisor.client()
        health, info = supervisor.health(), supervisor.info
        assert info is not None
        assert (health.state, health.pid, health.restarts, health.last_crash) == ("ready", info.pid, 0, None)
        assert info.notifications == methods.STEP_FRAMES
        assert log.states() == ["starting", "ready"]
        assert await supervisor.client() is client


async def test_those_who_ask_while_it_starts_share_one_worker() -> None:
    async with supervised() as (supervisor, bus):
        log = EventLog(bus)
        clients = await asyncio.gather(*(supervisor.client() for _ in range(5)))
        assert len(set(map(id, clients))) == 1
        assert log.states() == ["starting", "ready"]


async def test_a_worker_that_is_killed_while_idle_is_replaced_unasked() -> None:
    async with supervised() as (supervisor, bus):
        log = EventLog(bus)
        first = await supervisor.client()
        pid = supervisor.health().pid
        send(pid, signal.SIGKILL)
        await log.wait_for_state("ready", 2)
        client = await supervisor.client()
        assert client is not first
        with pytest.raises(WorkerDied):
            await first.call(methods.RUNTIME_STATE, methods.NoParams())
        state = await client.call(methods.RUNTIME_STATE, methods.NoParams())
        assert state.restart_count == 1
        health = supervisor.health()
        assert (health.state, health.restarts) == ("ready", 1)
        assert health.pid != pid
        crash = health.last_crash
        assert crash is not None
        assert (crash.signal, crash.exit_code, crash.cause) == ("SIGKILL", None, "exited")
        assert crash.finding is not None
        assert crash.advice is not None
        assert log.states() == ["starting", "ready", "backing off", "starting", "ready"]


async def test_a_worker_that_is_stopped_while_idle_is_replaced() -> None:
    async with supervised(None, **WATCHFUL) as (supervisor, bus):
        log = EventLog(bus)
        await supervisor.client()
        pid = supervisor.health().pid
        assert pid is not None
        send(pid, signal.SIGSTOP)
        await log.wait_for_state("ready", 2)
        crash = supervisor.health().last_crash
        assert crash is not None
        assert crash.cause == "no heartbeat"
        assert crash.finding is None  # the signal was ours
        await gone(pid)


async def test_a_planned_restart_is_no_crash() -> None:
    async with supervised() as (supervisor, bus):
        log = EventLog(bus)
        await supervisor.client()
        pid = supervisor.health().pid
        supervisor.restart()
        await supervisor.client()
        health = supervisor.health()
        assert (health.restarts, health.last_crash) == (1, None)
        assert health.pid != pid
        assert log.states() == ["starting", "ready", "draining", "starting", "ready"]


async def test_stop_ends_the_process_and_nothing_starts_after_it() -> None:
    async with supervised() as (supervisor, bus):
        log = EventLog(bus)
        client = await supervisor.client()
        pid = supervisor.health().pid
        assert pid is not None
        await supervisor.stop()
        assert not psutil.pid_exists(pid)
        assert supervisor.health().state == "stopped"
        assert supervisor.health().last_crash is None
        with pytest.raises(EngineClosed):
            await supervisor.client()
        with pytest.raises(WorkerDied):
            await client.call(methods.RUNTIME_STATE, methods.NoParams())
        await supervisor.stop()
        assert log.of(RuntimeStatusChanged)[-1].status == "stopped"


async def test_stop_during_start_ends_the_child_and_refuses_those_who_wait() -> None:
    async with supervised() as (supervisor, bus):
        log = EventLog(bus)
        waiting = [asyncio.create_task(supervisor.client()) for _ in range(3)]
        await log.wait_for_state("starting")
        await supervisor.stop()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [EngineClosed] * 3
        assert log.states() == ["starting", "draining", "stopped"]
        assert zombies() == []


async def test_stop_while_the_worker_is_importing_ends_it() -> None:
    async with supervised() as (supervisor, _):
        waiting = asyncio.create_task(supervisor.client())

        async def has_a_child() -> bool:
            return supervisor.health().pid is not None

        await until(has_a_child)
        pid = supervisor.health().pid
        assert pid is not None
        await supervisor.stop()
        assert not psutil.pid_exists(pid)
        with pytest.raises(EngineClosed):
            await waiting


async def test_a_stop_that_is_cancelled_can_be_waited_for_again() -> None:
    async with supervised() as (supervisor, bus):
        log = EventLog(bus)
        await supervisor.client()
        stopping = asyncio.create_task(supervisor.stop())
        await log.wait_for_state("draining")
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await supervisor.stop()
        assert supervisor.health().state == "stopped"


async def test_who_gives_up_waiting_for_the_worker_leaves_it_to_others() -> None:
    async with supervised() as (supervisor, bus):
        log = EventLog(bus)
        impatient = asyncio.create_task(supervisor.client())
        await log.wait_for_state("starting")
        impatient.cancel()
        await supervisor.client()
        assert impatient.cancelled()


async def test_the_worker_is_in_a_session_of_its_own() -> None:
    async with supervised() as (supervisor, _):
        await supervisor.client()
        pid = supervisor.health().pid
        assert pid is not None
        assert os.getsid(pid) == pid
