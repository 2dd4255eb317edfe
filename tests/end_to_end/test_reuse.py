"""API keys with limits, shared computations and answers that are given again, in a real server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI

from mlx_serving.config.api_keys import ApiKey, hash_key, write_keys

from .served_process import serving
from .tiny_server import FORCED, HELLO, config_of

ANN, BOB = "mls-key-of-ann", "mls-key-of-bob"
ADMIN = {"admin_key": "key-of-the-operator"}
CHAT = "/v1/chat/completions"
GREEDY: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 200, **FORCED}


async def test_equal_requests_are_computed_once_and_answered_again(tmp_path: Path, random_llama: Path) -> None:
    cache: dict[str, object] = {"enabled": True, "path": str(tmp_path / "answers.db")}
    config = config_of(random_llama, sharing={"enabled": True}, response_cache=cache)
    async with serving(tmp_path, keys=ADMIN, config=config) as served, served.http() as http:
        answers = await asyncio.gather(*(_ask(http) for _ in range(4)))
        outcomes = [outcome for outcome, _ in answers]
        assert outcomes.count("miss") == 1
        assert set(outcomes) <= {"miss", "shared", "hit"}
        assert {text for _, text in answers} == {"a" * 200}
        assert await _ask(http) == ("hit", "a" * 200)
        assert (await _ask(http, seed=1))[0] == "miss"

        streamed = await http.post(CHAT, json={**GREEDY, "stream": True})
        assert streamed.headers["x-cache"] == "hit"
        *events, done = [event.removeprefix("data: ") for event in streamed.text.split("\n\n") if event]
        pieces = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
        assert ("".join(pieces), done) == ("a" * 200, "[DONE]")
        assert len(pieces) > 10

        async with served.http("admin_key") as admin:
            told = (await admin.get("/admin/cache")).json()
            assert told["response_cache"]["hits"] >= 2
            assert (await admin.post("/admin/cache/clear")).json() == {"answers": told["response_cache"]["entries"]}
        assert (await _ask(http))[0] == "miss"
    async with serving(tmp_path, keys=ADMIN, config=config) as served, served.http() as http:
        assert (await _ask(http))[0] == "hit"  # from the file, in another process


async def test_keys_are_held_to_their_limits_and_never_logged(tmp_path: Path, random_llama: Path) -> None:
    keys = tmp_path / "keys.json"
    write_keys(keys, [ApiKey("ann", hash_key(ANN), daily_tokens=50, models=["tiny"]), ApiKey("bob", hash_key(BOB))])
    config = config_of(random_llama, keys={"file": str(keys), "state_file": str(tmp_path / "spent.json")})
    asked: dict[str, Any] = {"messages": HELLO, "max_tokens": 60, "extra_body": FORCED}
    async with serving(tmp_path, config=config) as served:
        ann = AsyncOpenAI(base_url=f"{served.url}/v1", api_key=ANN, max_retries=0)
        bob = AsyncOpenAI(base_url=f"{served.url}/v1", api_key=BOB, max_retries=0)
        async with ann, bob:
            stream = await ann.chat.completions.create(model="tiny", stream=True, **asked)
            assert len([chunk async for chunk in stream]) > 1
            assert await _refusal(ann, model="tiny", **asked) == "insufficient_quota"
            assert await _refusal(ann, model="short", **asked) == "permission_denied"
            assert await _refusal(bob, model="tiny", **asked) is None
            assert [model.id async for model in ann.models.list()] == ["tiny"]
            write_keys(keys, [ApiKey("ann", hash_key(ANN))])
            assert await _refusal(bob, model="tiny", **asked) == "invalid_api_key"
            assert await _refusal(ann, model="tiny", **asked) is None
    spent = json.loads((tmp_path / "spent.json").read_text())
    assert spent["ann"]["tokens"] > 120
    logged = json.dumps(served.log)
    assert ANN not in logged
    assert BOB not in logged
    assert "sha256:" not in logged
    assert {line.get("key") for line in served.log if line["event"] == "request"} >= {"ann", "bob"}


async def test_text_becomes_tokens_and_text_again(tmp_path: Path, random_llama: Path) -> None:
    async with serving(tmp_path, config=config_of(random_llama)) as served, served.http() as http:
        found = (await http.post("/tokenize", json={"prompt": "Hello", "return_token_strs": True})).json()
        assert found["count"] == len(found["tokens"]) == len(found["token_strs"]) > 0
        assert found["max_model_len"] == 100_000
        assert (await http.post("/detokenize", json={"tokens": found["tokens"]})).json() == {"prompt": "Hello"}
        refused = await http.post("/detokenize", json={"tokens": [10**6]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens")
        described = (await http.get("/v1/models/tiny")).json()
        assert (described["state"], described["max_model_len"]) == ("ready", 100_000)
        assert "completions" in described["capabilities"]


async def _ask(http: httpx2.AsyncClient, **more: Any) -> tuple[str | None, str]:
    answer = await http.post(CHAT, json={**GREEDY, **more})
    return answer.headers.get("x-cache"), answer.json()["choices"][0]["message"]["content"]


async def _refusal(client: AsyncOpenAI, **asked: Any) -> str | None:
    try:
        await client.chat.completions.create(**asked)
    except openai.APIStatusError as error:
        return error.code
    return None
