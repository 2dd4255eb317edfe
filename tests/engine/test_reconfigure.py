"""Another configuration under a running engine: `assembly.Stack`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.assembly import Stack, assemble
from mlx_serving.config.changes import plan
from mlx_serving.config.schema import Config
from mlx_serving.core.generation import ChatPrompt, Delta
from mlx_serving.core.images.image import ImageSource
from mlx_serving.errors import InvalidConfig, InvalidImageInput, InvalidRequest, ModelNotFound

from ..event_log import LIMIT_S, until
from ..tiny_models import make_llama
from .harness import complete, request

LENGTH = 300


def config(*models: tuple[str, Path], **sections: Any) -> Config:
    served = [{"name": name, "model": str(model)} for name, model in models]
    worker = {"backoff": {"initial_delay_s": 0.01}, **sections.pop("worker", {})}
    return Config.model_validate({"models": {"served": served}, "worker": worker, **sections})


@asynccontextmanager
async def started(first: Config) -> AsyncGenerator[Stack]:
    stack = assemble(first)
    try:
        async with asyncio.timeout(LIMIT_S):
            await stack.core.start()
            yield stack
    finally:
        await stack.core.stop()


async def change(stack: Stack, old: Config, new: Config) -> set[str]:
    """The names of models that could not be replaced."""
    wanted = plan(old, new)
    stack.adopt(wanted)
    return set(await stack.carry_out(wanted))


def count(deltas: list[Delta]) -> int:
    return sum(len(delta.token_ids) for delta in deltas)


@pytest.mark.parametrize("workers", [1, 2])
async def test_streams_go_on_in_fresh_workers_with_other_models(tiny_model: Path, tmp_path: Path, workers: int) -> None:
    other = make_llama(tmp_path / "other", seed=7, context_length=4096)
    old = config(("tiny", tiny_model), workers=workers)
    new = config(("tiny", other), ("more", tiny_model), workers=workers, scheduler={"max_num_seqs": 5})
    async with started(old) as stack:
        streams = [asyncio.create_task(complete(stack.core, request(f"r{n}", max_tokens=LENGTH))) for n in range(8)]
        await complete(stack.core, request("first"))
        assert await change(stack, old, new) == set()
        assert [count(await stream) for stream in streams] == [LENGTH] * 8
        health = await stack.core.health()
        assert [worker.restarts for worker in health.workers] == [1] * workers
        assert [(model.name, model.reference) for model in stack.core.served_models()] == [
            ("tiny", str(other)),
            ("more", str(tiny_model)),
        ]
        assert count(await complete(stack.core, request("more", model="more"))) == 8


async def test_a_model_that_is_not_served_any_more_stays_for_its_streams(tiny_model: Path) -> None:
    old = config(("tiny", tiny_model), ("more", tiny_model))
    new = config(("more", tiny_model))
    async with started(old) as stack:
        core = stack.core
        async with core.generate(request(max_tokens=LENGTH)) as deltas:
            first = await anext(deltas)
            await change(stack, old, new)
            assert [model.name for model in core.served_models()] == ["more"]
            for worker in core.workers:
                worker.supervisor.restart()  # it is found again in the next worker, too
            assert count([first, *[delta async for delta in deltas]]) == LENGTH

        async def is_gone() -> bool:
            return all("tiny" not in worker.models.names() for worker in core.workers)

        await until(is_gone)
        with pytest.raises(ModelNotFound):
            await complete(core, request())
        assert len((await core.runtime_state()).loaded_models) <= 1


async def test_a_model_that_is_wanted_again_before_it_is_gone_stays(tiny_model: Path) -> None:
    old = config(("tiny", tiny_model), ("more", tiny_model))
    new = config(("more", tiny_model))
    async with started(old) as stack:
        async with stack.core.generate(request(max_tokens=LENGTH)) as deltas:
            await anext(deltas)
            await change(stack, old, new)
            await change(stack, new, old)
            assert [model.name for model in stack.core.served_models()] == ["tiny", "more"]
            assert [delta async for delta in deltas][-1].finish_reason == "length"
        assert count(await complete(stack.core, request())) == 8


async def test_limits_and_the_default_change_without_a_fresh_worker(tiny_model: Path) -> None:
    old = config(("tiny", tiny_model), ("more", tiny_model))
    new = config(("more", tiny_model), ("tiny", tiny_model), generation={"max_tokens_limit": 700})
    async with started(old) as stack:
        await change(stack, old, new)
        assert stack.core.default_model == "more"
        with pytest.raises(InvalidRequest, match="700"):
            await complete(stack.core, request(max_tokens=701))
        assert (await stack.core.health()).workers[0].restarts == 0


async def test_a_version_that_cannot_be_loaded_is_told(tiny_model: Path, tmp_path: Path) -> None:
    old, new = config(("tiny", tiny_model)), config(("tiny", tmp_path / "missing"))
    async with started(old) as stack:
        assert await change(stack, old, new) == {"tiny"}
        assert count(await complete(stack.core, request())) == 8


async def test_a_library_that_is_not_there_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    old = config(("tiny", tiny_model))
    new = config(
        ("tiny", tiny_model), worker={"blas": str(tmp_path / "missing.so")}, generation={"max_tokens_limit": 2}
    )
    async with started(old) as stack:
        with pytest.raises(InvalidConfig, match=r"missing\.so"):
            stack.adopt(plan(old, new))
        assert count(await complete(stack.core, request())) == 8


async def test_other_limits_of_pictures_hold_at_once(tiny_model: Path) -> None:
    """No worker is asked for what the parent refuses: there is none."""
    old = config(("tiny", tiny_model), images={"max_images": 1})
    new = config(("tiny", tiny_model), images={"max_images": 2, "max_bytes": 1024})
    stack = assemble(old)
    sources = (ImageSource(bytes(2000), field="one"), ImageSource(bytes(2000), field="two"))
    prompt = ChatPrompt(({"role": "user", "content": [{"type": "image"}, {"type": "image"}]},), sources=sources)
    with pytest.raises(InvalidImageInput, match="at most 1 pictures"):
        await stack.core.tokenize_chat("tiny", prompt)
    stack.adopt(plan(old, new))
    with pytest.raises(InvalidImageInput, match="at most 1024 bytes"):
        await stack.core.tokenize_chat("tiny", prompt)
    await stack.core.stop()
