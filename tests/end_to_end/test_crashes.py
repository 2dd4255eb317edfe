"""The worker dies or hangs; the server does not."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ..command_line import LIMIT_S
from ..engine.poisoned_worker import MARKER, as_python
from ..tiny_models import ALPHABET
from .served_process import ServedProcess, serving
from .tiny_server import ENDLESS, HELLO, config_of

_TOKENS = 1500
_SPECIAL_TOKENS = range(256, 259)


async def _answers(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2)
    assert answer.usage is not None


async def _texts(client: AsyncOpenAI, count: int, started: asyncio.Event, tokens: int = _TOKENS) -> list[str]:
    """Streamed and whole answers of different kinds, side by side; `started` is set when each streams."""
    begun = 0

    async def streamed(number: int) -> str:
        nonlocal begun
        text = ""
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, extra_body=_kind(number, tokens)
        )
        async for chunk in stream:
            if not text and chunk.choices[0].delta.content:
                begun += 1
                if begun == count:
                    started.set()
            text += chunk.choices[0].delta.content or ""
        return text

    async def whole(number: int) -> str:
        answer: ChatCompletion = await client.chat.completions.create(
            model="tiny", messages=HELLO, extra_body=_kind(number, tokens)
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == tokens
        return answer.choices[0].message.content or ""

    async with asyncio.timeout(LIMIT_S):
        return await asyncio.gather(*map(streamed, range(count)), *map(whole, range(count)))


def _kind(number: int, tokens: int) -> dict[str, Any]:
    """Greedy and seeded requests of a fixed length."""
    sampling = {"temperature": 0} if number % 2 else {"temperature": 0.9, "seed": number, "top_p": 0.9}
    return {**sampling, "max_tokens": tokens, "logit_bias": {str(special): -100 for special in _SPECIAL_TOKENS}}


async def _running_stream(client: AsyncOpenAI) -> AsyncStream[ChatCompletionChunk]:
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=ENDLESS)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    return stream


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
    assert "tiny" in health["loaded_models"]


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGKILL, "exited"), (signal.SIGSTOP, "no heartbeat")])
async def test_lost_with_requests_in_flight_every_client_sees_a_pause_and_the_same_text(
    tiny: ServedProcess, client: AsyncOpenAI, number: signal.Signals, cause: str
) -> None:
    expected = await _texts(client, 3, asyncio.Event())
    started = asyncio.Event()
    answers = asyncio.create_task(_texts(client, 3, started))
    await started.wait()
    before = await _ready_worker(tiny)
    os.kill(before["pid"], number)
    assert await answers == expected
    after = await _ready_worker(tiny)
    assert after["restarts"] == before["restarts"] + 1
    assert after["last_crash"]["cause"] == cause
    assert (await tiny.health())["active_streams"] == 0


async def test_among_thirty_healthy_requests_the_poisonous_one_fails_alone(
    tmp_path: Path, random_llama: Path, client: AsyncOpenAI
) -> None:
    expected = await _texts(client, 15, asyncio.Event(), 100)
    config = config_of(random_llama, worker={"python": as_python(tmp_path)})
    async with serving(tmp_path, config=config) as served, served.openai() as own, served.http() as http:
        answers = asyncio.create_task(_texts(own, 15, asyncio.Event(), 100))
        poison = {"model": "tiny", "messages": [{"role": "user", "content": ALPHABET[MARKER]}]}
        response = await http.post("/v1/chat/completions", json=poison)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (500, "request_crashed_worker")
        assert error["details"]["signal"] == "SIGABRT"
        assert await answers == expected
        health = await served.health()
        assert health["worker"]["restarts"] == error["details"]["losses"] <= 4
        assert (health["status"], health["active_streams"]) == ("healthy", 0)


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
