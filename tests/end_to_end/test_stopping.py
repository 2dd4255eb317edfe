"""The first signal drains, the second one stops at once."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from ..command_line import LIMIT_S
from .served_process import serving
from .tiny_server import ENDLESS, FORCED, HELLO, config_of


async def test_ctrl_c_finishes_the_running_stream_refuses_new_ones_and_exits_0(
    tmp_path: Path, random_llama: Path
) -> None:
    length: dict[str, Any] = {**FORCED, "max_tokens": 1000}
    async with serving(tmp_path, config=config_of(random_llama)) as served, served.openai() as client:
        worker = psutil.Process((await served.health())["worker"]["pid"])
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=length)
        first = await anext(stream)
        assert first.choices
        served.send_signal(signal.SIGINT)
        await served.logged("draining", in_flight=1)
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1)
        assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == "a" * 1000
        assert await served.ended() == 0
        assert not worker.is_running()


async def test_a_second_signal_stops_at_once_with_a_typed_error(tmp_path: Path, random_llama: Path) -> None:
    async with serving(tmp_path, config=config_of(random_llama)) as served, served.openai() as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=ENDLESS)
        await anext(stream)
        served.send_signal(signal.SIGINT)
        await served.logged("draining", in_flight=1)
        served.send_signal(signal.SIGINT)
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(openai.APIError) as caught:
                async for _ in stream:
                    pass
        assert caught.value.code == "shutting_down"
        assert await served.ended() == 128 + signal.SIGINT


async def test_sigterm_while_idle_exits_0(tmp_path: Path, random_llama: Path) -> None:
    async with serving(tmp_path, config=config_of(random_llama)) as served:
        served.send_signal(signal.SIGTERM)
        assert await served.ended() == 0
