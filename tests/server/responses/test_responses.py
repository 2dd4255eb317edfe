"""OpenAI's own client and its Responses API against a real server with a scripted engine."""

from __future__ import annotations

import json
from typing import Any, cast

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import FunctionToolParam, Response
from pydantic import BaseModel

from mlx_serving.core.generation import (
    ChatPrompt,
    Delta,
    FinishReason,
    SamplingParams,
    Structure,
    ToolCallDelta,
    ToolChoice,
)
from mlx_serving.core.response_store import StorePolicy
from mlx_serving.errors import GenerationError, Overloaded
from mlx_serving.server.responses.documents import InputItemList, ResponseDocument
from mlx_serving.server.settings import ServerSettings

from ..conftest import in_process
from ..scripted_engine import PROMPT_TOKENS, Script, ScriptedEngine

WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "description": "The weather at a place",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
THOUGHT = Script(pieces=(Delta("", reasoning="Let me "), Delta("", reasoning="think."), "The ", "answer"))
CALLED = Script(
    pieces=(
        Delta("", tool_calls=(ToolCallDelta(0, "call-1", "weather", '{"city": '),)),
        Delta("", tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),)),
        Delta("", tool_calls=(ToolCallDelta(1, "call-2", "weather", '{"city": "Rome"}'),)),
    ),
    finish=FinishReason.TOOL_CALLS,
)


def _prompt(engine: ScriptedEngine) -> ChatPrompt:
    prompt = engine.last_request.prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


def _events(text: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for block in text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    return events


# -- answers


async def test_a_salt_reaches_the_engine(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    await client.responses.create(model="tiny", input="Hi", extra_body={"cache_salt": "tenant"})
    await client.responses.create(model="tiny", input="Hi")
    assert [run.request.cache_salt for run in engine.runs] == ["tenant", ""]


async def test_a_whole_response(client: AsyncOpenAI) -> None:
    response = await client.responses.create(model="tiny", input="Hi")
    assert response.output_text == "Hello world"
    assert (response.status, response.object, response.model) == ("completed", "response", "tiny")
    assert response.id.startswith("resp_")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (PROMPT_TOKENS, 2)
    assert response.usage.input_tokens_details.cached_tokens == 0


async def test_the_usage_tells_how_much_of_the_prompt_was_kept(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = Script(cached_tokens=2)
    response = await client.responses.create(model="tiny", input="Hi")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens) == (PROMPT_TOKENS, 2)


@pytest.mark.parametrize(
    "script", [Script(), THOUGHT, CALLED, Script(finish=FinishReason.LENGTH), Script(pieces=("",))]
)
async def test_the_answer_is_the_documented_one(
    http: httpx2.AsyncClient, engine: ScriptedEngine, script: Script
) -> None:
    engine.script = script
    response = await http.post("/v1/responses", json={"input": "Hi", "include": ["reasoning.encrypted_content"]})
    ResponseDocument.model_validate_json(response.content, strict=True)
    streamed = await http.post("/v1/responses", json={"input": "Hi", "stream": True})
    for event in _events(streamed.text):
        if "response" in event:
            ResponseDocument.model_validate(event["response"], strict=True)


async def test_running_out_of_tokens_makes_it_incomplete(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = Script(finish=FinishReason.LENGTH)
    response = await client.responses.create(model="tiny", input="Hi", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.model_dump()["output"][0]["status"] == "incomplete"


async def test_the_events_come_in_the_documented_order_and_are_numbered(
    http: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.script = THOUGHT
    events = _events((await http.post("/v1/responses", json={"input": "Hi", "stream": True})).text)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] == 2


async def test_calls_of_functions_are_items(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = CALLED
    response = await client.responses.create(model="tiny", input="Hi", tools=[WEATHER])
    async with client.responses.stream(model="tiny", input="Hi", tools=[WEATHER]) as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_response()
    assert kinds.count("response.function_call_arguments.delta") == 3
    assert kinds.count("response.function_call_arguments.done") == 2
    for output in (response.output, streamed.output):
        calls = [(item.call_id, item.name, item.arguments) for item in output if item.type == "function_call"]
        assert calls == [("call-1", "weather", '{"city": "Oslo"}'), ("call-2", "weather", '{"city": "Rome"}')]


async def test_the_stream_helper_assembles_the_response(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = THOUGHT
    async with client.responses.stream(model="tiny", input="Hi") as stream:
        texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert texts == ["The ", "answer"]
    assert final.output_text == "The answer"
    reasoning = final.output[0]
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert reasoning.content[0].text == "Let me think."


async def test_parsed_output(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    class City(BaseModel):
        name: str

    engine.script = Script(pieces=('{"name": ', '"Oslo"}'))
    parsed = await client.responses.parse(model="tiny", input="Hi", text_format=City)
    assert parsed.output_parsed == City(name="Oslo")
    structure = engine.last_request.structure
    assert structure is not None
    assert structure.kind == "json_schema"


async def test_log_probabilities_when_they_are_asked_for(client: AsyncOpenAI) -> None:
    response = await client.responses.create(
        model="tiny", input="Hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    logprobs = response.model_dump()["output"][0]["content"][0]["logprobs"]
    assert [place["token"] for place in logprobs] == ["Hello", " world"]
    assert len(logprobs[0]["top_logprobs"]) == 2


# -- conversations


async def test_a_conversation_goes_on_from_a_stored_response(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.scripts = [THOUGHT, CALLED]
    first = await client.responses.create(model="tiny", input="One", instructions="Be brief")
    second = await client.responses.create(model="tiny", input="Two", previous_response_id=first.id, tools=[WEATHER])
    results: Any = [
        {"type": "function_call_output", "call_id": "call-1", "output": "Rain"},
        {"type": "function_call_output", "call_id": "call-2", "output": [{"type": "input_text", "text": "Sun"}]},
    ]
    async with client.responses.stream(model="tiny", input=results, previous_response_id=second.id) as stream:
        assert (await stream.get_final_response()).output_text == "Hello world"
    assert _prompt(engine).messages == (
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "The answer", "reasoning_content": "Let me think."},
        {"role": "user", "content": "Two"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}},
                {"id": "call-2", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "call-1", "content": "Rain", "name": "weather"},
        {"role": "tool", "tool_call_id": "call-2", "content": "Sun", "name": "weather"},
    )


async def test_a_stateless_conversation_gives_the_items_back(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = THOUGHT
    asked: dict[str, Any] = {"model": "tiny", "store": False, "include": ["reasoning.encrypted_content"]}
    first = cast("Response", await client.responses.create(**asked, input="One"))
    items = [item.model_dump(exclude_none=True, by_alias=True) for item in first.output]
    del items[0]["content"]  # clients that keep the encoded form only
    given: Any = [{"role": "user", "content": "One"}, *items, {"role": "user", "content": "Two"}]
    await client.responses.create(**asked, input=given)
    assert _prompt(engine).messages[1] == {
        "role": "assistant", "content": "The answer", "reasoning_content": "Let me think.",
    }  # fmt: skip
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)


async def test_stored_responses_are_retrieved_listed_and_deleted(client: AsyncOpenAI) -> None:
    created = await client.responses.create(
        model="tiny",
        input=[{"role": "user", "content": "One"}, {"role": "developer", "content": "Two"}],
        metadata={"a": "b"},
    )
    retrieved = await client.responses.retrieve(created.id)
    assert retrieved == created
    assert retrieved.metadata == {"a": "b"}
    listed = await client.responses.input_items.list(created.id, order="asc", limit=1)
    assert listed.has_more
    everything = [item async for item in listed]
    assert [item.model_dump()["content"][0]["text"] for item in everything] == ["One", "Two"]
    await client.responses.delete(created.id)
    for gone in (client.responses.retrieve(created.id), client.responses.delete(created.id)):
        with pytest.raises(openai.NotFoundError):
            await gone


async def test_a_response_is_kept_when_its_stream_ends(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="tiny", input="Hi") as stream:
        final = await stream.get_final_response()
    assert (await client.responses.retrieve(final.id)).output_text == "Hello world"


async def test_another_key_does_not_see_it(client: AsyncOpenAI) -> None:
    created = await client.responses.create(model="tiny", input="Hi")
    stranger = client.with_options(api_key="another")
    with pytest.raises(openai.NotFoundError):
        await stranger.responses.retrieve(created.id)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        await stranger.responses.create(model="tiny", input="Hi", previous_response_id=created.id)


async def test_the_oldest_response_makes_room() -> None:
    settings = ServerSettings(stored_responses=StorePolicy(max_entries=1), access_log=False)
    async with in_process(ScriptedEngine(), settings) as http:
        ids = [(await http.post("/v1/responses", json={"input": "Hi"})).json()["id"] for _ in range(2)]
        statuses = [(await http.get(f"/v1/responses/{each}")).status_code for each in ids]
    assert statuses == [404, 200]


# -- requests


async def test_the_request_reaches_the_engine_as_it_was_asked(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    given: Any = [
        {"role": "developer", "content": [{"type": "input_text", "text": "and kind"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
    ]
    response = await client.responses.create(
        model="tiny",
        instructions="Be brief",
        input=given,
        max_output_tokens=5,
        temperature=0.5,
        top_p=0.9,
        tools=[WEATHER, {**WEATHER, "name": "other", "strict": False}],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        reasoning={"effort": "low", "summary": "auto"},
        user="bob",
    )
    request = engine.last_request
    assert request.sampling == SamplingParams(max_tokens=5, temperature=0.5, top_p=0.9)
    assert request.tool_choice == ToolChoice("required", parallel=False)
    assert request.structure == Structure("json_schema", {"type": "object"})
    assert request.reasoning_budget == 2048
    assert request.caller == "bob"
    assert request.parse_output
    prompt = _prompt(engine)
    assert prompt.messages == (
        {"role": "system", "content": "Be brief\nand kind"},
        {"role": "user", "content": "a\nb"},
    )
    tools: Any = prompt.tools
    assert [tool["function"]["name"] for tool in tools] == ["weather"]
    assert prompt.template_kwargs["reasoning_effort"] == "low"
    assert response.reasoning is not None
    assert response.reasoning.effort == "low"
    assert response.max_output_tokens == 5


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]", "input_text"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "function_call_output"),
    ({"input": []}, "input", "must not be empty"),
    ({"input": 5}, "input", "a string or a list"),
    ({"input": [{"type": "reasoning", "encrypted_content": "gAAAA"}]}, "input[0].encrypted_content", "pattern"),
    ({"input": [{"type": "reasoning", "encrypted_content": "mlx-serving:!"}]}, "input[0].encrypted_content", "sent"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]}, "input[0].arg", "JSON"),
    ({"background": True}, "background", "not supported"),
    ({"conversation": "c"}, "conversation", "not supported"),
    ({"truncation": "auto"}, "truncation", "disabled"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]", "of the type function"),
    ({"tools": [WEATHER, WEATHER]}, "tools", "more than once"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice", "not supported"),
    ({"include": ["file_search_call.results"]}, "include[0]", "logprobs"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "auto"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
    ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ({"top_logprobs": 21}, "top_logprobs", "at most 20"),
    ({"stream_options": {}}, "stream_options", "when stream is true"),
    ({"previous_response_id": "resp_x"}, "previous_response_id", "not stored"),
    ({"metadata": {"k" * 65: "v"}}, "metadata", "64"),
    ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "named"), REFUSALS)
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx2.AsyncClient, fields: dict[str, Any], field: str, named: str
) -> None:
    response = await http.post("/v1/responses", json={"input": "Hi", **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"].startswith(field)
    assert named in error["message"]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "order=up", "after=nothing", "include=x"])
async def test_a_listing_names_what_is_wrong_with_its_parameters(http: httpx2.AsyncClient, query: str) -> None:
    created = (await http.post("/v1/responses", json={"input": "Hi"})).json()
    response = await http.get(f"/v1/responses/{created['id']}/input_items?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == query.partition("=")[0]


async def test_a_listing_is_the_documented_one(http: httpx2.AsyncClient) -> None:
    given = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    created = (await http.post("/v1/responses", json={"input": given})).json()
    response = await http.get(f"/v1/responses/{created['id']}/input_items")
    listed = InputItemList.model_validate_json(response.content, strict=True)
    assert [item["role"] for item in listed.data] == ["assistant", "user"]


# -- errors


async def test_errors_before_the_stream_are_responses_of_their_own(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = Script(refusal=Overloaded("busy", retry_after=1))
    with pytest.raises(openai.InternalServerError, match="busy"):
        await client.responses.create(model="tiny", input="Hi", stream=True)


async def test_a_failure_in_a_stream_is_its_last_event(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.script = Script(failure=GenerationError("broken"))
    stream = await client.responses.create(model="tiny", input="Hi", stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert (last.response.error.code, last.response.error.message) == ("server_error", "broken")
    assert last.response.output_text == "Hello world"
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(last.response.id)
