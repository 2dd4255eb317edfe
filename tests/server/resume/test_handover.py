"""Requests that outlive the server, with an engine that does what the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from mlx_serving.errors import ModelNotFound, Overloaded, RequestCrashedWorker
from mlx_serving.server.app import ServerApp, create_app
from mlx_serving.server.resume.handover import Handover, resume_path
from mlx_serving.server.settings import ServerSettings

from ..conftest import LogLines, running
from ..raw_http import connect, post
from ..scripted_engine import Script, ScriptedEngine

SETTINGS = ServerSettings(access_log=False)
CUT = Script(pieces=("Hello", " wor"), hang=True)
REST = Script(pieces=("ld",))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "left"


def content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def handover(file: Path, engine: ScriptedEngine) -> Handover:
    return Handover(file, 60, engine, width=4)


async def cut_off(file: Path, *, stream: bool = False, settings: ServerSettings = SETTINGS, key: str = "") -> str:
    """Leave one request in the file; its id."""
    engine = ScriptedEngine()
    engine.script = CUT
    first = handover(file, engine)
    headers = [f"authorization: Bearer {key}"] if key else []
    body = json.dumps({"prompt": "Hi", "stream": stream}).encode()
    async with running(create_app(engine, settings, first)) as address, connect(address) as connection:
        await connection.send(post("/v1/completions", body, *headers))
        run = await engine.next_run()
        await run.delivered.wait()
        if stream:
            await connection.read_until(b" wor")
        (left,) = first.leave()
        assert first.leave() == {left}
    return left


@asynccontextmanager
async def served(app: ServerApp, second: Handover) -> AsyncGenerator[httpx2.AsyncClient]:
    """The next start."""
    second.start(None)
    try:
        async with running(app) as address, httpx2.AsyncClient(base_url=address.url) as http:
            yield http
    finally:
        second.close()


async def resumed(file: Path, engine: ScriptedEngine, left: str) -> httpx2.Response:
    second = handover(file, engine)
    async with served(create_app(engine, SETTINGS, second), second) as http:
        return await http.get(resume_path(left))


async def test_the_engine_is_asked_for_the_rest_with_the_seed_that_was_drawn(file: Path) -> None:
    left = await cut_off(file)
    engine = ScriptedEngine()
    engine.script = REST
    answer = (await resumed(file, engine, left)).json()
    assert (answer["id"], answer["choices"][0]["text"]) == (left, "Hello world")
    asked = engine.last_request
    assert (asked.request_id, asked.delivered) == (left, (0, 1))
    assert asked.sampling.seed is not None


async def test_a_stream_goes_on_where_it_was_cut_off(file: Path) -> None:
    left = await cut_off(file, stream=True)
    engine = ScriptedEngine()
    engine.script = REST
    body = (await resumed(file, engine, left)).text
    *events, done, end = body.split("\n\n")
    assert [json.loads(event[6:])["choices"][0]["text"] for event in events] == ["ld", ""]
    assert (done, end) == ("data: [DONE]", "")


async def test_a_full_queue_is_waited_for(file: Path) -> None:
    left = await cut_off(file)
    engine = ScriptedEngine()
    full = Script(refusal=Overloaded("full", retry_after=0.001))
    engine.scripts, engine.script = [full, full], REST
    assert (await resumed(file, engine, left)).json()["choices"][0]["text"] == "Hello world"


async def test_what_fails_is_told_tried_again_and_kept(file: Path, log_lines: LogLines) -> None:
    left = await cut_off(file)
    engine = ScriptedEngine()
    engine.script = Script(refusal=ModelNotFound("no such model"))
    second = handover(file, engine)
    async with served(create_app(engine, SETTINGS, second), second) as http:
        for _ in range(2):
            refused = await http.get(resume_path(left))
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert second.leave() == {left}
        assert second.left_unfinished
    assert {line["code"] for line in log_lines if line["event"] == "request not resumed"} == {"ModelNotFound"}
    engine = ScriptedEngine()
    engine.script = REST
    assert (await resumed(file, engine, left)).json()["choices"][0]["text"] == "Hello world"


async def test_what_kills_workers_is_not_tried_again(file: Path) -> None:
    left = await cut_off(file)
    engine = ScriptedEngine()
    engine.script = Script(refusal=RequestCrashedWorker("it was you"))
    second = handover(file, engine)
    async with served(create_app(engine, SETTINGS, second), second) as http:
        for _ in range(2):
            assert (await http.get(resume_path(left))).status_code == 500
        assert len(engine.runs) == 1
        assert second.leave() == frozenset()
    assert content(file) is None


async def test_what_is_done_but_not_fetched_is_left_again_and_needs_no_more_work(file: Path) -> None:
    left = await cut_off(file)
    engine = ScriptedEngine()
    engine.script = REST
    second = handover(file, engine)
    second.start(None)
    await (await engine.next_run()).left.wait()
    assert second.leave() == {left}
    assert not second.left_unfinished
    second.close()
    engine = ScriptedEngine()
    assert (await resumed(file, engine, left)).json()["choices"][0]["text"] == "Hello world"
    assert engine.runs == []


async def test_only_the_key_that_asked_gets_the_rest_whatever_keys_are_on_now(file: Path) -> None:
    keys = ServerSettings(api_key="mine", access_log=False)
    left = await cut_off(file, settings=keys, key="mine")
    assert b"mine" not in (content(file) or b"")
    engine = ScriptedEngine()
    engine.script = REST
    second = handover(file, engine)
    async with served(create_app(engine, SETTINGS, second), second) as http:
        statuses: list[int] = []
        for key in (None, "other", "mine", "mine"):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            statuses.append((await http.get(resume_path(left), headers=headers)).status_code)
        assert statuses == [404, 404, 200, 404]  # what was fetched is forgotten


async def test_a_client_that_left_is_not_waited_for(file: Path) -> None:
    engine = ScriptedEngine()
    engine.script = CUT
    first = handover(file, engine)
    async with running(create_app(engine, SETTINGS, first)) as address:
        async with connect(address) as connection:
            await connection.send(post("/v1/completions", b'{"prompt": "Hi"}'))
            run = await engine.next_run()
        await asyncio.wait_for(run.left.wait(), 10)
        while first.journal.running():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0)
        assert first.leave() == frozenset()
    assert content(file) is None


async def test_what_cannot_be_written_is_told_without_a_promise(tmp_path: Path, log_lines: LogLines) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()
    engine = ScriptedEngine()
    engine.script = CUT
    first = handover(directory / "left", engine)
    async with running(create_app(engine, SETTINGS, first)) as address, connect(address) as connection:
        await connection.send(post("/v1/completions", b'{"prompt": "Hi"}'))
        await (await engine.next_run()).delivered.wait()
        directory.rmdir()
        assert first.leave() == frozenset()
    (line,) = [line for line in log_lines if line["event"] == "resume file not written"]
    assert (line["lost"], line["problem"]) == (1, "No such file or directory")


async def test_without_a_resume_file_there_is_nothing_to_fetch() -> None:
    transport = httpx2.ASGITransport(app=create_app(ScriptedEngine(), SETTINGS))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as http:
        assert (await http.get(resume_path("cmpl-1"))).status_code == 404
