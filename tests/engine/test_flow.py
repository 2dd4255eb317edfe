"""A consumer that falls behind is paused in the worker: it holds no slot there, nothing grows here, nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from mlx_serving.core.generation import Delta
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import DeadlineExceeded

from ..event_log import until
from .harness import collect, complete, endless, request, running, serving

PAUSE_AT, RESUME_AT = 40, 10
LONG = 1500
"""Tokens of a stream that is paused long before its last one, however late the pause is heard of."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow(tiny_model: Path) -> AsyncGenerator[EngineCore]:
    """One slot, so that whoever holds it is alone."""
    marks = {"max_num_seqs": 1, "pause_at_tokens": PAUSE_AT, "resume_at_tokens": RESUME_AT}
    async with running(serving(tiny_model, scheduler=marks)) as core:
        yield core


async def paused(core: EngineCore, count: int) -> None:
    async def are() -> bool:
        return (await core.runtime_state()).paused_streams == count

    await until(are)


async def left(core: EngineCore) -> None:
    async def none() -> bool:
        return (await core.runtime_state()).active_streams == 0

    await until(none)


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def test_a_consumer_that_stops_is_paused_and_gets_all_when_it_goes_on(narrow: EngineCore) -> None:
    expected = await complete(narrow, request("undisturbed", max_tokens=LONG))
    async with narrow.generate(request("slow", max_tokens=LONG)) as deltas:
        seen = [await anext(deltas)]
        await paused(narrow, 1)
        quick = await complete(narrow, request("quick", max_tokens=300))
        assert tokens_of(quick) == tokens_of(expected)[:300]
        assert (await narrow.runtime_state()).active_streams == 1
        seen += await collect(deltas)
    assert tokens_of(seen) == tokens_of(expected)
    assert "".join(delta.text for delta in seen) == "".join(delta.text for delta in expected)


async def test_a_consumer_that_takes_a_little_now_and_then_is_paused_again_and_again(narrow: EngineCore) -> None:
    expected = tokens_of(await complete(narrow, request("undisturbed", max_tokens=LONG)))
    seen: list[Delta] = []
    async with narrow.generate(request("slow", max_tokens=LONG)) as deltas:
        for _ in range(3):
            await paused(narrow, 1)
            seen += [await anext(deltas) for _ in range(PAUSE_AT)]
        seen += await collect(deltas)
    assert tokens_of(seen) == expected


async def test_those_who_leave_while_they_are_paused_are_forgotten(narrow: EngineCore) -> None:
    async with narrow.generate(endless("a")) as a, narrow.generate(endless("b")) as b:
        for deltas in (a, b):
            await anext(deltas)
        await paused(narrow, 2)
    await left(narrow)
    await paused(narrow, 0)


async def test_the_deadline_of_a_consumer_that_has_stopped_holds(narrow: EngineCore) -> None:
    async with narrow.generate(endless(timeout_s=1.0)) as deltas:
        await anext(deltas)
        await left(narrow)
        with pytest.raises(DeadlineExceeded):
            await collect(deltas)
