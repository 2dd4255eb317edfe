"""Whoever leaves, or does not get all it needs, frees its slots. The server has one only, so whoever comes next would
wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from ..command_line import LIMIT_S
from .served_process import ServedProcess, serving
from .tiny_server import ENDLESS, HELLO, config_of


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow(tmp_path_factory: pytest.TempPathFactory, random_llama: Path) -> AsyncGenerator[ServedProcess]:
    config = config_of(random_llama, scheduler={"max_num_seqs": 1, "max_queue": 4})
    async with serving(tmp_path_factory.mktemp("narrow"), config=config) as served:
        yield served


async def _answers_again(served: ServedProcess) -> None:
    async with asyncio.timeout(LIMIT_S), served.openai() as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1)
    assert answer.usage is not None
    health = await served.health()
    assert (health["active_streams"], health["worker"]["state"], health["worker"]["restarts"]) == (0, "ready", 0)


async def test_leaving_a_stream_frees_its_slot(narrow: ServedProcess) -> None:
    async with narrow.openai() as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=ENDLESS)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert (await narrow.health())["active_streams"] == 1
        await stream.close()
    await _answers_again(narrow)


async def test_leaving_frees_the_slots_of_all_choices(narrow: ServedProcess) -> None:
    async with narrow.openai() as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, n=3, stream=True, extra_body=ENDLESS
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert (await narrow.health())["active_streams"] == 3  # one runs, and two wait for the slot
        await stream.close()
    await _answers_again(narrow)


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_that_do_not_all_find_a_place_take_none(narrow: ServedProcess, stream: bool) -> None:
    async with narrow.openai() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="tiny", messages=HELLO, n=6, stream=stream, extra_body=ENDLESS)
    assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
    await _answers_again(narrow)


async def test_leaving_before_a_whole_answer_frees_its_slot(narrow: ServedProcess) -> None:
    async with narrow.openai() as client:
        asking = asyncio.create_task(client.chat.completions.create(model="tiny", messages=HELLO, extra_body=ENDLESS))
        await narrow.healthy_when(lambda health: health["active_streams"] == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await _answers_again(narrow)


async def test_leaving_while_waiting_for_a_slot_frees_the_place_in_the_queue(narrow: ServedProcess) -> None:
    async with narrow.openai() as client:
        running = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=ENDLESS)
        waiting = [
            asyncio.create_task(client.chat.completions.create(model="tiny", messages=HELLO, extra_body=ENDLESS))
            for _ in range(3)
        ]
        await narrow.healthy_when(lambda health: health["active_streams"] == 4)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await narrow.healthy_when(lambda health: health["active_streams"] == 1)
        await running.close()
    await _answers_again(narrow)
