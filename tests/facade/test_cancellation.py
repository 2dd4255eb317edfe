"""A signal ends a stream, wherever it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mlx_serving import Engine, ErrorChunk, GeneratorChunk
from mlx_serving.core.generation import Delta
from mlx_serving.errors import Aborted
from mlx_serving.facade.cancellation import until_set

from ..engine.scripted import WHOLE, Script, ScriptedBackend, request
from .embedding import endless, params


async def test_a_signal_in_mid_stream_cancels_it_in_the_worker(engine: Engine) -> None:
    signal = asyncio.Event()
    seen: list[GeneratorChunk] = []
    async for chunk in engine.create_generator(endless(), {"signal": signal}):
        seen.append(chunk)
        signal.set()
    last = seen[-1]
    assert isinstance(last, ErrorChunk)
    assert isinstance(last.error, Aborted)
    assert (await engine.core.runtime_state()).active_streams == 0


async def test_a_signal_that_is_set_already_cancels_before_anything_is_asked(engine: Engine) -> None:
    signal = asyncio.Event()
    signal.set()
    with pytest.raises(Aborted):
        await engine.generate(params(), {"signal": signal})


async def test_a_signal_that_is_never_set_changes_nothing(engine: Engine) -> None:
    assert await engine.generate(params(), {"signal": asyncio.Event()}) == await engine.generate(params())


async def test_a_signal_cancels_while_the_request_waits_to_be_accepted() -> None:
    signal = asyncio.Event()
    inner = ScriptedBackend([Script(entry_gate=asyncio.Event())])

    async def consume() -> None:
        async with until_set(signal, inner.generate(request())):
            pytest.fail("the block must not begin")

    task = asyncio.create_task(consume())
    await inner.asked(1)
    signal.set()
    with pytest.raises(Aborted):
        await task
    assert inner.open == 0


async def test_a_signal_cancels_while_the_next_delta_is_awaited() -> None:
    signal = asyncio.Event()
    inner = ScriptedBackend([Script(delta_gate=asyncio.Event())])
    async with until_set(signal, inner.generate(request())) as deltas:
        assert [await anext(deltas) for _ in WHOLE] == list(WHOLE)
        asyncio.get_running_loop().call_soon(signal.set)
        with pytest.raises(Aborted):
            await anext(deltas)
    assert inner.open == 0


async def test_cancelling_the_task_leaves_nothing_pending() -> None:
    inner = ScriptedBackend([Script(deltas=(), delta_gate=asyncio.Event())])
    waiting = asyncio.Event()

    async def consume(deltas: AsyncIterator[Delta]) -> None:
        waiting.set()
        await anext(deltas)

    async def run() -> None:
        async with until_set(asyncio.Event(), inner.generate(request())) as deltas:
            await consume(deltas)

    task = asyncio.create_task(run())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert inner.open == 0
    assert {other.get_name() for other in asyncio.all_tasks()}.isdisjoint({"signal"})
