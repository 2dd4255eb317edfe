"""Streams of the real worker through the whole stack: delivery, leaving, and what ends them."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from mlx_serving.core.generation import Delta, FinishReason, TokenPrompt
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import Aborted, EngineClosed, InvalidRequest
from mlx_serving.telemetry.events import GenerationCompleted, GenerationStarted

from ..event_log import EventLog, until
from .harness import collect, complete, endless, request, running, send, serving, worker_pid


async def idle(core: EngineCore) -> None:
    """Until no stream is left, here or in the worker."""

    async def no_streams() -> bool:
        state = await core.runtime_state()
        return state.active_streams == 0 and (await core.health()).active_streams == 0

    await until(no_streams)


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_a_stream_ends_with_its_reason_and_stats(core: EngineCore) -> None:
    log = EventLog(core.events)
    deltas = await complete(core, request("whole", max_tokens=12))
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert sum(len(delta.token_ids) for delta in deltas) == 12
    last = deltas[-1]
    assert last.finish_reason is FinishReason.LENGTH
    assert last.stats is not None
    assert (last.stats.prompt_tokens, last.stats.tokens_generated) == (5, 12)
    assert [event.stream_id for event in log.of(GenerationStarted)] == ["whole"]
    assert [event.stats for event in log.of(GenerationCompleted)] == [last.stats]


async def test_streams_that_run_together_do_not_mix(core: EngineCore) -> None:
    alone = [text_of(await complete(core, request(max_tokens=20)))] * 4
    together = await asyncio.gather(*(complete(core, request(f"r{n}", max_tokens=20)) for n in range(4)))
    assert [text_of(deltas) for deltas in together] == alone


async def test_leaving_the_block_early_aborts_the_stream_in_the_worker(core: EngineCore) -> None:
    async with core.generate(endless()) as deltas:
        await anext(deltas)
        assert (await core.runtime_state()).active_streams == 1
    await idle(core)


async def test_an_exception_in_the_block_aborts_the_stream(core: EngineCore) -> None:
    async def fail() -> None:
        async with core.generate(endless()) as deltas:
            await anext(deltas)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await idle(core)


async def test_cancelling_in_mid_stream_aborts_the_stream(core: EngineCore) -> None:
    streaming = asyncio.Event()

    async def consume() -> None:
        async with core.generate(endless()) as deltas:
            async for _ in deltas:
                streaming.set()

    task = asyncio.create_task(consume())
    await asyncio.wait_for(streaming.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(core)


@pytest.mark.parametrize("steps", [*range(12), 20, 40])
async def test_cancelling_at_any_await_while_entering_leaves_nothing_behind(core: EngineCore, steps: int) -> None:
    async def consume() -> None:
        async with core.generate(endless()) as deltas:
            await collect(deltas)

    task = asyncio.create_task(consume())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(core)
    assert len(await complete(core, request(max_tokens=2))) > 0


async def test_an_id_that_is_active_is_refused_and_its_stream_goes_on(core: EngineCore) -> None:
    async with core.generate(request("same", max_tokens=200)) as deltas:
        await anext(deltas)
        with pytest.raises(InvalidRequest, match="same is active") as caught:
            await complete(core, request("same"))
        assert caught.value.field == "stream_id"
        assert (await collect(deltas))[-1].finish_reason is FinishReason.LENGTH


async def test_an_id_can_be_used_again_at_once_after_its_stream_was_left(core: EngineCore) -> None:
    expected = text_of(await complete(core, request(max_tokens=30)))
    for _ in range(5):
        async with core.generate(endless("again")) as deltas:
            await anext(deltas)
        assert text_of(await complete(core, request("again", max_tokens=30))) == expected


async def test_an_id_may_be_as_long_as_the_pipe_allows(core: EngineCore) -> None:
    results = await asyncio.gather(*(complete(core, request("x" * 255 + end)) for end in "ab"))
    assert [deltas[-1].finish_reason for deltas in results] == [FinishReason.LENGTH] * 2


async def test_what_the_worker_refuses_is_raised_at_entry(core: EngineCore) -> None:
    with pytest.raises(InvalidRequest, match="4096 tokens") as caught:
        async with core.generate(request(max_tokens=5000)):
            pytest.fail("the block must not begin")
    assert caught.value.details["limit"] == 4096
    asked = request()
    with pytest.raises(InvalidRequest, match="vocabulary"):
        await complete(core, type(asked)("r", asked.model, TokenPrompt((1, 99_999)), asked.sampling))


async def test_unloading_by_force_aborts_the_streams_of_the_model(core: EngineCore) -> None:
    async with core.generate(endless()) as deltas:
        await anext(deltas)
        await core.unload_served("tiny", force=True)
        with pytest.raises(Aborted, match="tiny was unloaded"):
            await collect(deltas)
    assert len(await complete(core, request(max_tokens=2))) > 0


async def test_a_request_that_comes_with_the_kill_succeeds(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core:
        expected = text_of(await complete(core, request()))
        send(await worker_pid(core), signal.SIGKILL)
        answers = await asyncio.gather(*(complete(core, request(f"r{n}")) for n in range(3)))
        assert [text_of(deltas) for deltas in answers] == [expected] * 3


async def test_stopping_the_engine_ends_its_streams(tiny_model: Path) -> None:
    async with running(serving(tiny_model)) as core, core.generate(endless()) as deltas:
        await anext(deltas)
        stopping = asyncio.create_task(core.stop())
        with pytest.raises(EngineClosed):
            await collect(deltas)
        await stopping
