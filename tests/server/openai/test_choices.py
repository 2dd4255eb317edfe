"""Several answers to one conversation."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from mlx_serving.core.generation import FinishReason
from mlx_serving.errors import GenerationError, Overloaded
from mlx_serving.server.openai.documents import ChatCompletion, ChatCompletionChunk

from ..scripted_engine import PROMPT_TOKENS, Script, ScriptedEngine

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
BODY: dict[str, object] = {"messages": HELLO, "n": 3}
THREE = (Script(("a", "b")), Script(("c",), finish=FinishReason.LENGTH), Script((), "d"))


def _events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


async def test_a_whole_answer_has_the_choices_in_order_and_the_usage_of_all(
    client: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.scripts = [*THREE]
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, n=3)

    assert [(each.index, each.message.content, each.finish_reason) for each in answer.choices] == [
        (0, "ab", "stop"), (1, "c", "length"), (2, "d", "stop"),
    ]  # fmt: skip
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        PROMPT_TOKENS, 3, PROMPT_TOKENS + 3,
    )  # fmt: skip


async def test_a_stream_has_role_text_and_reason_of_each_choice_and_one_usage(
    client: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.scripts = [*THREE]
    stream = await client.chat.completions.create(
        model="tiny", messages=HELLO, n=3, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]

    deltas = [[chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index] for index in range(3)]
    assert [[each.delta.role for each in choice] for choice in deltas] == [
        ["assistant", None, None, None], ["assistant", None, None], ["assistant", None, None],
    ]  # fmt: skip
    assert ["".join(each.delta.content or "" for each in choice) for choice in deltas] == ["ab", "c", "d"]
    assert [[each.finish_reason for each in choice if each.finish_reason] for choice in deltas] == [
        ["stop"], ["length"], ["stop"],
    ]  # fmt: skip
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (PROMPT_TOKENS, 3)


async def test_the_clients_stream_helper_assembles_all_choices(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.scripts = [Script(("a", "b")), Script(("c",)), Script(("d",))]
    async with client.chat.completions.stream(model="tiny", messages=HELLO, n=3) as stream:
        final = await stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["ab", "c", "d"]


async def test_the_bytes_are_the_documented_ones(http: httpx2.AsyncClient) -> None:
    whole = await http.post("/v1/chat/completions", json=BODY)
    ChatCompletion.model_validate_json(whole.content, strict=True)

    streamed = await http.post("/v1/chat/completions", json={**BODY, "stream": True})
    *chunks, done = _events(streamed.text)
    assert done == "[DONE]"
    assert "[DONE]" not in chunks
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(chunk, strict=True)


async def test_every_choice_is_a_request_of_its_own_with_a_seed_of_its_own(
    client: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=5)

    requests = [run.request for run in engine.runs]
    assert [request.request_id for request in requests] == [answer.id, f"{answer.id}-1", f"{answer.id}-2"]
    assert [request.fork_of for request in requests] == [None, answer.id, answer.id]
    assert len({str(request.prompt) for request in requests}) == 1
    assert requests[0].sampling.seed == 5
    assert len({request.sampling.seed for request in requests}) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_when_one_choice_is_refused_all_are(
    http: httpx2.AsyncClient, engine: ScriptedEngine, stream: bool
) -> None:
    engine.scripts = [Script(hang=True), Script(hang=True), Script(refusal=Overloaded("busy", retry_after=1.2))]
    response = await http.post("/v1/chat/completions", json={**BODY, "stream": stream})

    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["error"]["code"] == "overloaded"
    assert [run.aborted for run in engine.runs] == [True] * 3


async def test_the_first_failure_ends_a_stream_with_a_typed_error(
    http: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.scripts = [Script(hang=True), Script(("c",), failure=GenerationError("bad")), Script(hang=True)]
    response = await http.post("/v1/chat/completions", json={**BODY, "stream": True})

    *_, last = _events(response.text)
    assert json.loads(last)["error"]["code"] == "generation_failed"
    assert '"content":"c"' in response.text
    assert [run.aborted for run in engine.runs] == [True] * 3


async def test_the_first_failure_is_the_answer_that_is_not_streamed(
    client: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.scripts = [Script(), Script(failure=GenerationError("bad")), Script(hang=True)]
    with pytest.raises(openai.InternalServerError) as raised:
        await client.chat.completions.create(model="tiny", messages=HELLO, n=3)
    assert raised.value.code == "generation_failed"
    assert engine.runs[2].aborted


async def test_a_choice_that_somebody_aborts_ends_the_answer(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.scripts = [Script(finish=FinishReason.ABORT), Script(hang=True), Script(hang=True)]
    response = await http.post("/v1/chat/completions", json=BODY)
    assert response.json()["error"]["code"] == "aborted"
    assert [run.aborted for run in engine.runs[1:]] == [True, True]


async def test_each_choice_has_log_probabilities_of_its_own(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.scripts = [Script(("a", "b")), Script(("cd",))]
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, n=2, logprobs=True)
    told = [choice.logprobs for choice in answer.choices]
    assert [[entry.token for entry in one.content or ()] for one in told if one is not None] == [["a", "b"], ["cd"]]


async def test_offsets_begin_anew_in_each_choice_of_a_streamed_text(
    client: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.scripts = [Script(("ab", "c")), Script(("d", "e"))]
    stream = await client.completions.create(model="tiny", prompt="Once", n=2, logprobs=0, stream=True)
    offsets: dict[int, list[int]] = {0: [], 1: []}
    async for chunk in stream:
        for choice in chunk.choices:
            if choice.logprobs is not None:
                offsets[choice.index] += choice.logprobs.text_offset or []
    assert offsets == {0: [0, 2], 1: [0, 1]}
