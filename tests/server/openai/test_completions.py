from __future__ import annotations

import dataclasses
import json

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from mlx_serving.core.generation import FinishReason, Prompt, TextPrompt, TokenPrompt
from mlx_serving.server.openai.documents import Completion

from ..scripted_engine import PROMPT_TOKENS, TINY, Script, ScriptedEngine

A_PROMPT = "a string, a list of token ids, or a list of several of either"


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


async def test_log_probabilities_whole_and_streamed(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(model="tiny", prompt="Once", logprobs=1)
    told = whole.choices[0].logprobs
    assert told is not None
    assert (told.tokens, told.token_logprobs, told.text_offset) == (["Hello", " world"], [-1.0, -1.0], [0, 5])
    assert told.top_logprobs == [{"other0": -2.0, "Hello": -1.0}, {"other0": -2.0, " world": -1.0}]

    stream = await client.completions.create(model="tiny", prompt="Once", logprobs=0, stream=True)
    pieces = [chunk.choices[0].logprobs async for chunk in stream]
    assert [piece and (piece.tokens, piece.text_offset) for piece in pieces] == [
        (["Hello"], [0]), ([" world"], [5]), None,
    ]  # fmt: skip


async def test_the_bytes_with_log_probabilities_are_the_documented_ones(http: httpx2.AsyncClient) -> None:
    asked = {"prompt": "Once", "logprobs": 2}
    whole = await http.post("/v1/completions", json=asked)
    Completion.model_validate_json(whole.content, strict=True)
    streamed = await http.post("/v1/completions", json={**asked, "stream": True})
    for event in [event.removeprefix("data: ") for event in streamed.text.split("\n\n") if event][:-1]:
        Completion.model_validate_json(event, strict=True)


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


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        (["a", "b"], [TextPrompt("a"), TextPrompt("b")]),
        ([[1, 2], [3]], [TokenPrompt((1, 2)), TokenPrompt((3,))]),
    ],
)
async def test_several_prompts_are_answered_prompt_by_prompt(
    client: AsyncOpenAI, engine: ScriptedEngine, prompt: list[str], prompts: list[Prompt]
) -> None:
    engine.scripts = [Script((text,)) for text in ("a0", "a1", "b0", "b1")]
    answer = await client.completions.create(model="tiny", prompt=prompt, n=2)

    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1")]
    assert [run.request.prompt for run in engine.runs] == [each for each in prompts for _ in range(2)]
    assert [run.request.fork_of for run in engine.runs] == [None, answer.id, None, f"{answer.id}-2"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2 * PROMPT_TOKENS, 4)


async def test_several_prompts_are_streamed_with_the_index_of_their_choices(
    client: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.scripts = [Script(("a", "a")), Script(("b", "b", "b"))]
    stream = await client.completions.create(model="tiny", prompt=["x", "y"], stream=True)
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["aa", "bbb"]


async def test_the_best_answers_come_first_and_all_are_paid_for(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.scripts = [
        Script(("worst", "!"), logprob=-3.0),
        Script(("best",), logprob=-0.5),
        Script(("second", "!", "!"), logprob=-1.0, finish=FinishReason.LENGTH),
    ]
    answer = await client.completions.create(model="tiny", prompt="x", n=2, best_of=3)

    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "best", "stop"), (1, "second!!", "length"),
    ]  # fmt: skip
    assert all(choice.logprobs is None for choice in answer.choices)  # nobody asked for them
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 6)


async def test_the_best_of_several_prompts_are_chosen_for_each(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    logprobs = {"a0": -2.0, "a1": -1.0, "b0": -2.0, "b1": -3.0}
    engine.scripts = [Script((text,), logprob=logprob) for text, logprob in logprobs.items()]
    answer = await client.completions.create(model="tiny", prompt=["a", "b"], best_of=2)
    assert [choice.text for choice in answer.choices] == ["a1", "b0"]


async def test_the_best_cannot_be_streamed(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.completions.create(model="tiny", prompt="x", best_of=2, stream=True)
    assert raised.value.param == "best_of"
    assert engine.runs == []


@pytest.mark.parametrize("max_tokens", [{}, {"max_tokens": None}])
async def test_16_tokens_are_the_default(
    http: httpx2.AsyncClient, engine: ScriptedEngine, max_tokens: dict[str, object]
) -> None:
    await http.post("/v1/completions", json={"prompt": "Once", **max_tokens})
    assert engine.last_request.sampling.max_tokens == 16
    assert engine.last_request.cut_to_fit


async def test_16_tokens_give_way_to_a_longer_minimum(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    await http.post("/v1/completions", json={"prompt": "Once", "min_tokens": 20})
    assert engine.last_request.sampling.max_tokens == 20


async def test_16_tokens_give_way_to_what_the_operator_says(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.models = [dataclasses.replace(TINY, profile={"max_tokens": 200})]
    await http.post("/v1/completions", json={"prompt": "Once"})
    assert engine.last_request.sampling.max_tokens is None
    await http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 5})
    assert engine.last_request.sampling.max_tokens == 5
    assert not engine.last_request.cut_to_fit


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (["a", ""], "prompt[1] must not be empty"),
        (["a", 5], "prompt[1] must be a string, got 5"),
        (["a", [5]], "prompt[1] must be a string, got [5]"),
        ([[1], []], "prompt[1] must not be empty"),
        ([[1], "a"], 'prompt[1] must be a list, got "a"'),
        ([[1], [2, -1]], "prompt[1][1] must be at least 0, got -1"),
        ("", "prompt must not be empty"),
        ([], "prompt must not be empty"),
        ([1, "a"], 'prompt[1] must be an integer, got "a"'),
        ([1, -1], "prompt[1] must be at least 0, got -1"),
        ([1, 2**31], "prompt[1] must be at most 2147483647, got 2147483648"),
        ([[10**30]], f"prompt[0][0] must be at most 2147483647, got {10**30}"),
        ([True], "prompt[0] must be an integer, got true"),
        (5, f"prompt must be {A_PROMPT}, got 5"),
        (None, f"prompt must be {A_PROMPT}, got null"),
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
