from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mlx_serving.core.generation import Delta, FinishReason, GenerationRequest, TextPrompt
from mlx_serving.errors import GenerationError, Overloaded, ProtocolError
from mlx_serving.server.http.merged_streams import NumberedDelta, merged_streams

from ..scripted_engine import Script, ScriptedEngine


def _requests(count: int) -> list[GenerationRequest]:
    forks = [GenerationRequest(str(number), "m", TextPrompt("a"), fork_of="0") for number in range(1, count)]
    return [GenerationRequest("0", "m", TextPrompt("a")), *forks]


async def _collect(deltas: AsyncIterator[NumberedDelta]) -> dict[int, list[Delta]]:
    collected: dict[int, list[Delta]] = {}
    async for number, delta in deltas:
        collected.setdefault(number, []).append(delta)
    return collected


def _text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_each_stream_comes_whole_and_in_order_with_the_number_of_its_request() -> None:
    engine = ScriptedEngine()
    engine.scripts = [Script(("a", "b"), "c"), Script(("d",), finish=FinishReason.LENGTH), Script(("e", "f", "g"))]
    async with merged_streams(engine, _requests(3)) as deltas:
        streams = await _collect(deltas)
    assert [_text(streams[number]) for number in range(3)] == ["abc", "d", "efg"]
    assert [streams[number][-1].finish_reason for number in range(3)] == ["stop", "length", "stop"]
    assert all(delta.finish_reason is None for stream in streams.values() for delta in stream[:-1])
    assert not any(run.aborted for run in engine.runs)


async def test_streams_do_not_wait_for_each_other() -> None:
    engine = ScriptedEngine()
    engine.scripts = [Script(("a",), hang=True), Script(("b", "c"))]
    async with merged_streams(engine, _requests(2)) as deltas:
        seen = [(number, delta.text) for number, delta in [await anext(deltas) for _ in range(4)]]
    assert sorted(seen) == [(0, "a"), (1, ""), (1, "b"), (1, "c")]


async def test_a_request_alone_is_read_by_the_task_that_asks() -> None:
    tasks: set[asyncio.Task[None] | None] = set()

    class Engine(ScriptedEngine):
        @asynccontextmanager
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
            tasks.add(asyncio.current_task())
            async with super().generate(request) as deltas:
                yield deltas

    async with merged_streams(Engine(), _requests(1)) as deltas:
        streams = await _collect(deltas)
    assert tasks == {asyncio.current_task()}
    assert _text(streams[0]) == "Hello world"


async def test_forks_come_behind_the_one_they_fork_and_do_not_wait_for_it() -> None:
    engine = ScriptedEngine()
    engine.script = Script(hang_at_entry=True)

    async def read() -> None:
        async with merged_streams(engine, _requests(3)):
            pytest.fail("the block must not begin")

    reading = asyncio.create_task(read())
    assert [(await engine.next_run()).request.request_id for _ in range(3)] == ["0", "1", "2"]
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("refused", [0, 1, 2])
async def test_when_one_is_refused_the_others_are_aborted_and_nothing_is_delivered(refused: int) -> None:
    engine = ScriptedEngine()
    refusal = Overloaded("full", retry_after=1)
    engine.scripts = [Script(refusal=refusal) if number == refused else Script() for number in range(3)]
    with pytest.raises(Overloaded) as raised:
        async with merged_streams(engine, _requests(3)):
            pytest.fail("the block must not begin")
    assert raised.value is refusal
    assert all(run.aborted for run in engine.runs)
    assert not any(run.delivered.is_set() for run in engine.runs)


async def test_the_first_failure_comes_after_what_was_delivered_before_it_and_ends_all() -> None:
    engine = ScriptedEngine()
    failure = GenerationError("bad")
    engine.scripts = [Script(("a",), hang=True), Script(("b",), failure=failure), Script(("c",), hang=True)]
    seen: list[str] = []

    async def read() -> None:
        async with merged_streams(engine, _requests(3)) as deltas:
            async for _, delta in deltas:
                seen.append(delta.text)

    with pytest.raises(GenerationError) as raised:
        await read()
    assert raised.value is failure
    assert "b" in seen
    assert all(run.aborted for run in engine.runs)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_stream_that_ends_without_saying_why_is_an_error(count: int) -> None:
    engine = ScriptedEngine()
    engine.script = Script(end_silently=True)
    async with merged_streams(engine, _requests(count)) as deltas:
        with pytest.raises(ProtocolError, match="without saying why"):
            await _collect(deltas)


@pytest.mark.parametrize("count", [1, 3])
async def test_leaving_aborts_all_that_is_not_finished(count: int) -> None:
    engine = ScriptedEngine()
    engine.script = Script(hang=True)
    async with merged_streams(engine, _requests(count)) as deltas:
        await anext(deltas)
        assert not any(run.left.is_set() for run in engine.runs)
    assert [run.aborted for run in engine.runs] == [True] * count


@pytest.mark.parametrize("steps", range(12))
async def test_cancelling_at_any_await_leaves_nothing_open(steps: int) -> None:
    engine = ScriptedEngine()
    engine.script = Script(hang=True)

    async def read() -> None:
        async with merged_streams(engine, _requests(3)) as deltas:
            await _collect(deltas)

    reading = asyncio.create_task(read())
    for _ in range(steps):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert all(run.left.is_set() for run in engine.runs)


async def test_whoever_falls_behind_holds_all_streams_up() -> None:
    produced = 0

    class Engine(ScriptedEngine):
        async def _deltas(self, script: Script, run: object) -> AsyncIterator[Delta]:
            nonlocal produced
            while True:
                produced += 1
                yield Delta("x", (1,))

    async with merged_streams(Engine(), _requests(3)) as deltas:
        await anext(deltas)
        for _ in range(100):
            await asyncio.sleep(0)
        assert produced <= 3 + 3 + 1  # in the queue, in the hands of each, delivered


async def test_a_stream_is_left_before_its_end_is_told() -> None:
    class Engine(ScriptedEngine):
        @asynccontextmanager
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
            async with super().generate(request) as deltas:
                yield deltas
            await asyncio.sleep(0)  # a layer may have something to do
            left.append(request.request_id)

    left: list[str] = []
    async with merged_streams(Engine(), _requests(2)) as deltas:
        async for number, delta in deltas:
            assert delta.finish_reason is None or str(number) in left
    assert sorted(left) == ["0", "1"]
