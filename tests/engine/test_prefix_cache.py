"""Prompts that begin like earlier ones, in real workers: the same text, and the truth about what it cost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_serving.core.generation import ChatPrompt, Delta, GenerationRequest, GenerationStats, TextPrompt
from mlx_serving.engine.engine_core import EngineCore

from .. import tiny_models
from ..event_log import until
from .harness import complete, request, running, send, serving, worker_pid

OFF: dict[str, Any] = {"prefix_cache": {"enabled": False}}
SYSTEM = {"role": "system", "content": "You are a helpful assistant, and you answer briefly."}
MAKERS = [tiny_models.make_llama, tiny_models.make_gemma3, tiny_models.make_lfm2]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: Callable[[Path], Path] = request.param
    return make(tmp_path / "model")


def asking(name: str, *said: str, temperature: float = 0.0, max_tokens: int = 20, **fields: Any) -> GenerationRequest:
    """A conversation: what the user and the assistant said in turns, behind the system prompt."""
    turns = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(said)]
    one = request(name, max_tokens=max_tokens, **fields)
    sampling = replace(one.sampling, temperature=temperature, seed=3)
    return replace(one, prompt=ChatPrompt((SYSTEM, *turns)), sampling=sampling)


def conversation() -> list[GenerationRequest]:
    said = ["Who are you?", "I am.", "What do you do?", "I do.", "And why?"]
    turns = [asking(f"t{count}", *said[:count]) for count in (1, 3, 5)]
    return [*turns, asking("sampled", *said, temperature=0.9), asking("other", "Something else")]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def stats_of(deltas: list[Delta]) -> GenerationStats:
    stats = deltas[-1].stats
    assert stats is not None
    return stats


async def test_the_text_is_that_of_a_worker_that_keeps_nothing(model: Path) -> None:
    async with running(serving(model, **OFF)) as core:
        plain = [await complete(core, one) for one in conversation()]
    assert {stats_of(each).cached_tokens for each in plain} == {0}
    async with running(serving(model)) as core:
        answers = [await complete(core, one) for one in conversation()]
    assert [text_of(each) for each in answers] == [text_of(each) for each in plain]
    system = len("^system\n") + len(SYSTEM["content"])  # markers are a token each
    cached = [stats_of(each).cached_tokens for each in answers]
    assert cached[0] == 0
    assert all(count >= system for count in cached[1:])
    assert cached[2] > cached[1] > cached[4]


async def test_a_stream_that_outlives_its_worker_tells_what_was_kept_when_it_began(model: Path) -> None:
    asked = [asking(f"r{number}", f"Tell me {number}", max_tokens=300) for number in range(3)]
    async with running(serving(model, **OFF)) as core:
        expected = [text_of(await complete(core, one)) for one in asked]
    async with running(serving(model)) as core:
        await complete(core, asking("first", "Tell me nothing"))
        answers = await asyncio.gather(_killed_under(core, asked[0]), *(complete(core, one) for one in asked[1:]))
        assert [text_of(each) for each in answers] == expected

        async def replaced() -> bool:
            return (await core.health()).worker.restarts == 1

        await until(replaced)
        begun = stats_of(answers[0])
        system = len("^system\n") + len(SYSTEM["content"])  # markers are a token each
        assert system <= begun.cached_tokens < begun.prompt_tokens


async def _killed_under(core: EngineCore, asked: GenerationRequest) -> list[Delta]:
    deltas: list[Delta] = []
    victim: int | None = None
    async with core.generate(asked) as stream:
        async for delta in stream:
            deltas.append(delta)
            if victim is None and sum(len(each.token_ids) for each in deltas) >= 20:
                victim = await worker_pid(core)
                send(victim, signal.SIGKILL)
    return deltas


async def test_tenants_find_only_their_own(tiny_model: Path) -> None:
    text = TextPrompt("A text that is long enough to be kept for another time.")
    async with running(serving(tiny_model, prefix_cache={"per_caller": True})) as core:
        found: list[int] = []
        for number, (salt, caller) in enumerate((("", "a"), ("", "b"), ("s", "a"), ("", "a"), ("s", "a"))):
            one = replace(request(str(number)), prompt=text, cache_salt=salt, caller=caller)
            found.append(stats_of(await complete(core, one)).cached_tokens)
    assert found == [0, 0, 0, len(text.text) - 1, len(text.text) - 1]


async def test_telemetry_tells_what_is_kept_and_why_not_more(tiny_model: Path) -> None:
    async with running(serving(tiny_model, prefix_cache={"memory_bytes": 40_000})) as core:
        for number in range(3):
            text = TextPrompt(f"{number} is where this begins, and not as others do.")
            await complete(core, replace(request(str(number)), prompt=text))
        [worker] = (await core.telemetry()).workers
        assert worker.runtime is not None
        told = worker.runtime.caches.prefixes
    assert told.limit_bytes == 40_000
    assert 0 < told.bytes <= 40_000
    assert told.evictions > 0
    assert told.missed_tokens >= 3 * len("0 is where this begins, and not as others do.")
    assert sum(told.miss_reasons.values()) >= 3
