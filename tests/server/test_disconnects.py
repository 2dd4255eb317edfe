"""A client that leaves frees what it held, at once: seen from the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mlx_serving.core.generation import Delta, GenerationRequest
from mlx_serving.server.app import create_app
from mlx_serving.server.http.listening import ListenAddress
from mlx_serving.server.settings import ServerSettings

from .conftest import LogLines, running
from .raw_http import connect, post
from .scripted_engine import Run, Script, ScriptedEngine


def _request(path: str, *, stream: bool, n: int = 1) -> bytes:
    prompt = {"prompt": "Hi"} if path.endswith("/v1/completions") else {"messages": [{"role": "user", "content": "Hi"}]}
    return post(path, json.dumps({**prompt, "stream": stream, "n": n}).encode())


async def _left(run: Run) -> None:
    await asyncio.wait_for(run.left.wait(), 10)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [Script(hang=True), Script(hang_at_entry=True)])
async def test_leaving_aborts_the_generation(
    address: ListenAddress, engine: ScriptedEngine, path: str, stream: bool, script: Script
) -> None:
    engine.script = script
    async with connect(address) as connection:
        await connection.send(_request(path, stream=stream))
        run = await engine.next_run()
        if not script.hang_at_entry:
            await asyncio.wait_for(run.delivered.wait(), 10)
        await connection.close()
    await _left(run)
    assert run.aborted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [Script(hang=True), Script(hang_at_entry=True)])
async def test_leaving_aborts_every_choice(
    address: ListenAddress, engine: ScriptedEngine, stream: bool, script: Script
) -> None:
    engine.scripts = [Script(hang=True), Script(hang=True), script]
    async with connect(address) as connection:
        await connection.send(_request("/v1/completions", stream=stream, n=3))
        runs = [await engine.next_run() for _ in range(3)]
        if not script.hang_at_entry:
            await asyncio.wait_for(runs[-1].delivered.wait(), 10)
        await connection.close()
    for run in runs:
        await _left(run)
        assert run.aborted


@pytest.mark.parametrize("stream", [False, True])
async def test_a_generation_whose_client_stays_is_not_aborted(
    address: ListenAddress, engine: ScriptedEngine, stream: bool
) -> None:
    async with connect(address) as connection:
        await connection.send(_request("/v1/chat/completions", stream=stream))
        run = await engine.next_run()
        await connection.read_all()
    await _left(run)
    assert run.finished
    assert not run.aborted


@pytest.mark.parametrize("n", [1, 3])
async def test_an_answer_that_is_complete_is_no_departure(log_lines: LogLines, n: int) -> None:
    class Engine(ScriptedEngine):
        @asynccontextmanager
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
            async with super().generate(request) as deltas:
                yield deltas
            for _ in range(10):
                await asyncio.sleep(0)  # a layer that has something to do at the end

    async with running(create_app(Engine(), ServerSettings())) as address, connect(address) as connection:
        await connection.send(_request("/v1/chat/completions", stream=True, n=n))
        answer = await connection.read_all()
    assert b"data: [DONE]\n\n" in answer
    assert [line["event"] for line in log_lines] == ["request"]
    assert "error" not in log_lines[0]


async def test_one_that_leaves_does_not_disturb_the_others(address: ListenAddress, engine: ScriptedEngine) -> None:
    engine.script = Script(hang=True)
    async with connect(address) as leaving, connect(address) as staying:
        await staying.send(_request("/v1/chat/completions", stream=True))
        stays = await engine.next_run()
        await leaving.send(_request("/v1/chat/completions", stream=True))
        leaves = await engine.next_run()
        await leaving.close()
        await _left(leaves)
        assert not stays.left.is_set()
    await _left(stays)


@pytest.mark.parametrize("script", [Script(hang=True), Script(hang_at_entry=True)])
async def test_time_being_over_is_504_for_a_whole_answer(script: Script) -> None:
    engine = ScriptedEngine()
    engine.script = script
    settings = ServerSettings(request_timeout_s=0.05, access_log=False)
    async with running(create_app(engine, settings)) as address, connect(address) as connection:
        await connection.send(_request("/v1/chat/completions", stream=False))
        answer = await connection.read_all()
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b'"code":"timeout"' in answer
    assert engine.runs[0].aborted
    assert engine.last_request.timeout_s == 0.05


async def test_time_being_over_is_the_last_event_of_a_stream() -> None:
    engine = ScriptedEngine()
    engine.script = Script(hang=True)
    settings = ServerSettings(request_timeout_s=0.05, access_log=False)
    async with running(create_app(engine, settings)) as address, connect(address) as connection:
        await connection.send(_request("/v1/chat/completions", stream=True))
        answer = await connection.read_all()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"code":"timeout"' in answer
    assert b"[DONE]" not in answer
    assert engine.runs[0].aborted
