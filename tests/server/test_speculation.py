"""What may be asked of drafting over HTTP, and how its outcome is told."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from mlx_serving.core.speculation.request import Speculation
from mlx_serving.server.openai.documents import ChatCompletion
from mlx_serving.server.settings import ServerSettings

from .conftest import LogLines, in_process
from .scripted_engine import Script, ScriptedEngine

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "tiny", "prompt": "Hi"}
DRAFTED = Script(drafted=("draft", 12, 9))


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, Speculation()),
        ({"draft_model": "org/other", "num_draft_tokens": 4}, Speculation("auto", "org/other", 4)),
        ({"speculation": "ngram"}, Speculation("ngram")),
        ({"speculation": None, "draft_model": None, "num_draft_tokens": None}, Speculation()),
    ],
)
async def test_what_is_asked_reaches_the_engine(
    http: httpx2.AsyncClient,
    engine: ScriptedEngine,
    path: str,
    body: dict[str, Any],
    asked: dict[str, Any],
    expected: Speculation,
) -> None:
    assert (await http.post(path, json={**body, **asked})).status_code == 200
    assert engine.last_request.speculation == expected


@pytest.mark.parametrize("content", ["so it is", [{"type": "text", "text": "so "}, {"type": "text", "text": "it is"}]])
async def test_a_prediction_reaches_the_engine(
    http: httpx2.AsyncClient, engine: ScriptedEngine, content: object
) -> None:
    body = {**CHAT, "prediction": {"type": "content", "content": content}}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert engine.last_request.speculation == Speculation(prediction="so it is")
    refused = await http.post("/v1/completions", json={**TEXT, "prediction": body["prediction"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prediction")


@pytest.mark.parametrize(
    ("asked", "param", "told"),
    [
        (
            {"speculation": "off", "prediction": {"type": "content", "content": "x"}},
            "prediction",
            "prediction is only allowed when speculation is auto or ngram, got off",
        ),
        (
            {"prediction": {"type": "content", "content": 3}},
            "prediction.content",
            "prediction.content must be a string or a list of text parts, got 3",
        ),
        (
            {"prediction": {"type": "magic", "content": "x"}},
            "prediction.type",
            "prediction.type must be 'content', got \"magic\"",
        ),
        (
            {"speculation": "off", "draft_model": "tiny"},
            "draft_model",
            "draft_model is only allowed when speculation is auto or draft, got off",
        ),
        (
            {"speculation": "magic"},
            "speculation",
            "speculation must be 'auto', 'off', 'ngram' or 'draft', got \"magic\"",
        ),
        ({"num_draft_tokens": 0}, "num_draft_tokens", "num_draft_tokens must be at least 1, got 0"),
        ({"num_draft_tokens": 33}, "num_draft_tokens", "num_draft_tokens must be at most 32, got 33"),
        ({"draft_model": ""}, "draft_model", "draft_model must not be empty"),
        ({"draft_model": 7}, "draft_model", "draft_model must be a string, got 7"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_name(
    http: httpx2.AsyncClient, engine: ScriptedEngine, asked: dict[str, Any], param: str, told: str
) -> None:
    response = await http.post("/v1/chat/completions", json={**CHAT, **asked})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["message"]) == (400, param, told)
    assert engine.runs == []


async def test_the_usage_tells_what_was_drafted(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = DRAFTED
    answer = await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}], n=2)
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (18, 6)
    assert details.model_dump()["speculation"] == "draft"


async def test_a_document_with_drafts_is_as_it_is_described(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = DRAFTED
    response = await http.post("/v1/chat/completions", json=CHAT)
    usage = ChatCompletion.model_validate_json(response.content).usage
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.speculation == "draft"
    assert response.headers["x-speculation"] == "draft; drafted=12; accepted=9"


async def test_a_stream_tells_it_with_its_usage(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = DRAFTED
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    response = await http.post("/v1/chat/completions", json=body)
    last = json.loads(response.text.split("\n\n")[-3].removeprefix("data: "))
    assert last["usage"]["completion_tokens_details"] == {
        "accepted_prediction_tokens": 9,
        "rejected_prediction_tokens": 3,
        "speculation": "draft",
    }


async def test_why_nobody_drafted_is_told(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.script = Script(drafted=("structured", 0, 0))
    response = await http.post("/v1/chat/completions", json=CHAT)
    assert response.headers["x-speculation"] == "structured"
    assert response.json()["usage"]["completion_tokens_details"]["speculation"] == "structured"
    engine.script = Script()
    response = await http.post("/v1/chat/completions", json=CHAT)
    assert "x-speculation" not in response.headers
    assert "completion_tokens_details" not in response.json()["usage"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_other_apis_tell_it_in_a_header(http: httpx2.AsyncClient, engine: ScriptedEngine, path: str) -> None:
    engine.script = DRAFTED
    asked = {**CHAT, "max_tokens": 5} if path == "/v1/messages" else {"model": "tiny", "input": "Hi"}
    response = await http.post(path, json=asked)
    assert response.headers["x-speculation"] == "draft; drafted=12; accepted=9"


async def test_the_log_tells_it(log_lines: LogLines) -> None:
    engine = ScriptedEngine()
    engine.script = DRAFTED
    async with in_process(engine, ServerSettings()) as http:
        await http.post("/v1/chat/completions", json=CHAT)
    (line,) = [line for line in log_lines if line["event"] == "request"]
    assert (line["speculation"], line["drafted_tokens"], line["accepted_tokens"]) == ("draft", 12, 9)
