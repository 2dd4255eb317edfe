"""Another version of a model under the same name: streams go on with it."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from mlx_serving.core.generation import Delta
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.errors import InvalidRequest, ModelLoadError, ModelNotFound
from mlx_serving.telemetry.events import (
    ModelInvalidated,
    ModelProgressed,
    ModelUnloaded,
    ModelVersionChanged,
    StreamRecovered,
)

from ..event_log import LIMIT_S, EventLog, until
from ..tiny_models import make_llama
from .harness import MODEL, collect, complete, request, running, send, serving, worker_pid

LENGTH = 900


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def tokens_of(deltas: list[Delta]) -> tuple[int, ...]:
    return tuple(token for delta in deltas for token in delta.token_ids)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights with the same vocabulary."""
    return make_llama(tmp_path_factory.mktemp("models") / "other", seed=7, context_length=4096)


async def replaced(core: EngineCore, model: Path) -> str:
    served = await core.load_served(str(model), name=MODEL, revision=None, replace=True)
    return served.reference


async def some(deltas: AsyncIterator[Delta], tokens: int) -> list[Delta]:
    taken: list[Delta] = []
    while len(tokens_of(taken)) < tokens:
        taken.append(await anext(deltas))
    return taken


async def worker_models(core: EngineCore) -> int:
    return len((await core.runtime_state()).loaded_models)


async def test_streams_in_flight_go_on_with_the_new_version(tiny_model: Path, other_model: Path) -> None:
    async with running(serving(tiny_model)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        asked = request(max_tokens=LENGTH)
        before = await complete(core, asked)
        async with core.generate(asked) as deltas:
            first = await some(deltas, 20)
            assert await replaced(core, other_model) == str(other_model)
            rest = await collect(deltas)
        moved = await log.wait_for(StreamRecovered)
        assert (moved.losses, (await core.health()).workers[0].restarts) == (0, 0)
        answer = [*first, *rest]
        assert len(tokens_of(answer)) == LENGTH
        assert answer[-1].stats is not None
        assert answer[-1].stats.tokens_generated == LENGTH
        old, new = moved.delivered, LENGTH - moved.delivered
        assert tokens_of(answer)[:old] == tokens_of(before)[:old]
        again = await complete(core, request("again", max_tokens=LENGTH, delivered=tokens_of(answer)[:old]))
        assert tokens_of(again) == tokens_of(answer)[old:]
        assert len(tokens_of(again)) == new
        assert tokens_of(again) != tokens_of(before)[old:]
        assert text_of(before).startswith(text_of(answer)[: len(text_of(answer)) - len(text_of(again))])
        await until(lambda: _equals(worker_models(core), 1))
        assert [event.reference for event in log.of(ModelVersionChanged)] == [str(other_model)]
        assert log.of(ModelUnloaded) == []


async def _equals(count: Awaitable[int], wanted: int) -> bool:
    return await count == wanted


async def test_many_streams_move_and_those_who_come_meanwhile_are_served(tiny_model: Path, other_model: Path) -> None:
    async with running(serving(tiny_model)) as core, asyncio.timeout(LIMIT_S):
        await complete(core, request())
        log = EventLog(core.events)
        streams = [asyncio.create_task(complete(core, request(f"r{n}", max_tokens=LENGTH))) for n in range(20)]
        replacing = asyncio.create_task(replaced(core, other_model))
        while not replacing.done():
            await complete(core, request("meanwhile"))
        await replacing
        answers = await asyncio.gather(*streams)
        assert [len(tokens_of(answer)) for answer in answers] == [LENGTH] * 20
        assert log.of(StreamRecovered)
        assert (await core.health()).status == "healthy"


async def test_a_version_that_cannot_be_loaded_leaves_the_old_one(tiny_model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    async with running(serving(tiny_model)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        async with core.generate(request(max_tokens=LENGTH)) as deltas:
            first = await some(deltas, 1)
            with pytest.raises(ModelLoadError):
                await replaced(core, broken)
            assert len(tokens_of([*first, *await collect(deltas)])) == LENGTH
        assert log.of(StreamRecovered) == []
        assert core.models.spec(MODEL).reference == str(tiny_model)
        assert (await core.health()).status == "healthy"
        assert await worker_models(core) == 1


async def test_where_memory_holds_one_of_them_the_new_one_comes_after_the_old_one(tmp_path: Path) -> None:
    old, new = (make_llama(tmp_path / f"large{seed}", layers=16, seed=seed, context_length=256) for seed in (1, 2))
    broken = shutil.copytree(new, tmp_path / "broken")
    (broken / "config.json").write_text("{}")
    weights = sum(file.stat().st_size for file in old.glob("*.safetensors"))
    memory = {"limit_bytes": int(1.9 * weights), "prefill_bytes": weights // 10, "buffer_cache_bytes": weights // 10}
    async with running(serving(old, memory=memory)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        async with core.generate(request(max_tokens=200)) as deltas:
            first = await some(deltas, 1)
            assert await replaced(core, new) == str(new)
            assert len(tokens_of([*first, *await collect(deltas)])) == 200
        assert len(log.of(StreamRecovered)) == 1
        async with core.generate(request(max_tokens=200)) as deltas:
            first = await some(deltas, 1)
            with pytest.raises(ModelLoadError):
                await replaced(core, broken)
            assert len(tokens_of([*first, *await collect(deltas)])) == 200
        assert len(log.of(StreamRecovered)) == 2  # it had to make room, and came back
        assert core.models.spec(MODEL).reference == str(new)
        assert await worker_models(core) == 1


async def test_a_death_during_the_replacement_is_survived_by_it(tiny_model: Path, other_model: Path) -> None:
    async with running(serving(tiny_model)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        async with core.generate(request(max_tokens=LENGTH)) as deltas:
            first = await some(deltas, 1)
            loading = EventLog(core.events)
            replacing = asyncio.create_task(replaced(core, other_model))
            await loading.wait_for(ModelProgressed)
            send(await worker_pid(core), signal.SIGKILL)
            assert await replacing == str(other_model)
            assert len(tokens_of([*first, *await collect(deltas)])) == LENGTH
        await until(lambda: _equals(worker_models(core), 1))
        send(await worker_pid(core), signal.SIGKILL)
        await log.wait_for(ModelInvalidated, lambda event: event.model_id == MODEL, count=2)
        assert len(tokens_of(await complete(core, request()))) == 8
        assert await worker_models(core) == 1


async def test_several_workers_change_at_the_same_moment(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    async with running(serving(tiny_model, workers=2)) as core, asyncio.timeout(LIMIT_S):
        await core.start()
        for worker in core.workers:
            async with worker.models.lease(MODEL):
                pass
        log = EventLog(core.events)
        streams = [asyncio.create_task(complete(core, request(f"r{n}", max_tokens=LENGTH))) for n in range(8)]
        with pytest.raises(ModelLoadError):
            await replaced(core, broken)
        assert {worker.models.spec(MODEL).reference for worker in core.workers} == {str(tiny_model)}
        assert await replaced(core, other_model) == str(other_model)
        assert {worker.models.spec(MODEL).reference for worker in core.workers} == {str(other_model)}
        answers = await asyncio.gather(*streams)
        assert [len(tokens_of(answer)) for answer in answers] == [LENGTH] * 8
        assert len(log.of(ModelVersionChanged)) == 1
        assert (await core.health()).status == "healthy"


async def test_a_model_that_is_not_loaded_is_replaced_as_well(tiny_model: Path, other_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        assert await replaced(core, other_model) == str(other_model)
        assert await worker_models(core) == 1
        # A name that nobody has is simply served.
        served = await core.load_served(str(tiny_model), name="fresh", revision=None, replace=True)
        assert (served.name, served.state) == ("fresh", "ready")


async def test_what_was_configured_for_the_name_stays(tiny_model: Path, other_model: Path) -> None:
    config = serving(tiny_model)
    async with running(config) as core:
        core.models.register(ModelSpec("short", str(tiny_model), context_length=64))
        served = await core.load_served(str(other_model), name="short", revision=None, replace=True)
        assert served.context_length == 64
        with pytest.raises(InvalidRequest, match="replace"):
            await core.load_served(str(tiny_model), name="short", revision=None)


async def test_replacing_a_name_that_nobody_has_is_refused(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        with pytest.raises(ModelNotFound):
            await core.models.replace(ModelSpec("nobody", str(tiny_model)), load=True)


async def test_stopping_the_engine_ends_a_replacement(tiny_model: Path, other_model: Path) -> None:
    async with running(serving(tiny_model)) as core, asyncio.timeout(LIMIT_S):
        await complete(core, request())
        send(pid := await worker_pid(core), signal.SIGSTOP)  # so that the load stays in progress
        replacing = asyncio.create_task(replaced(core, other_model))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(core.stop())
        results = await asyncio.gather(replacing, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["EngineClosed"]
        send(pid, signal.SIGCONT)
        await stopping
