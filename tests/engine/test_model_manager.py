"""Models come when they are needed, stay while they are used, and come back after a death."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.errors import EngineClosed, EngineError, InvalidRequest, ModelLoadError, ModelNotFound, ModelNotLoaded
from mlx_serving.telemetry.events import (
    ErrorOccurred,
    Event,
    ModelInvalidated,
    ModelLoaded,
    ModelProgressed,
    ModelUnloaded,
)

from ..event_log import EventLog, until
from ..tiny_models import make_llama
from .harness import complete, endless, request, running, send, serving, worker_pid
from .stand_ins import stand_in


async def lease(core: EngineCore, name: str = "tiny") -> str:
    async with core.models.lease(name) as facts:
        return facts.model_id


def state_of(core: EngineCore, name: str = "tiny") -> str:
    return next(model.state for model in core.served_models() if model.name == name)


async def test_those_who_come_together_share_one_load(core: EngineCore) -> None:
    await core.unload_served("tiny", force=True)
    assert state_of(core) == "absent"
    log = EventLog(core.events)
    assert await asyncio.gather(*(lease(core) for _ in range(6))) == ["tiny"] * 6
    assert [event.model_id for event in log.of(ModelLoaded)] == ["tiny"]
    assert state_of(core) == "ready"


async def test_a_loaded_model_can_be_seen_by_who_hears_of_it(core: EngineCore) -> None:
    await core.unload_served("tiny", force=True)
    seen: list[bool] = []
    unsubscribe = core.events.subscribe(
        lambda event: seen.append("tiny" in core.models.loaded()) if isinstance(event, ModelLoaded) else None
    )
    await lease(core)
    unsubscribe()
    assert seen == [True]


async def test_an_unknown_name_is_refused_with_a_suggestion(core: EngineCore) -> None:
    with pytest.raises(ModelNotFound, match="did you mean tiny") as caught:
        await lease(core, "tinny")
    assert caught.value.details == {"model": "tinny", "served": ["tiny"]}
    with pytest.raises(ModelNotFound, match=r"not served here$"):
        await complete(core, request(model="quite-another"))


async def test_unload_waits_for_the_last_user_and_the_next_one_loads_again(core: EngineCore) -> None:
    await lease(core)
    log = EventLog(core.events)
    async with core.generate(request(max_tokens=50)) as deltas:
        await anext(deltas)
        unloading = asyncio.create_task(core.unload_served("tiny", force=False))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(complete(core, request("next")))
        await asyncio.sleep(0)
        assert not unloading.done()
        assert state_of(core) == "draining"
        assert [delta async for delta in deltas][-1].finish_reason == "length"
    await unloading
    assert (await waiting)[-1].finish_reason == "length"
    assert len(log.of(ModelUnloaded)) == 1
    assert len(log.of(ModelLoaded)) == 1


async def test_unload_frees_the_model_in_the_worker(core: EngineCore) -> None:
    await lease(core)
    assert len((await core.runtime_state()).loaded_models) == 1
    await core.unload_served("tiny", force=False)
    assert (await core.runtime_state()).loaded_models == []
    await core.unload_served("tiny", force=False)  # again: nothing to do


async def test_unload_during_a_load_waits_until_the_model_is_gone(core: EngineCore) -> None:
    await core.unload_served("tiny", force=True)
    core.models.preload("tiny")
    assert state_of(core) == "loading"
    await core.unload_served("tiny", force=False)
    assert state_of(core) == "absent"
    assert (await core.runtime_state()).loaded_models == []


async def test_a_forced_unload_refuses_those_who_wait_for_the_load(core: EngineCore) -> None:
    await core.unload_served("tiny", force=True)
    waiting = [asyncio.create_task(lease(core)) for _ in range(2)]
    await asyncio.sleep(0)
    await core.unload_served("tiny", force=True)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ModelNotLoaded] * 2
    assert state_of(core) == "absent"


async def test_who_gives_up_waiting_is_forgotten_and_the_load_goes_on(core: EngineCore) -> None:
    await core.unload_served("tiny", force=True)
    log = EventLog(core.events)
    impatient = asyncio.create_task(lease(core))
    await asyncio.sleep(0)
    impatient.cancel()
    await log.wait_for(ModelLoaded)
    assert impatient.cancelled()
    await core.unload_served("tiny", force=False)  # nobody holds it
    assert state_of(core) == "absent"


async def test_a_load_that_fails_is_typed_and_the_next_attempt_tries_again(core: EngineCore, tmp_path: Path) -> None:
    log = EventLog(core.events)
    directory = tmp_path / "late"
    core.models.register(ModelSpec("late", str(directory)))
    try:
        with pytest.raises(EngineError) as caught:
            await lease(core, "late")
        assert isinstance(caught.value, ModelLoadError | ModelNotFound)
        assert state_of(core, "late") == "failed"
        failed = next(model for model in core.served_models() if model.name == "late")
        assert failed.error == caught.value.message
        assert (await core.health()).status == "degraded"
        assert [event.context for event in log.of(ErrorOccurred)] == ["loading late"]
        make_llama(directory)
        assert await lease(core, "late") == "late"
        assert (await core.health()).status == "healthy"
        await core.unload_served("late", force=True)
    finally:
        core.models.forget("late")


async def test_a_broken_model_refuses_all_who_wait_and_the_worker_lives(core: EngineCore, tmp_path: Path) -> None:
    pid = await worker_pid(core)
    directory = make_llama(tmp_path / "broken")
    (directory / "model.safetensors").write_bytes(b"not weights")
    core.models.register(ModelSpec("broken", str(directory)))
    try:
        results = await asyncio.gather(*(lease(core, "broken") for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [ModelLoadError] * 3
        assert await worker_pid(core) == pid
    finally:
        core.models.forget("broken")


async def test_a_new_name_whose_load_fails_is_forgotten(core: EngineCore, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        await core.load_served(str(tmp_path / "nothing"), name="ghost", revision=None)
    assert core.models.names() == ["tiny"]


async def test_a_model_is_loaded_and_served_under_a_name(core: EngineCore, tmp_path: Path) -> None:
    directory = make_llama(tmp_path / "extra", context_length=64)
    served = await core.load_served(str(directory), name=None, revision=None)
    assert (served.name, served.state, served.context_length, served.default) == ("extra", "ready", 64, False)
    with pytest.raises(InvalidRequest, match="already") as caught:
        await core.load_served(str(tmp_path / "other"), name="extra", revision=None)
    assert caught.value.field == "name"
    await core.unload_served("extra", force=True)
    core.models.forget("extra")


async def test_two_names_of_one_reference_do_not_disturb_each_other(core: EngineCore, tiny_model: Path) -> None:
    core.models.register(ModelSpec("short", str(tiny_model), context_length=20))
    try:
        async with core.models.lease("short") as short, core.models.lease("tiny") as tiny:
            assert (short.context_length, tiny.context_length) == (20, 4096)
        await core.unload_served("short", force=True)
        assert len(await complete(core, request())) > 0
    finally:
        core.models.forget("short")


async def test_a_model_comes_back_after_a_death(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        log = EventLog(core.events)
        await lease(core)
        send(await worker_pid(core), signal.SIGKILL)
        await log.wait_for(ModelLoaded, count=2)
        assert [event.model_id for event in log.of(ModelInvalidated)] == ["tiny"]
        assert len((await core.runtime_state()).loaded_models) == 1


async def test_a_load_that_a_restart_overtakes_says_nothing_about_the_next_worker(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        log = EventLog(core.events)

        def restart_once(event: Event) -> None:  # the old worker finishes its load before it obeys
            if isinstance(event, ModelProgressed) and core.models.loaded() == {} and len(log.of(ModelProgressed)) == 1:
                core.workers[0].supervisor.restart()

        core.events.subscribe(restart_once)
        await core.start()
        answers = await asyncio.gather(*(complete(core, request(f"r{n}")) for n in range(3)))
        assert [deltas[-1].finish_reason for deltas in answers] == ["length"] * 3
        assert (await core.health()).worker.restarts == 1
        assert len(log.of(ModelLoaded)) == 1


async def test_an_unload_that_a_restart_overtakes_does_not_concern_the_next_worker(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        log = EventLog(core.events)
        await lease(core)
        [worker] = core.workers
        unloading = asyncio.create_task(worker.models.unload("tiny", force=False))
        await asyncio.sleep(0)  # it is decided, and the worker has not heard of it yet
        worker.supervisor.restart()
        await lease(core)
        await unloading
        send(await worker_pid(core), signal.SIGKILL)
        await log.wait_for(ModelLoaded, count=3)
        assert (await complete(core, request()))[-1].finish_reason == "length"


async def test_a_restart_in_the_moment_of_the_grant_goes_unnoticed(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        log = EventLog(core.events)

        def restart_once(event: Event) -> None:
            if isinstance(event, ModelLoaded) and len(log.of(ModelLoaded)) == 1:
                core.workers[0].supervisor.restart()

        core.events.subscribe(restart_once)
        assert (await complete(core, request()))[-1].finish_reason == "length"
        assert (await core.health()).worker.restarts == 1


async def test_a_load_in_progress_when_the_worker_dies_is_done_by_the_next(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        pid = await worker_pid(core)
        send(pid, signal.SIGSTOP)  # so that the load stays in progress
        waiting = asyncio.create_task(complete(core, request()))
        await until(lambda: _is(state_of(core) == "loading"))
        send(pid, signal.SIGKILL)
        assert (await waiting)[-1].finish_reason == "length"


async def _is(value: bool) -> bool:
    return value


async def test_stopping_the_engine_refuses_those_who_wait_for_a_model(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        pid = await worker_pid(core)
        send(pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(lease(core)) for _ in range(3)]
        await until(lambda: _is(state_of(core) == "loading"))
        unloading = asyncio.create_task(core.unload_served("tiny", force=False))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(core.stop())
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [EngineClosed] * 3
        await unloading
        send(pid, signal.SIGCONT)
        await stopping
        assert core.models.loaded() == {}
        with pytest.raises(EngineClosed):
            await lease(core)


async def test_a_load_that_kills_two_workers_is_given_up(tmp_path: Path, tiny_model: Path) -> None:
    body = "handshake()\nfor m in messages:\n    if m['method'] == 'load_model': os.abort()\n"
    config = serving(tiny_model, worker={"python": stand_in(tmp_path, body), "blas": "none"})
    async with running(config) as core:
        with pytest.raises(ModelLoadError, match="the likely cause of lost workers") as caught:
            await complete(core, endless())
        assert caught.value.details["signal"] == "SIGABRT"
        assert (await core.health()).status in ("degraded", "healthy")
        assert state_of(core) == "failed"
