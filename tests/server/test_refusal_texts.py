"""What refusals say: the client's own name of the field, the limit, and what was given."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from mlx_serving.errors import ContextLengthExceeded, InvalidRequest
from mlx_serving.server.settings import ServerSettings

from .conftest import in_process
from .scripted_engine import Script, ScriptedEngine

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TOO_LONG = ContextLengthExceeded("The context holds 8 tokens, but the prompt has 9 and max_tokens 3", field="prompt")
TOO_MANY = ContextLengthExceeded(
    "The context holds 8 tokens, but the prompt has 2 and max_tokens 9", field="max_tokens"
)
NO_TOKEN = InvalidRequest("prompt_tokens has the token id 99, but the vocabulary has 9 entries", field="prompt_tokens")
KEY = "k" * 65
ADMIN = ServerSettings(access_log=False, admin_key="secret")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "refusal", "field", "said"),
    [
        ("chat/completions", CHAT, TOO_LONG, "messages", "the prompt has 9 and max_tokens 3"),
        (
            "chat/completions",
            {**CHAT, "max_completion_tokens": 9},
            TOO_MANY,
            "max_completion_tokens",
            "has 2 and max_com",
        ),
        ("completions", {"prompt": [99]}, NO_TOKEN, "prompt", "prompt has the token id 99"),
        ("completions", {"prompt": "a"}, TOO_LONG, "prompt", "the prompt has 9 and max_tokens 3"),
        ("responses", {"input": "hi"}, TOO_LONG, "input", "the prompt has 9 and max_output_tokens 3"),
        ("responses", {"input": "hi"}, TOO_MANY, "max_output_tokens", "the prompt has 2 and max_output_tokens 9"),
    ],
)
async def test_what_the_engine_refuses_is_named_as_the_client_names_it(
    http: httpx2.AsyncClient,
    engine: ScriptedEngine,
    path: str,
    body: dict[str, Any],
    refusal: InvalidRequest,
    field: str,
    said: str,
    stream: bool,
) -> None:
    engine.script = Script(refusal=refusal)
    response = await http.post(f"/v1/{path}", json={**body, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert said in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "v1/chat/completions",
            {**CHAT, "metadata": {"a": "x" * 513}},
            "metadata.a must have at most 512 characters, got 513",
        ),
        (
            "v1/responses",
            {"input": "a", "metadata": {KEY: "a"}},
            "a key of metadata must have at most 64 characters, got 65",
        ),
        (
            "v1/responses",
            {"input": "a", "metadata": {str(n): "" for n in range(17)}},
            "metadata must have at most 16 entries, got 17",
        ),
        ("detokenize", {"tokens": [2**70]}, f"tokens[0] must be at most 2147483647, got {2**70}"),
        (
            "v1/rerank",
            {"query": "q", "documents": [1]},
            "documents[0] must be a string or an object with a text, got 1",
        ),
        ("v1/rerank", {"query": "q", "documents": [dict[str, str]()]}, "documents[0].text is required"),
        ("v1/score", {"text_1": None, "text_2": "a"}, "text_1 must be a string or a list of strings, got null"),
        ("v1/score", {"text_1": "a", "text_2": [1]}, "text_2[0] must be a string, got 1"),
    ],
)
async def test_a_limit_is_told_beside_what_was_given(
    http: httpx2.AsyncClient, path: str, body: dict[str, Any], message: str
) -> None:
    response = await http.post(f"/{path}", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == message


@pytest.mark.parametrize(
    ("body", "kind"), [("null", "null"), ("[]", "a list"), ('"a"', "a string"), ("1", "a number"), ("true", "true")]
)
async def test_a_body_that_is_no_object_is_called_what_it_is_in_json(
    http: httpx2.AsyncClient, body: str, kind: str
) -> None:
    response = await http.post("/v1/chat/completions", content=body)
    assert response.json()["error"]["message"] == f"The request body must be a JSON object, got {kind}"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "models/load",
            {"model": "m", "name": "a\nb"},
            'name must match the pattern ^[^\\s\\x00-\\x1f\\x7f]+$, got "a\\nb"',
        ),
        ("models/load", {"model": "m", "name": "a" * 257}, "name must have at most 256 characters, got 257"),
        ("workers/restart", {"worker": 1}, "unknown parameter 'worker'; none is allowed here"),
        ("reload", {"config": "x"}, "unknown parameter 'config'; none is allowed here"),
        ("cache/clear", {"model": "x"}, "unknown parameter 'model'; none is allowed here"),
        ("aliases/configured/rollback", {"steps": 2}, "unknown parameter 'steps'; none is allowed here"),
        ("workers/restart", [], "The request body must be a JSON object, got a list"),
    ],
)
async def test_the_operator_is_told_as_well(path: str, body: object, message: str) -> None:
    async with in_process(ScriptedEngine(), ADMIN) as http:
        response = await http.post(f"/admin/{path}", json=body, headers={"x-api-key": "secret"})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == message


@pytest.mark.parametrize("content", ["", "{}", " \n"])
async def test_a_body_that_says_nothing_is_no_parameter(content: str) -> None:
    engine = ScriptedEngine()
    async with in_process(engine, ADMIN) as http:
        response = await http.post("/admin/workers/restart", content=content, headers={"x-api-key": "secret"})
    assert response.status_code == 200
    assert engine.restarts == 1


async def test_no_top_k_may_be_written_as_vllm_writes_it(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    assert (await http.post("/v1/chat/completions", json={**CHAT, "top_k": -1})).status_code == 200
    assert engine.last_request.sampling.top_k == 0
    refused = await http.post("/v1/chat/completions", json={**CHAT, "top_k": -2})
    assert refused.json()["error"]["message"] == "top_k must be a whole number of at least 0, got -2"


async def test_no_encoding_format_is_the_default_one(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/embeddings", json={"input": "a", "encoding_format": None})
    assert isinstance(response.json()["data"][0]["embedding"], list)


@pytest.mark.parametrize("path", ["/", "/health", "/health/live", "/v1/models", "/v1/models/tiny", "/openapi.json"])
async def test_head_is_get_without_the_body(http: httpx2.AsyncClient, path: str) -> None:
    get, head = await http.get(path), await http.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_head_takes_nothing_away_and_posts_nothing(http: httpx2.AsyncClient) -> None:
    assert (await http.head("/v1/resumed/x")).status_code == 405
    assert (await http.head("/v1/chat/completions")).status_code == 405


async def test_a_model_without_a_name_is_not_the_default_one(http: httpx2.AsyncClient) -> None:
    response = await http.get("/v1/models/")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"
