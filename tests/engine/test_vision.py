"""Images through a real worker: as in the test's own process, counted, refused where they have no place, and not lost
with the worker."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.core.generation import ChatPrompt, Delta, GenerationRequest, SamplingParams
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import InvalidRequest

from .. import tiny_models, tiny_vision_models
from ..worker.vision.vision_bench import VisionBench, chat, picture
from .harness import MODEL, complete, running, send, serving, worker_pid

TOKENS = 200
ENDS = range(256, 263)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_models.make("qwen2_vl", tmp_path_factory.mktemp("vision"))


def asking(request_id: str, prompt: ChatPrompt, tokens: int = 8, **sampling: Any) -> GenerationRequest:
    params = SamplingParams(max_tokens=tokens, temperature=0.0, logit_bias=dict.fromkeys(ENDS, -100.0))
    return GenerationRequest(request_id, MODEL, prompt, replace(params, **sampling))


def ids_of(deltas: Sequence[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def test_answers_are_those_of_the_model_in_this_process(directory: Path) -> None:
    bench = VisionBench(directory)
    prompts = [chat([picture(1), "What is it?"]), chat(["Compare ", picture(1), picture(2)]), chat(["Hello"])]
    asked = [asking(f"r{number}", prompt) for number, prompt in enumerate(prompts)]
    expected = [bench.answer(prompt, one.sampling) for prompt, one in zip(prompts, asked, strict=True)]
    async with running(serving(directory)) as core:
        answers = await asyncio.gather(*(complete(core, one) for one in asked))
        assert [ids_of(deltas) for deltas in answers] == expected
        stats = answers[0][-1].stats
        assert stats is not None
        assert stats.prompt_tokens == len(bench.model.tokenizer.prepare(prompts[0]).token_ids)
        [loaded] = (await core.runtime_state()).loaded_models
        assert loaded.type == "vision"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
async def test_a_stream_about_an_image_survives_a_kill(directory: Path, temperature: float) -> None:
    prompt = chat([picture(1), "and ", picture(2, 90, 50), "?"])
    one = asking("r", prompt, TOKENS, temperature=temperature, seed=7)
    async with running(serving(directory)) as core:
        undisturbed = await complete(core, replace(one, request_id="before"))
        disturbed: list[Delta] = []
        killed = False
        async with asyncio.timeout(120), core.generate(one) as deltas:
            async for delta in deltas:
                disturbed.append(delta)
                if len(ids_of(disturbed)) >= TOKENS // 3 and not killed:
                    killed = True
                    send(await worker_pid(core), signal.SIGKILL)
        assert killed
        assert ids_of(disturbed) == ids_of(undisturbed)
        assert "".join(one.text for one in disturbed) == "".join(one.text for one in undisturbed)


async def test_images_without_a_place_or_an_eye_are_refused(directory: Path, tmp_path: Path) -> None:
    prompt = chat([picture(1), "What is it?"])
    async with running(serving(directory)) as core:
        with pytest.raises(InvalidRequest, match="have places for 1 images, and 2 are given"):
            await complete(core, asking("more", replace(prompt, images=(picture(1), picture(2)))))
        with pytest.raises(InvalidRequest, match="have places for 1 images, and 0 are given"):
            await complete(core, asking("fewer", replace(prompt, images=())))
    async with running(serving(tiny_models.make_llama(tmp_path / "text"))) as core:
        with pytest.raises(InvalidRequest, match="it reads text only") as refused:
            await complete(core, asking("blind", prompt, logit_bias={}))
        assert refused.value.details["field"] == "images"


async def test_images_are_counted_before_they_are_computed(directory: Path) -> None:
    async with running(serving(directory)) as core:
        await complete(core, asking("first", chat(["h"]), 1))
        await check_counts(core)


async def check_counts(core: EngineCore) -> None:
    shown, bare = (chat([*parts, "What is it?"]) for parts in ([picture(1)], []))
    deltas = await complete(core, asking("shown", shown, 1))
    stats = deltas[-1].stats
    assert stats is not None
    counts = [len((await core.tokenize_chat(MODEL, prompt)).tokens) for prompt in (shown, bare)]
    assert counts[0] == stats.prompt_tokens > counts[1]
