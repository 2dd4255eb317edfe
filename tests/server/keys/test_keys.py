"""API keys with limits of their own, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from mlx_serving.config.api_keys import ApiKey, hash_key, write_keys
from mlx_serving.core.generation import ChatPrompt
from mlx_serving.core.images.image import Image, ImageSource
from mlx_serving.errors import InvalidConfig, Overloaded
from mlx_serving.server.app import ServerApp, create_app
from mlx_serving.server.keys.ring import KeySettings
from mlx_serving.server.settings import ServerSettings

from ..conftest import LogLines
from ..scripted_engine import PROMPT_TOKENS, Script, ScriptedEngine

SECRET, OTHER = "mls-the-secret-of-ann", "mls-the-secret-of-bob"
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@dataclass
class Served:
    app: ServerApp
    http: httpx2.AsyncClient
    engine: ScriptedEngine

    async def ask(self, key: str = SECRET, **body: Any) -> httpx2.Response:
        return await self.http.post(CHAT, json={**BODY, **body}, headers={"authorization": f"Bearer {key}"})


@asynccontextmanager
async def _served(settings: KeySettings, **server: Any) -> AsyncGenerator[Served]:
    engine = ScriptedEngine()
    app = create_app(engine, ServerSettings(keys=settings, **server))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as http:
        yield Served(app, http, engine)
    await app.close()


def _inline(**limits: Any) -> KeySettings:
    keys = [{"name": "ann", "hash": hash_key(SECRET), **limits}, {"name": "bob", "hash": hash_key(OTHER)}]
    return KeySettings(inline=json.dumps({"keys": keys}))


async def test_a_key_lets_in_and_its_name_is_the_caller(log_lines: LogLines) -> None:
    async with _served(_inline(priority="high")) as served:
        assert (await served.ask(user="somebody")).status_code == 200
        asked = served.engine.last_request
        assert (asked.caller, asked.priority) == ("ann", "high")
        assert (await served.ask(OTHER)).status_code == 200
        assert (served.engine.last_request.caller, served.engine.last_request.priority) == ("bob", "normal")
    line = next(line for line in log_lines if line["event"] == "request")
    assert (line["key"], line["user"]) == ("ann", "somebody")


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}])
async def test_without_a_known_key_nobody_gets_in(headers: dict[str, str]) -> None:
    async with _served(_inline()) as served:
        refused = await served.http.post(CHAT, json=BODY, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "x-ratelimit-limit-requests" not in refused.headers
        assert (await served.http.post(CHAT, json=BODY, headers={"x-api-key": SECRET})).status_code == 200


async def test_the_single_key_and_the_admin_key_go_on_working_without_limits() -> None:
    async with _served(_inline(requests_per_minute=1), api_key="single", admin_key="admin") as served:
        for key in ("single", "admin", "single", "admin"):
            answer = await served.ask(key, user="u")
            assert answer.status_code == 200
            assert served.engine.last_request.caller == "user:u"  # which is no key's name
            assert "x-ratelimit-limit-requests" not in answer.headers


async def test_an_expired_key_is_refused_by_name() -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    async with _served(_inline(expires=past.isoformat())) as served:
        refused = await served.ask()
    assert refused.status_code == 401
    assert "ann has expired" in refused.json()["error"]["message"]


async def test_a_key_is_for_its_models_only() -> None:
    async with _served(_inline(models=["org/other"])) as served:
        refused = await served.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
        assert refused.json()["error"]["param"] == "model"
        assert served.engine.runs == []
        headers = {"authorization": f"Bearer {SECRET}"}
        listed = (await served.http.get("/v1/models", headers=headers)).json()["data"]
        assert [model["id"] for model in listed] == ["org/other"]
        assert (await served.http.get("/v1/models/tiny", headers=headers)).status_code == 403
        assert (await served.ask(model="org/other")).status_code == 200


async def test_a_draft_model_is_one_of_the_models_that_a_key_is_for() -> None:
    async with _served(_inline(models=["tiny"])) as served:
        refused = await served.ask(draft_model="org/other")
        assert (refused.status_code, refused.json()["error"]["param"]) == (403, "draft_model")
        assert served.engine.runs == []
        assert (await served.ask(draft_model="tiny")).status_code == 200


async def test_requests_per_minute_are_told_and_held() -> None:
    async with _served(_inline(requests_per_minute=2)) as served:
        first = await served.ask()
        assert {name: value for name, value in first.headers.items() if name.startswith("x-ratelimit")} == {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-reset-requests": "30s",
        }
        assert (await served.ask(stream=True)).status_code == 200
        refused = await served.ask(stream=True)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "ann has reached its limit of 2 requests per minute" in error["message"]
        assert 25 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert (await served.ask(OTHER)).status_code == 200


async def test_several_answers_to_a_prompt_are_one_request() -> None:
    async with _served(_inline(requests_per_minute=2, max_concurrent=1)) as served:
        assert (await served.ask(n=3)).headers["x-ratelimit-remaining-requests"] == "1"
        assert len(served.engine.runs) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_of_prompt_and_answer_are_counted(stream: bool) -> None:
    async with _served(_inline(tokens_per_minute=1000)) as served:
        assert (await served.ask(stream=stream, messages=[{"role": "user", "content": "x" * 400}])).status_code == 200
        left = int((await served.ask()).headers["x-ratelimit-remaining-tokens"])
    used = PROMPT_TOKENS + 2
    assert 1000 - 2 * used <= left <= 1000 - used  # the second one's own, guessed or counted


async def test_tokens_are_counted_while_they_come() -> None:
    async with _served(_inline(tokens_per_minute=1000)) as served:
        served.engine.script = Script(hang=True)
        task = asyncio.create_task(served.ask(messages=[{"role": "user", "content": "x" * 400}]))
        run = await served.engine.next_run()
        await asyncio.wait_for(run.delivered.wait(), 10)
        served.engine.script = Script()
        left = int((await served.ask()).headers["x-ratelimit-remaining-tokens"])
        assert left <= 1000 - 100 - 2  # a guess at the prompt, and what has come of the answer
        task.cancel()
        await asyncio.wait([task])


async def test_what_the_engine_refuses_costs_no_tokens() -> None:
    async with _served(_inline(tokens_per_minute=1000)) as served:
        served.engine.script = Script(refusal=Overloaded("full", retry_after=1))
        refused = await served.ask(messages=[{"role": "user", "content": "x" * 400}])
        assert (refused.status_code, refused.headers["x-ratelimit-remaining-tokens"]) == (503, "1000")


async def test_so_many_at_a_time_and_others_are_unaffected() -> None:
    async with _served(_inline(max_concurrent=1)) as served:
        served.engine.script = Script(hang=True)
        task = asyncio.create_task(served.ask())
        run = await served.engine.next_run()
        served.engine.script = Script()
        refused = await served.ask()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert (await served.ask(OTHER)).status_code == 200
        task.cancel()
        await asyncio.wait([task])
        await asyncio.wait_for(run.left.wait(), 10)
        assert (await served.ask()).status_code == 200


async def test_a_days_tokens_outlive_a_restart(tmp_path: Path) -> None:
    settings = replace(_inline(daily_tokens=PROMPT_TOKENS + 2), state_file=tmp_path / "state" / "budgets.json")
    async with _served(settings) as served:
        assert (await served.ask()).status_code == 200
        assert (await served.ask()).status_code == 429
    async with _served(settings) as served:
        refused = await served.ask()
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
        assert refused.headers["x-should-retry"] == "false"
        assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    assert json.loads(settings.state_file.read_text())["ann"]["tokens"] == PROMPT_TOKENS + 2  # pyright: ignore[reportOptionalMemberAccess]


async def test_budgets_that_cannot_be_read_begin_anew(tmp_path: Path, log_lines: LogLines) -> None:
    state = tmp_path / "budgets.json"
    state.write_text('{"ann": 3}')
    async with _served(replace(_inline(daily_tokens=100), state_file=state)) as served:
        assert (await served.ask()).status_code == 200
    assert "token budgets begin anew" in [line["event"] for line in log_lines]
    assert json.loads(state.read_text())["ann"]["tokens"] == PROMPT_TOKENS + 2


async def test_budgets_that_cannot_be_written_disturb_nobody(tmp_path: Path, log_lines: LogLines) -> None:
    (tmp_path / "file").touch()
    async with _served(replace(_inline(daily_tokens=100), state_file=tmp_path / "file" / "state.json")) as served:
        assert (await served.ask()).status_code == 200
    assert "token budgets not saved" in [line["event"] for line in log_lines]


async def test_the_file_is_read_again_when_it_changes(tmp_path: Path, log_lines: LogLines) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, [ApiKey("ann", hash_key(SECRET), requests_per_minute=1)])
    async with _served(KeySettings(file=path)) as served:
        assert (await served.ask()).status_code == 200
        assert (await served.ask()).status_code == 429
        assert (await served.ask(OTHER)).status_code == 401
        write_keys(path, [ApiKey("ann", hash_key(SECRET), requests_per_minute=10), ApiKey("bob", hash_key(OTHER))])
        assert (await served.ask()).status_code == 200
        assert (await served.ask(OTHER)).status_code == 200
        path.write_text('{"keys": [{"name": "ann"}]}')
        assert (await served.ask(OTHER)).status_code == 200
        path.unlink()
        assert (await served.ask(OTHER)).status_code == 200
        write_keys(path, [])
        assert (await served.ask(OTHER)).status_code == 401
    told = [line["event"] for line in log_lines if "API keys" in line["event"]]
    assert told == ["API keys read again", "API keys not read again", "API keys not read again", "API keys read again"]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("no JSON", "malformed"),
        ('{"keys": [{"name": "a", "hash": "sha256:00:11"}]}', r"keys\[0\]\.hash"),
        ('{"keys": [{"name": "a b", "hash": "H"}]}', r"keys\[0\]\.name"),
        ('{"keys": [{"name": "a", "hash": "H", "rpm": 3}]}', "rpm"),
        ('{"keys": [{"name": "a", "hash": "H", "requests_per_minute": 0}]}', r"keys\[0\]\.requests_per_minute"),
        ('{"keys": [{"name": "a", "hash": "H", "expires": "2030-01-01"}]}', r"keys\[0\]\.expires"),
        ('{"keys": [{"name": "a", "hash": "H"}, {"name": "a", "hash": "H"}]}', "the name a is given to 2 keys"),
    ],
)
def test_a_document_that_is_not_right_is_refused_with_the_place(document: str, why: str) -> None:
    document = document.replace('"H"', json.dumps(hash_key(SECRET)))
    with pytest.raises(InvalidConfig, match=why) as caught:
        create_app(ScriptedEngine(), ServerSettings(keys=KeySettings(inline=document)))
    assert hash_key(SECRET)[40:] not in str(caught.value.details)


def test_a_name_that_is_in_the_file_and_inline_is_refused(tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.json", [ApiKey("bob", hash_key(OTHER))])
    with pytest.raises(InvalidConfig, match="bob"):
        create_app(ScriptedEngine(), ServerSettings(keys=replace(_inline(), file=tmp_path / "keys.json")))


async def test_no_key_and_no_hash_is_ever_logged(log_lines: LogLines) -> None:
    async with _served(_inline(requests_per_minute=2), api_key="single-secret") as served:
        for key in (SECRET, SECRET, SECRET, "mls-wrong-secret", "single-secret"):
            await served.ask(key)
        served.engine.script = Script(refusal=RuntimeError("a defect"))
        await served.ask(OTHER)
        logged = repr([{**line, "exc_info": None} for line in log_lines])
        assert "secret" not in logged + repr(served.app.settings)
        assert "sha256" not in logged + repr(served.app.settings)


async def test_openais_client_knows_what_to_do() -> None:
    async with _served(_inline(models=["tiny"], requests_per_minute=1, daily_tokens=1)) as served:
        client = AsyncOpenAI(base_url="http://server/v1", api_key=SECRET, http_client=_transport(served), max_retries=2)
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="org/other", messages=BODY["messages"])
        await client.chat.completions.create(model="tiny", messages=BODY["messages"])
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="tiny", messages=BODY["messages"])
        assert caught.value.code == "insufficient_quota"
        assert len(served.engine.runs) == 1
        await client.close()


def _transport(served: Served) -> Any:
    import httpx2

    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=served.app))


def test_the_guess_at_a_prompt_looks_at_all_messages() -> None:
    from mlx_serving.core.generation import TextPrompt, TokenPrompt
    from mlx_serving.server.keys.metering import guess_tokens

    chat = ChatPrompt(({"role": "user", "content": "x" * 40}, {"role": "tool", "content": None}))
    guesses = [guess_tokens(each) for each in (chat, TextPrompt("x" * 80), TokenPrompt((1, 2)), TextPrompt(""))]
    assert guesses == [10, 20, 2, 1]


def test_the_guess_at_a_picture_is_its_patches_wherever_it_is_sent() -> None:
    from mlx_serving.server.keys.metering import guess_tokens

    content = [{"type": "text", "text": "x" * 40}, {"type": "image"}, {"type": "image"}]
    messages = ({"role": "user", "content": content},)
    unread = ChatPrompt(messages, sources=(ImageSource("A" * 100_000), ImageSource("B" * 100_000)))
    read = ChatPrompt(messages, images=(Image(bytes(100_000), "0" * 64, 9, 9),) * 2)
    assert guess_tokens(unread) == guess_tokens(read) == 10 + 2 * 576
