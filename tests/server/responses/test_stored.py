"""Responses in a file: they are there after the next start, for who asked for them, within their bounds."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mlx_serving.core.generation import ChatPrompt, Delta, FinishReason, ToolCallDelta
from mlx_serving.core.images.image import ImageSource
from mlx_serving.core.response_store import StorePolicy
from mlx_serving.server.app import create_app
from mlx_serving.server.settings import ServerSettings

from ..scripted_engine import Script, ScriptedEngine

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALLED = Script(
    pieces=(
        Delta("", reasoning="Let me see."),
        Delta("Looking."),
        Delta("", tool_calls=(ToolCallDelta(0, "call-1", "weather", '{"city": "Oslo"}'),)),
    ),
    finish=FinishReason.TOOL_CALLS,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "responses.db"


@asynccontextmanager
async def _server(
    file: Path | None, engine: ScriptedEngine | None = None, **policy: Any
) -> AsyncGenerator[httpx2.AsyncClient]:
    settings = ServerSettings(access_log=False, stored_responses=StorePolicy(**policy), stored_responses_file=file)
    app = create_app(engine or ScriptedEngine(), settings)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://server") as http:
        yield http
    await app.close()


async def _ask(http: httpx2.AsyncClient, **fields: object) -> dict[str, Any]:
    answer = await http.post("/v1/responses", json={"input": "Hi", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def _found(http: httpx2.AsyncClient, *responses: dict[str, Any]) -> list[bool]:
    return [(await http.get(f"/v1/responses/{each['id']}")).status_code == 200 for each in responses]


async def test_a_picture_is_kept_with_its_conversation_after_the_next_start(file: Path) -> None:
    engine = ScriptedEngine()
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"}
    content = [{"type": "input_text", "text": "What is it?"}, picture]
    async with _server(file, engine) as http:
        first = await _ask(http, input=[{"role": "user", "content": content}])
    async with _server(file, engine) as http:
        items = (await http.get(f"/v1/responses/{first['id']}/input_items")).json()["data"]
        assert items[0]["content"] == content
        await _ask(http, previous_response_id=first["id"], input="Why?")
    prompt = engine.last_request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[0]["content"] == [{"type": "text", "text": "What is it?"}, {"type": "image"}]
    assert prompt.sources == (ImageSource(picture["image_url"], detail="low"),)


async def test_a_conversation_goes_on_after_the_next_start(file: Path) -> None:
    engine = ScriptedEngine()
    engine.scripts = [CALLED]
    async with _server(file, engine) as http:
        first = await _ask(http, tools=[TOOL], instructions="Be brief.")
    async with _server(file, engine) as http:
        assert (await http.get(f"/v1/responses/{first['id']}")).json() == first
        items = (await http.get(f"/v1/responses/{first['id']}/input_items")).json()["data"]
        assert [item["role"] for item in items] == ["user"]
        output = {"type": "function_call_output", "call_id": "call-1", "output": "Rain"}
        await _ask(http, tools=[TOOL], previous_response_id=first["id"], input=[output])
    prompt = engine.last_request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "tool"]
    assert prompt.messages[1]["reasoning_content"] == "Let me see."
    assert prompt.messages[1]["tool_calls"]


async def test_only_the_owner_of_the_file_can_read_it(file: Path) -> None:
    async with _server(file) as http:
        await _ask(http)
    assert (await asyncio.to_thread(file.stat)).st_mode & 0o777 == 0o600


async def test_a_response_is_its_keys_alone_after_the_next_start_as_well(file: Path) -> None:
    async with _server(file) as http:
        http.headers["authorization"] = "Bearer ann"
        response = await _ask(http)
    async with _server(file) as http:
        assert await _found(http, response) == [False]
        http.headers["authorization"] = "Bearer ann"
        assert await _found(http, response) == [True]


async def test_what_is_deleted_or_not_stored_is_not_in_the_file(file: Path) -> None:
    async with _server(file) as http:
        kept, deleted, unstored = await _ask(http), await _ask(http), await _ask(http, store=False)
        assert (await http.delete(f"/v1/responses/{deleted['id']}")).status_code == 200
    async with _server(file) as http:
        assert await _found(http, kept, deleted, unstored) == [True, False, False]


async def test_the_bounds_hold_for_the_file(file: Path) -> None:
    async with _server(file, max_entries=2) as http:
        responses = [await _ask(http) for _ in range(3)]
        assert await _found(http, responses[1]) == [True]  # which makes it the last one used
        responses.append(await _ask(http))
    with closing(sqlite3.connect(file)) as opened:
        assert opened.execute("SELECT count(*) FROM answers").fetchone() == (2,)
    async with _server(file, max_entries=1) as http:
        assert await _found(http, *responses) == [False, False, False, True]
    async with _server(file, max_bytes=100) as http:
        assert await _found(http, *responses) == [False] * 4
        large = await _ask(http)
        assert await _found(http, large) == [False]
    with closing(sqlite3.connect(file)) as opened:
        assert opened.execute("SELECT count(*) FROM answers").fetchone() == (0,)


async def test_time_goes_on_while_no_server_runs(file: Path) -> None:
    async with _server(file) as http:
        old, young = await _ask(http), await _ask(http)
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("UPDATE answers SET stored_at = stored_at - 90000, used = 0 WHERE key = ?", (old["id"],))
        opened.commit()
    async with _server(file) as http:
        assert await _found(http, old, young) == [False, True]


async def test_what_cannot_be_read_is_left_out(file: Path) -> None:
    async with _server(file) as http:
        spoiled, other, sound = await _ask(http), await _ask(http), await _ask(http)
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("UPDATE answers SET body = x'00ff' WHERE key = ?", (spoiled["id"],))
        opened.execute("UPDATE answers SET body = x'9400c400909181a16101' WHERE key = ?", (other["id"],))
        opened.commit()
    async with _server(file) as http:
        assert await _found(http, spoiled, other, sound) == [False, False, True]


async def test_without_its_file_a_server_keeps_responses_as_long_as_it_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with _server(tmp_path / "file" / "responses.db") as http:
        response = await _ask(http)
        assert await _found(http, response) == [True]
