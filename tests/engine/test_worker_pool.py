"""Several workers, real ones: what one of them loses goes on in another."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.config.schema import Config
from mlx_serving.core.generation import Delta, TokenPrompt
from mlx_serving.core.serving import WorkerHealth
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.errors import InvalidRequest, ModelNotFound, RequestCrashedWorker, WorkerGaveUp
from mlx_serving.telemetry.events import RuntimeStatusChanged, StreamRecovered

from ..event_log import LIMIT_S, EventLog, until
from .harness import MODEL, complete, endless, request, running, send, serving
from .poisoned_worker import MARKER, as_python
from .test_recovery import check, crowd, text_of

NOT_SOON = {"backoff": {"initial_delay_s": 600.0, "max_delay_s": 600.0}}
"""A worker that dies does not come back within any test."""


def pooled(model: Path, workers: int = 2, **sections: Any) -> Config:
    return serving(model, workers=workers, **sections)


async def workers_of(core: EngineCore) -> Sequence[WorkerHealth]:
    return (await core.health()).workers


async def with_model(core: EngineCore, count: int) -> None:
    """Until so many workers have the model."""

    async def have() -> bool:
        return sum(MODEL in worker.models for worker in await workers_of(core)) == count

    await until(have)


async def in_both(core: EngineCore) -> None:
    """Have both workers load the model."""
    await core.start_workers()
    core.models.preload(MODEL)
    await with_model(core, 2)


async def test_streams_are_spread_and_counted(tiny_model: Path) -> None:
    async with running(pooled(tiny_model)) as core, AsyncExitStack() as streams:
        await in_both(core)
        for number in range(4):
            await streams.enter_async_context(core.generate(endless(f"r{number}")))
        assert [worker.active_streams for worker in await workers_of(core)] == [2, 2]
        assert len({worker.pid for worker in await workers_of(core)}) == 2


async def test_a_kill_is_a_pause_no_longer_than_the_way_to_the_other_worker(tiny_model: Path) -> None:
    async with running(pooled(tiny_model, worker=NOT_SOON)) as core:
        await in_both(core)
        log = EventLog(core.events)
        asked = crowd()
        expected = [text_of(await complete(core, one)) for one in asked]
        begun: set[str] = set()
        all_begun = asyncio.Event()

        async def read(number: int) -> str:
            deltas: list[Delta] = []
            async with core.generate(asked[number]) as stream:
                async for delta in stream:
                    deltas.append(delta)
                    begun.add(asked[number].request_id)
                    if len(begun) == len(asked):
                        all_begun.set()
            return text_of(deltas)

        async def kill() -> None:
            await all_begun.wait()
            send((await workers_of(core))[0].pid, signal.SIGKILL)

        async with asyncio.timeout(LIMIT_S):
            *answers, _ = await asyncio.gather(*(read(number) for number in range(len(asked))), kill())
        assert answers == expected
        health = await core.health()
        assert [worker.state for worker in health.workers] == ["backing off", "ready"]
        assert (health.status, health.reasons) == ("degraded", ("worker 0 is backing off",))
        assert 0 < len(log.of(StreamRecovered)) < len(asked)
        assert len(await complete(core, request("later"))) > 0
        assert (await core.tokenize(MODEL, "Hello")).tokens


async def test_who_waits_for_a_load_that_is_lost_gets_it_elsewhere(tiny_model: Path) -> None:
    async with running(pooled(tiny_model, worker=NOT_SOON)) as core:
        await core.start_workers()
        loading = asyncio.create_task(complete(core, request()))

        async def is_loading() -> bool:
            return core.workers[0].models.held == 1

        await until(is_loading)
        send((await workers_of(core))[0].pid, signal.SIGKILL)
        async with asyncio.timeout(LIMIT_S):
            assert len(await loading) > 0
        assert [worker.models for worker in await workers_of(core)] == [(), (MODEL,)]


@pytest.mark.parametrize("how", ["load", "alias", "roll back"])
async def test_what_the_operator_loads_is_loaded_elsewhere_when_its_worker_is_lost(tiny_model: Path, how: str) -> None:
    async with running(pooled(tiny_model, worker=NOT_SOON)) as core, asyncio.timeout(LIMIT_S):
        await core.start_workers()
        if how == "roll back":
            await core.set_alias(MODEL, str(tiny_model))
            await core.unload_served(core.list_aliases()[0].target.model, force=True)
        moving = {
            "load": lambda: core.load_served(MODEL, name=None, revision=None),
            "alias": lambda: core.set_alias("chat", MODEL),
            "roll back": lambda: core.roll_back_alias(MODEL),
        }
        loading = asyncio.create_task(moving[how]())

        async def is_loading() -> bool:
            return core.workers[0].models.held == 1

        await until(is_loading)
        send((await workers_of(core))[0].pid, signal.SIGKILL)
        await loading
        assert [worker.models for worker in await workers_of(core)] == [(), (MODEL,)]


async def test_a_rolling_restart_leaves_somebody_to_serve(tiny_model: Path) -> None:
    async with running(pooled(tiny_model)) as core:
        await in_both(core)
        ready = {0, 1}
        fewest = [2]

        def watch(event: object) -> None:
            if isinstance(event, RuntimeStatusChanged):
                (ready.add if event.state == "ready" else ready.discard)(event.worker)
                fewest.append(len(ready))

        core.events.subscribe(watch)
        before = {worker.pid for worker in await workers_of(core)}
        await check(core, core.restart_workers, all_recover=False)
        assert min(fewest) == 1
        after = await workers_of(core)
        assert before.isdisjoint({worker.pid for worker in after})
        assert [worker.restarts for worker in after] == [2, 2]


async def test_a_poisonous_request_fails_alone(tmp_path: Path, tiny_model: Path) -> None:
    healthy = crowd(9)
    poison = replace(request("poison"), prompt=TokenPrompt((1, 2, MARKER)))
    async with running(pooled(tiny_model, worker={"python": as_python(tmp_path)})) as core:
        await in_both(core)
        expected = [text_of(await complete(core, one)) for one in healthy]
        results = await asyncio.gather(*(complete(core, one) for one in [*healthy, poison]), return_exceptions=True)
        error = results.pop()
        assert isinstance(error, RequestCrashedWorker)
        assert [text_of(deltas) for deltas in results if not isinstance(deltas, BaseException)] == expected
        # Known in one worker for what it did in the other, it kills no more of two than of one.
        assert error.details["losses"] in (3, 4)
        assert sum(worker.restarts for worker in await workers_of(core)) <= 4


async def test_a_busy_model_is_loaded_by_who_has_nothing_to_do(tiny_model: Path) -> None:
    async with running(pooled(tiny_model)) as core, AsyncExitStack() as streams:
        await core.start_workers()
        await complete(core, request())
        await with_model(core, 1)
        for number in range(5):
            await streams.enter_async_context(core.generate(endless(f"r{number}")))
        await with_model(core, 2)
        for number in range(5, 8):
            await streams.enter_async_context(core.generate(endless(f"r{number}")))
        assert [worker.active_streams for worker in await workers_of(core)] == [5, 3]


async def test_sequences_of_one_request_stay_together(tiny_model: Path) -> None:
    async with running(pooled(tiny_model)) as core, AsyncExitStack() as streams:
        await in_both(core)
        await streams.enter_async_context(core.generate(endless("first")))
        await streams.enter_async_context(core.generate(endless("fork", fork_of="first")))
        await streams.enter_async_context(core.generate(endless("alone", fork_of="long gone")))
        assert [worker.active_streams for worker in await workers_of(core)] == [2, 1]


async def test_while_one_worker_works_the_engine_does(tiny_model: Path) -> None:
    fragile = {"max_restarts": 0, "give_up_pause_s": 600.0}
    async with running(pooled(tiny_model, worker=fragile)) as core:
        await core.start_workers()

        async def states() -> list[str]:
            return [worker.state for worker in await workers_of(core)]

        async def kill(number: int) -> None:
            for _ in range(4):  # what comes from outside counts a quarter
                send((await workers_of(core))[number].pid, signal.SIGKILL)

                async def settled() -> bool:
                    return (await states())[number] in ("ready", "gave up")

                async def noticed() -> bool:
                    return (await states())[number] != "ready"

                await until(noticed)
                await until(settled)
                if (await states())[number] == "gave up":
                    return

        await kill(0)
        assert await states() == ["gave up", "ready"]
        assert (await core.health()).status == "degraded"
        assert len(await complete(core, request())) > 0
        await kill(1)
        if await states() == ["gave up", "gave up"]:
            assert (await core.health()).status == "unhealthy"
            with pytest.raises(WorkerGaveUp):
                await complete(core, request())
        await core.restart_workers()
        assert await states() == ["ready", "ready"]
        assert len(await complete(core, request())) > 0


async def test_models_come_and_go_in_all_workers(tiny_model: Path, tmp_path: Path) -> None:
    async with running(pooled(tiny_model)) as core:
        await in_both(core)
        with pytest.raises(InvalidRequest, match="unload it first"):
            core.models.register(ModelSpec(MODEL, str(tmp_path)))
        with pytest.raises(ModelNotFound):
            core.models.preload("tine")
        assert list(core.models.loaded()) == [MODEL]
        await core.unload_served(MODEL, force=False)
        assert [worker.models for worker in await workers_of(core)] == [(), ()]
        assert [model.state for model in core.served_models()] == ["absent"]
        other = await core.load_served(str(tiny_model), name="other", revision=None)
        assert other.state == "ready"
        assert core.models.names() == [MODEL, "other"]
        core.models.forget("other")
        assert core.models.names() == [MODEL]


async def test_telemetry_tells_of_every_worker(tiny_model: Path) -> None:
    async with running(pooled(tiny_model)) as core:
        await core.start_workers()
        told = await core.telemetry()
        pids = [worker.runtime.process.pid for worker in told.workers if worker.runtime is not None]
        assert pids == [worker.pid for worker in await workers_of(core)]
        assert told.runtime == told.workers[0].runtime
