from __future__ import annotations

import asyncio
import json

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send

from mlx_serving.errors import WorkerDied
from mlx_serving.server.app import create_app
from mlx_serving.server.http.access_log import AccessLog
from mlx_serving.server.settings import ServerSettings

from ..conftest import LogLines, in_process, running
from ..raw_http import connect, post
from ..scripted_engine import PROMPT_TOKENS, Script, ScriptedEngine

KEY = "the-secret-key"
SETTINGS = ServerSettings(api_key=KEY)
HEADERS = {"authorization": f"Bearer {KEY}"}
BODY = {"messages": [{"role": "user", "content": "the-secret-prompt"}], "user": "u" * 1000}


def _only(lines: LogLines) -> dict[str, object]:
    (line,) = [line for line in lines if line["event"] == "request"]
    return dict(line)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_generation_is_one_line_with_its_facts(log_lines: LogLines, stream: bool) -> None:
    async with in_process(ScriptedEngine(), SETTINGS) as http:
        response = await http.post("/v1/chat/completions", json={**BODY, "stream": stream}, headers=HEADERS)

    line = _only(log_lines)
    assert isinstance(line.pop("duration_s"), float)
    assert line == {
        "event": "request",
        "level": "info",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "request_id": response.headers["x-request-id"],
        "model": "tiny",
        "stream": stream,
        "user": "u" * 64,
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 2,
    }


async def test_neither_bodies_nor_keys_are_logged(log_lines: LogLines) -> None:
    engine = ScriptedEngine()
    engine.script = Script(refusal=RuntimeError("a defect"))
    async with in_process(engine, SETTINGS) as http:
        await http.post("/v1/chat/completions", json=BODY, headers=HEADERS)
        await http.post("/v1/chat/completions", json={**BODY, "top_p": "x"}, headers=HEADERS)
        await http.get(f"/v1/models?key={KEY}", headers=HEADERS)
    assert len(log_lines) == 4
    logged = json.dumps([{**line, "exc_info": None} for line in log_lines])
    assert KEY not in logged
    assert "the-secret-prompt" not in logged


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/completions", 400, "invalid_json"),
        ("GET", "/v1/models/missing", 404, "model_not_found"),
    ],
)
async def test_a_refusal_is_logged_with_its_code(
    log_lines: LogLines, method: str, path: str, status: int, error: str
) -> None:
    async with in_process(ScriptedEngine(), SETTINGS) as http:
        await http.request(method, path, headers=HEADERS)
    line = _only(log_lines)
    assert (line["method"], line["path"], line["status"], line["error"]) == (method, path, status, error)


async def test_a_stream_that_fails_is_logged_with_the_code(log_lines: LogLines) -> None:
    engine = ScriptedEngine()
    engine.script = Script(failure=WorkerDied("gone"))
    async with in_process(engine, SETTINGS) as http:
        await http.post("/v1/chat/completions", json={**BODY, "stream": True}, headers=HEADERS)
    line = _only(log_lines)
    assert (line["status"], line["error"]) == (200, "worker_died")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_defect_is_logged_with_its_traceback(log_lines: LogLines, stream: bool) -> None:
    engine = ScriptedEngine()
    engine.script = Script(failure=RuntimeError("a defect"))
    async with in_process(engine, SETTINGS) as http:
        response = await http.post("/v1/chat/completions", json={**BODY, "stream": stream}, headers=HEADERS)
    (failure,) = [line for line in log_lines if line["level"] == "error"]
    assert failure["exc_info"]
    assert failure["request_id"] == response.headers["x-request-id"]
    assert _only(log_lines)["error"] == "internal_error"


async def test_a_client_that_left_is_logged_as_that(log_lines: LogLines) -> None:
    engine = ScriptedEngine()
    engine.script = Script(hang=True)
    async with running(create_app(engine, ServerSettings())) as address:
        async with connect(address) as connection:
            await connection.send(post("/v1/chat/completions", json.dumps(BODY).encode()))
            run = await engine.next_run()
        await asyncio.wait_for(run.left.wait(), 10)
    line = _only(log_lines)
    assert line["error"] == "aborted"


async def test_a_long_path_is_cut(log_lines: LogLines) -> None:
    async with in_process(ScriptedEngine(), SETTINGS) as http:
        await http.get("/" + "x" * 5000)
    assert len(str(_only(log_lines)["path"])) == 200


async def test_it_can_be_switched_off(log_lines: LogLines) -> None:
    async with in_process(ScriptedEngine(), ServerSettings(access_log=False)) as http:
        assert (await http.get("/v1/models")).status_code == 200
    assert log_lines == []


async def test_every_answer_has_a_request_id_of_its_own(http: httpx2.AsyncClient) -> None:
    answers = [await http.get(path) for path in ("/", "/nothing", "/v1/models")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3


async def test_what_is_no_http_passes_through(log_lines: LogLines) -> None:
    passed: list[str] = []

    async def inner(scope: Scope, _receive: Receive, _send: Send) -> None:
        passed.append(scope["type"])

    async def receive() -> Message:
        raise AssertionError

    async def send(_message: Message) -> None:
        raise AssertionError

    await AccessLog(inner, enabled=lambda: True)({"type": "lifespan"}, receive, send)
    assert passed == ["lifespan"]
    assert log_lines == []
