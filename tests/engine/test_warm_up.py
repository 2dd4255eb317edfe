"""A model generates a few tokens before its first user gets it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from mlx_serving.config.schema import Config
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.telemetry.events import ErrorOccurred, GenerationStarted, ModelLoaded

from ..event_log import LIMIT_S, EventLog
from ..tiny_models import make_llama
from .harness import MODEL, complete, request, running, send, worker_pid


def config_of(model: Path, **fields: Any) -> Config:
    served = {"model": str(model), "name": MODEL, "preload": False, **fields}
    return Config.model_validate({"models": {"served": [served]}, "worker": {"backoff": {"initial_delay_s": 0.01}}})


async def generated(core: EngineCore) -> int:
    runtime = (await core.telemetry()).runtime
    assert runtime is not None
    return runtime.generation.total_tokens


async def test_a_model_is_warm_when_its_first_user_gets_it(tiny_model: Path) -> None:
    async with running(config_of(tiny_model)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        async with core.lease(MODEL):
            assert await generated(core) == 3
        assert log.of(GenerationStarted) == []  # nobody asked for it
        await complete(core, request(max_tokens=2))
        assert await generated(core) == 5


async def test_a_model_can_be_left_cold(tiny_model: Path) -> None:
    async with running(config_of(tiny_model, warm_up=False)) as core, core.lease(MODEL):
        assert await generated(core) == 0


async def test_a_model_without_a_template_is_warmed_with_text(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "bare", chat_template=None)
    async with running(config_of(model)) as core, core.lease(MODEL):
        assert await generated(core) == 3


async def test_a_model_that_cannot_be_warmed_serves_who_it_can(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "strict", chat_template="{{ raise_exception('never') }}")
    async with running(config_of(model)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        assert (await complete(core, request()))[-1].finish_reason == "length"
        assert [event.context for event in log.of(ErrorOccurred)] == [f"warming up {MODEL}"]
        assert len(log.of(ModelLoaded)) == 1


async def test_a_worker_that_dies_while_it_warms_up_is_followed_by_one_that_does(tiny_model: Path) -> None:
    async with running(config_of(tiny_model)) as core, asyncio.timeout(LIMIT_S):
        log = EventLog(core.events)
        await core.start()
        pid = await worker_pid(core)
        seen: list[str] = []

        def look(_: object) -> None:
            [model] = core.served_models()
            if model.progress is not None and not seen:
                seen.append(model.progress.stage)
                send(pid, signal.SIGKILL)

        core.events.subscribe(look)
        assert (await complete(core, request()))[-1].finish_reason == "length"
        assert seen
        assert len(log.of(ModelLoaded)) == 1
