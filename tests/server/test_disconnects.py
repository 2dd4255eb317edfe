"""A client that leaves frees what it held, at once: seen from the engine."""

from __future__ import annotations

import asyncio
import json

import pytest

from mlx_serving.server.app import create_app
from mlx_serving.server.listening import ListenAddress
from mlx_serving.server.settings import ServerSettings

from .conftest import running
from .raw_http import connect, post
from .scripted_engine import Run, Script, ScriptedEngine


def _request(path: str, *, stream: bool) -> bytes:
    prompt = {"prompt": "Hi"} if path.endswith("/v1/completions") else {"messages": [{"role": "user", "content": "Hi"}]}
    return post(path, json.dumps({**prompt, "stream": stream}).encode())


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
