"""Sharing and the response cache over a real worker, as the configuration puts them together."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path

from mlx_serving.assembly import assemble
from mlx_serving.config.changes import plan
from mlx_serving.config.schema import Config
from mlx_serving.core.generation import Delta, GenerationRequest, SamplingParams, Served, TextPrompt
from mlx_serving.engine.engine_core import EngineCore

from ..event_log import LIMIT_S
from .harness import MODEL, collect, running, serving

GREEDY = GenerationRequest("r", MODEL, TextPrompt("Hello"), SamplingParams(max_tokens=8, temperature=0))
SEEDED = replace(GREEDY, sampling=SamplingParams(max_tokens=8, seed=3, temperature=1.0))


async def _ask(core: EngineCore, asked: GenerationRequest, name: str = "r") -> tuple[str, list[Delta], str | None]:
    asked = replace(asked, request_id=name, served=Served())
    async with core.generate(asked) as deltas:
        got = await collect(deltas)
    assert asked.served is not None
    return "".join(delta.text for delta in got), got, asked.served.cache


async def test_without_configuration_nothing_is_shared_or_kept(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        first = await _ask(core, GREEDY)
        assert first[0] == (await _ask(core, GREEDY))[0]
        assert first[2] is None
        assert core.reuse().shared is core.reuse().response_cache is None
        assert await core.clear_responses() == 0


async def test_equal_requests_share_a_computation_and_others_do_not(tiny_model: Path) -> None:
    async with running(serving(tiny_model, sharing={"enabled": True})) as core:
        alone = await _ask(core, GREEDY)
        asked = [GREEDY, GREEDY, SEEDED, SEEDED, GREEDY]
        together = await asyncio.gather(*(_ask(core, each, f"r{number}") for number, each in enumerate(asked)))
        assert [text for text, _, _ in together[:2]] == [alone[0]] * 2
        assert together[2][0] == together[3][0] == (await _ask(core, SEEDED))[0]
        assert [outcome for _, _, outcome in together] == ["miss", "shared", "miss", "shared", "shared"]
        assert core.reuse().shared == 3


async def test_answers_are_given_again_until_the_model_is_another_one(tiny_model: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_model, tmp_path / "model")
    config = serving(directory, response_cache={"enabled": True, "path": str(tmp_path / "cache" / "answers.db")})
    async with running(config) as core:
        async with core.models.lease(MODEL):
            pass
        computed = await _ask(core, GREEDY)
        again = await _ask(core, GREEDY)
        assert (again[0], computed[2], again[2]) == (computed[0], "miss", "hit")
        assert [delta.text for delta in again[1]] == [delta.text for delta in computed[1]]
    async with running(config) as core:
        assert (await _ask(core, GREEDY))[2] == "miss"  # nobody knows yet what the name means
        assert (await _ask(core, GREEDY))[2] == "hit"
        await core.unload_served(MODEL, force=False)
        _touch(directory)
        async with core.models.lease(MODEL):
            pass
        assert (await _ask(core, GREEDY))[2] == "miss"
        reuse = core.reuse().response_cache
        assert reuse is not None
        assert reuse.entries == 2
        assert await core.clear_responses() == 2


async def test_a_change_of_the_configuration_keeps_what_it_does_not_concern(tiny_model: Path) -> None:
    both = {"sharing": {"enabled": True}, "response_cache": {"enabled": True}}
    config = serving(tiny_model, **both)
    stack = assemble(config)
    core = stack.core

    async def change(wanted: Config) -> None:
        nonlocal config
        step = plan(config, wanted)
        stack.adopt(step)
        assert await stack.carry_out(step) == {}
        config = step.config

    try:
        async with core.models.lease(MODEL):
            pass
        await _ask(core, GREEDY)
        await change(serving(tiny_model, **both, generation={"timeout_s": 10}))
        assert (await _ask(core, GREEDY))[2] == "hit"
        # What the model and the request leave open is another thing now.
        await change(serving(tiny_model, **both, generation={"repetition_penalty": 1.5}))
        async with core.models.lease(MODEL):
            pass
        assert (await _ask(core, GREEDY))[2] == "miss"
        await change(serving(tiny_model, response_cache={"enabled": True, "ttl_s": 5}))
        assert core.reuse().shared is None
        assert (await _ask(core, GREEDY))[2] == "miss"
        await change(serving(tiny_model))
        assert (await _ask(core, GREEDY))[2] is None
    finally:
        async with asyncio.timeout(LIMIT_S):
            await core.stop()


def _touch(directory: Path) -> None:
    """As if somebody had put other weights there."""
    for weights in directory.glob("*.safetensors"):
        os.utime(weights, ns=(1, 1))
