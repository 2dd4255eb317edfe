from __future__ import annotations

import json

import httpx2
import pytest
from openai import AsyncOpenAI

from mlx_serving.core.generation import TextPrompt, TokenPrompt
from mlx_serving.server.openai_documents import Completion

from .scripted_engine import PROMPT_TOKENS, ScriptedEngine


async def test_a_whole_completion(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.completions.create(model="tiny", prompt="Once")

    assert answer.choices[0].text == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert answer.usage.total_tokens == PROMPT_TOKENS + 2
    assert engine.last_request.prompt == TextPrompt("Once")


async def test_a_streamed_completion_with_usage(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="tiny", prompt="Once", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["Hello", " world", ""]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


async def test_the_bytes_are_the_documented_ones(http: httpx2.AsyncClient) -> None:
    whole = await http.post("/v1/completions", json={"prompt": "Once"})
    Completion.model_validate_json(whole.content, strict=True)

    streamed = await http.post("/v1/completions", json={"prompt": "Once", "stream": True})
    *chunks, done = [event.removeprefix("data: ") for event in streamed.text.split("\n\n") if event]
    assert done == "[DONE]"
    for chunk in chunks:
        Completion.model_validate_json(chunk, strict=True)


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]]])
async def test_token_ids_are_used_as_they_are(
    http: httpx2.AsyncClient, engine: ScriptedEngine, prompt: list[object]
) -> None:
    response = await http.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 200
    assert engine.last_request.prompt == TokenPrompt((1, 2, 3))


async def test_a_list_of_one_text_is_that_text(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    await http.post("/v1/completions", json={"prompt": ["Once"]})
    assert engine.last_request.prompt == TextPrompt("Once")


@pytest.mark.parametrize("max_tokens", [{}, {"max_tokens": None}])
async def test_16_tokens_are_the_default(
    http: httpx2.AsyncClient, engine: ScriptedEngine, max_tokens: dict[str, object]
) -> None:
    await http.post("/v1/completions", json={"prompt": "Once", **max_tokens})
    assert engine.last_request.sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (["a", "b"], "prompt must be one prompt, got 2: send a request for each"),
        ([[1], [2], [3]], "prompt must be one prompt, got 3: send a request for each"),
        ("", "prompt must not be empty"),
        ([], "prompt must not be empty"),
        ([1, "a"], 'prompt[1] must be an integer, got "a"'),
        ([1, -1], "prompt[1] must be at least 0, got -1"),
        ([True], "prompt[0] must be an integer, got true"),
        (5, "prompt must be a string or a list of token ids, got 5"),
        (None, "prompt must be a string or a list of token ids, got null"),
    ],
)
async def test_a_wrong_prompt_is_refused(http: httpx2.AsyncClient, prompt: object, message: str) -> None:
    response = await http.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == message


async def test_a_missing_prompt_is_named(http: httpx2.AsyncClient) -> None:
    error = (await http.post("/v1/completions", json={})).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


async def test_the_parameters_of_chats_are_unknown_here(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/completions", content=json.dumps({"prompt": "a", "messages": []}))
    assert response.json()["error"]["code"] == "unknown_parameter"
