"""The worker dies or hangs; the server does not."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk

from ..command_line import LIMIT_S
from .served_process import ServedProcess, serving
from .tiny_server import ENDLESS, HEARTBEAT_TIMEOUT_S, HELLO, config_of


async def _answers(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2)
    assert answer.usage is not None


async def _running_stream(client: AsyncOpenAI) -> AsyncStream[ChatCompletionChunk]:
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=ENDLESS)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    return stream


async def _failure(stream: AsyncStream[ChatCompletionChunk]) -> openai.APIError:
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    return caught.value


async def _ready_worker(served: ServedProcess) -> dict[str, Any]:
    return (await served.healthy_when(lambda health: health["worker"]["state"] == "ready"))["worker"]


async def test_killed_while_idle_the_next_request_succeeds_and_health_tells(
    tiny: ServedProcess, client: AsyncOpenAI
) -> None:
    before = await _ready_worker(tiny)
    os.kill(before["pid"], signal.SIGKILL)
    await _answers(client)
    health = await tiny.health()
    after = health["worker"]
    assert health["status"] == "healthy"
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"] + 1
    assert (after["last_crash"]["signal"], after["last_crash"]["cause"]) == ("SIGKILL", "exited")
    assert health["loaded_models"] == ["tiny"] or set(health["loaded_models"]) == {"tiny", "short"}


async def test_killed_with_streams_in_flight_each_ends_with_a_typed_error(
    tiny: ServedProcess, client: AsyncOpenAI
) -> None:
    whole = asyncio.create_task(client.chat.completions.create(model="tiny", messages=HELLO, extra_body=ENDLESS))
    await tiny.healthy_when(lambda health: health["active_streams"] == 1)
    streams = [await _running_stream(client) for _ in range(3)]  # the worker has accepted what came before them
    os.kill((await tiny.health())["worker"]["pid"], signal.SIGKILL)
    async with asyncio.timeout(LIMIT_S):
        for stream in streams:
            error = await _failure(stream)
            assert error.code == "worker_died"
            assert "SIGKILL" in error.message
        with pytest.raises(openai.InternalServerError) as caught:
            await whole
    assert (caught.value.status_code, caught.value.code) == (503, "worker_died")
    await _answers(client)
    assert (await tiny.health())["active_streams"] == 0


async def test_stopped_with_a_request_in_flight_it_is_found_out_and_replaced(
    tiny: ServedProcess, client: AsyncOpenAI
) -> None:
    stream = await _running_stream(client)
    before = await _ready_worker(tiny)
    os.kill(before["pid"], signal.SIGSTOP)
    async with asyncio.timeout(LIMIT_S):
        error = await _failure(stream)
    assert error.code == "worker_hung"
    assert f"{HEARTBEAT_TIMEOUT_S:g} s" in error.message
    await _answers(client)
    after = await _ready_worker(tiny)
    assert after["pid"] != before["pid"]
    assert after["last_crash"]["cause"] == "no heartbeat"


async def test_a_loaded_second_model_comes_back_after_a_crash(tiny: ServedProcess, client: AsyncOpenAI) -> None:
    await client.chat.completions.create(model="short", messages=HELLO, max_tokens=1)
    os.kill((await _ready_worker(tiny))["pid"], signal.SIGKILL)
    await tiny.healthy_when(lambda health: set(health["loaded_models"]) == {"tiny", "short"})
    await client.chat.completions.create(model="short", messages=HELLO, max_tokens=1)


async def test_a_killed_server_leaves_no_worker_behind(tmp_path: Path, random_llama: Path) -> None:
    async with serving(tmp_path, config=config_of(random_llama)) as served, served.openai() as client:
        stream = await _running_stream(client)
        worker = psutil.Process((await served.health())["worker"]["pid"])
        served.send_signal(signal.SIGKILL)
        assert await served.ended() == -signal.SIGKILL
        async with asyncio.timeout(LIMIT_S):
            while _lives(worker):  # noqa: ASYNC110  nobody tells of the end of somebody else's child
                await asyncio.sleep(0.01)
        await stream.close()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
