"""Models that share less memory than they take together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.config.schema import Config
from mlx_serving.core.generation import GenerationRequest, TokenPrompt
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import ContextLengthExceeded, InsufficientMemory, MemoryInUse
from mlx_serving.telemetry.events import ModelEvicted, ModelLoaded, ModelUnloaded

from ..event_log import LIMIT_S, EventLog, until
from ..tiny_models import make_llama
from .harness import collect, complete, request, running

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("room")
    # Caches that are small beside the weights: what is tried here is room for models.
    make = partial(make_llama, layers=16, head_dim=4, context_length=4096)
    return {name: make(home / name, seed=seed) for seed, name in enumerate(NAMES)}


def config_of(models: Mapping[str, Path], room_for: float, section: Any = None, **of_model: Any) -> Config:
    """Memory for the weights of so many of the models, and some for what they compute."""
    weights = sum(file.stat().st_size for file in models["one"].glob("*.safetensors"))
    served = [
        {"model": str(path), "name": name, "preload": False, **of_model.get(name, {})} for name, path in models.items()
    ]
    spare = weights // 10
    memory = {"limit_bytes": int(room_for * weights), "prefill_bytes": spare, "buffer_cache_bytes": spare}
    return Config.model_validate(
        {"models": {"served": served, **(section or {})}, "memory": memory, "scheduler": {"max_num_seqs": 4}}
    )


def states(core: EngineCore) -> dict[str, str]:
    return {model.name: model.state for model in core.served_models()}


async def use(core: EngineCore, *names: str) -> None:
    for name in names:
        await complete(core, request(f"use {name}", model=name))


async def test_the_coldest_model_gives_way_to_one_that_is_wanted(models: dict[str, Path]) -> None:
    async with running(config_of(models, 2.9)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        await use(core, "two", "one", "one", "three")
        assert states(core) == {"one": "ready", "two": "absent", "three": "ready"}
        [evicted] = log.of(ModelEvicted)
        assert (evicted.model_id, evicted.reason, evicted.wanted_by) == ("two", "memory", "three")
        await use(core, "two")
        assert states(core) == {"one": "ready", "two": "ready", "three": "absent"}


async def test_a_model_in_use_goes_when_its_users_are_done_and_comes_back_for_those_who_wait(
    models: dict[str, Path],
) -> None:
    async with running(config_of(models, 1.9)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        async with core.generate(request("long", model="one", max_tokens=300)) as deltas:
            await anext(deltas)
            other = asyncio.create_task(complete(core, request("other", model="two")))
            await log.wait_for(ModelEvicted)
            late = asyncio.create_task(complete(core, request("late", model="one")))
            assert (await collect(deltas))[-1].finish_reason == "length"
            assert log.of(ModelUnloaded) == []
        assert (await other)[-1].finish_reason == "length"
        assert (await late)[-1].finish_reason == "length"
        assert [event.model_id for event in log.of(ModelLoaded)] == ["one", "two", "one"]


async def test_who_waits_too_long_for_a_model_in_use_is_refused_and_it_goes_on(models: dict[str, Path]) -> None:
    async with running(config_of(models, 1.9, {"drain_timeout_s": 0})) as core, asyncio.timeout(LIMIT_S):
        async with core.generate(request("long", model="one", max_tokens=300)) as deltas:
            await anext(deltas)
            with pytest.raises(MemoryInUse, match="two needs memory that those who use one have"):
                await use(core, "two")
            await anext(deltas)
            await use(core, "one")
            assert states(core) == {"one": "ready", "two": "failed", "three": "absent"}
        await use(core, "two")


async def test_a_pinned_model_gives_way_to_nobody(models: dict[str, Path]) -> None:
    async with running(config_of(models, 1.9, one={"pin": True})) as core, asyncio.timeout(LIMIT_S):
        await use(core, "one")
        with pytest.raises(InsufficientMemory, match="two takes"):
            await use(core, "two")
        await use(core, "one")
        await core.unload_served("one", force=False)  # unless it is asked for
        await use(core, "two")


async def test_a_model_that_nobody_waits_for_takes_no_place(models: dict[str, Path]) -> None:
    async with running(config_of(models, 1.9)) as core, asyncio.timeout(LIMIT_S):
        await use(core, "one")
        core.models.preload("two")
        await until(lambda: _is(core, "two", "failed"))
        assert states(core)["one"] == "ready"
        await use(core, "two")
        assert states(core)["one"] == "absent"


async def test_a_model_stays_as_the_one_who_loads_it_says(models: dict[str, Path]) -> None:
    """Also one that is served already, and without any harm to what is in memory."""
    async with running(config_of(models, 1.9)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        one = str(models["one"])
        served = await core.load_served(one, name="one", revision=None, pinned=True, keep_alive_s=-1.0)
        assert (served.pinned, served.keep_alive_s) == (True, -1.0)
        with pytest.raises(InsufficientMemory, match="two takes"):
            await use(core, "two")
        served = await core.load_served(one, name="one", revision=None, pinned=False)
        assert (served.pinned, served.keep_alive_s) == (False, -1.0)
        assert len(log.of(ModelLoaded)) == 1
        await use(core, "two")
        await core.load_served(str(models["two"]), name="two", revision=None, keep_alive_s=0.0)
        await until(lambda: _is(core, "two", "absent"))


async def test_a_load_that_fails_leaves_a_model_staying_as_it_did(models: dict[str, Path]) -> None:
    async with running(config_of(models, 1.9, one={"pin": True})) as core, asyncio.timeout(LIMIT_S):
        await use(core, "one")
        with pytest.raises(InsufficientMemory, match="two takes"):
            await core.load_served("two", name=None, revision=None, pinned=True, keep_alive_s=-1.0)
        two = next(model for model in core.served_models() if model.name == "two")
        assert (two.pinned, two.keep_alive_s) == (False, None)


# -- room for KV caches

LONG = 2600
"""Tokens of which the KV caches take as much as one and a half of the models."""


async def test_a_request_that_does_not_fit_gets_the_memory_of_the_coldest_idle_model(models: dict[str, Path]) -> None:
    async with running(config_of(models, 4, one={"keep_alive_s": -1})) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        await use(core, "one", "two", "three")
        answer = await complete(core, long_request("three"))
        assert answer[-1].finish_reason == "length"
        [evicted] = log.of(ModelEvicted)
        assert (evicted.model_id, evicted.reason, evicted.wanted_by) == ("two", "kv_cache", "three")
        assert states(core) == {"one": "ready", "two": "absent", "three": "ready"}
        await use(core, "two")


async def test_a_request_that_does_not_fit_is_refused_where_nobody_may_go(models: dict[str, Path]) -> None:
    config = config_of(models, 4, one={"pin": True}, two={"keep_alive_s": "-1"})
    async with running(config) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        await use(core, "one", "two", "three")
        with pytest.raises(ContextLengthExceeded, match="the memory for KV caches can hold"):
            await complete(core, long_request("three"))
        assert log.of(ModelEvicted) == []


async def test_who_waits_for_memory_beside_others_gets_that_of_an_idle_model(models: dict[str, Path]) -> None:
    """Two streams that fit one by one: the second does not wait for the first to end."""
    async with running(config_of(models, 4)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        await use(core, "one", "two", "three")
        async with (
            core.generate(half_as_long(7, "three")) as first,
            core.generate(half_as_long(9, "three")) as second,
        ):
            await anext(first)
            await anext(second)
            assert [(event.model_id, event.wanted_by) for event in log.of(ModelEvicted)] == [("one", "three")]


def long_request(model: str) -> GenerationRequest:
    return replace(request(model=model, max_tokens=2), prompt=TokenPrompt((7,) * LONG))


def half_as_long(number: int, model: str) -> GenerationRequest:
    """It takes its memory at once, and time to use it."""
    return replace(request(str(number), model=model, max_tokens=300), prompt=TokenPrompt((number,) * (LONG // 2)))


async def _is(core: EngineCore, name: str, state: str) -> bool:
    return states(core)[name] == state


async def test_a_model_that_nobody_uses_goes_after_a_while(models: dict[str, Path]) -> None:
    config = config_of(models, 9, {"keep_alive_s": 0}, two={"keep_alive_s": 3600}, three={"pin": True})
    async with running(config) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        async with core.generate(request("long", model="one", max_tokens=100)) as deltas:
            await anext(deltas)
            assert states(core)["one"] == "ready"
            await collect(deltas)
        await log.wait_for(ModelUnloaded)
        await use(core, "two", "three")
        await until(lambda: _is(core, "one", "absent"))
        assert states(core) == {"one": "absent", "two": "ready", "three": "ready"}
        assert [(event.model_id, event.reason) for event in log.of(ModelEvicted)] == [("one", "idle")]


async def test_random_switching_between_more_models_than_fit_fails_nobody(models: dict[str, Path]) -> None:
    chance = random.Random(3)
    async with running(config_of(models, 2.9)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)

        async def client(number: int) -> None:
            for turn in range(6):
                name = chance.choice(NAMES)
                answer = await complete(core, request(f"{number} {turn}", model=name, max_tokens=chance.randint(1, 40)))
                assert answer[-1].finish_reason == "length"

        await asyncio.gather(*(client(number) for number in range(5)))
        assert log.of(ModelEvicted)


async def test_loads_and_residents_show_in_what_is_served(models: dict[str, Path]) -> None:
    async with running(config_of(models, 9, one={"pin": True}, two={"keep_alive_s": 60})) as core:
        log = EventLog(core.events)
        async with core.generate(request(model="one")) as deltas:
            served = {model.name: model for model in core.served_models()}
            assert (served["one"].in_use, served["one"].pinned) == (1, True)
            assert (served["one"].memory_bytes or 0) > 0
            assert (served["two"].memory_bytes, served["two"].keep_alive_s) == (None, 60)
            await collect(deltas)
        stages: list[str] = []
        core.events.subscribe(lambda event: stages.extend(_stages(core)))
        await use(core, "two")
        assert "loading" in stages
        assert log.of(ModelLoaded)


def _stages(core: EngineCore) -> list[str]:
    return [model.progress.stage for model in core.served_models() if model.progress is not None]
