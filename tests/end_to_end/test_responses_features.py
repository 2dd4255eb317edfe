"""The Responses API as OpenAI's client documents it, with the model of `actor`, which calls tools and thinks on cue."""

from __future__ import annotations

import json
from typing import Any, Literal, cast

import openai
import pytest
from openai import AsyncOpenAI
from openai.lib.responses_tool_runner import AsyncRegisteredFunction, AsyncResponsesToolRunner
from openai.types.responses import Response
from pydantic import BaseModel

from .actor import REPORT, TALK


class Verdict(BaseModel):
    word: Literal["good", "bad"]


TOOL: Any = {
    "type": "function",
    "name": "look_up",
    "parameters": {
        "type": "object",
        "properties": {"what": {"enum": ["cats", "dogs"]}},
        "required": ["what"],
        "additionalProperties": False,
    },
}


async def test_the_stream_helper_tells_of_text(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="actor", input="Hello") as stream:
        events = [event async for event in stream]
        done = await stream.get_final_response()
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TALK
    assert (done.output_text, done.status) == (TALK, "completed")
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_reasoning_is_an_item_before_the_answer(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="actor", input="Hello", reasoning={"effort": "low"}) as stream:
        thought = [event.delta async for event in stream if event.type == "response.reasoning_text.delta"]
        done = await stream.get_final_response()
    assert "".join(thought) == "A greeting, I greet back."
    assert [item.type for item in done.output] == ["reasoning", "message"]
    assert done.output_text == "Good day."
    assert done.usage is not None
    assert done.usage.output_tokens_details.reasoning_tokens > 0


async def test_a_loop_of_tools_goes_on_from_the_stored_response(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="actor", input="How do cats sleep?", tools=[TOOL])
    [call] = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"what": "cats"}
    last = await client.responses.create(
        model="actor",
        tools=[TOOL],
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "A lot."}],
    )
    assert last.output_text == REPORT
    listed = [item.type async for item in client.responses.input_items.list(last.id)]
    assert listed == ["function_call_output"]


async def test_a_loop_of_tools_without_the_server_remembering(client: AsyncOpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "How do cats sleep?"}]
    first = await client.responses.create(
        model="actor", input=asked, tools=[TOOL], store=False, reasoning={"effort": "low"},
        include=["reasoning.encrypted_content"],
    )  # fmt: skip
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    [call] = [item for item in first.output if item.type == "function_call"]
    asked += [item.model_dump(exclude_none=True) for item in first.output]
    asked.append({"type": "function_call_output", "call_id": call.call_id, "output": "A lot."})
    last = await client.responses.create(model="actor", input=asked, tools=[TOOL], store=False)
    assert last.output_text == REPORT


@pytest.mark.parametrize("stream", [False, True])
async def test_the_tool_runner_calls_and_reports(client: AsyncOpenAI, stream: bool) -> None:
    looked_up: list[object] = []

    async def look_up(arguments: dict[str, object]) -> str:
        looked_up.append(arguments["what"])
        return "A lot."

    strict: Any = TOOL | {"strict": True}
    runner = AsyncResponsesToolRunner(functions=[AsyncRegisteredFunction(strict, look_up)])
    last = await runner.run(client, {"model": "actor", "input": "How do cats sleep?"}, stream=stream, max_steps=3)
    assert (looked_up, last.output_text) == (["cats"], REPORT)


async def test_a_call_can_be_forced_and_streams_its_arguments(client: AsyncOpenAI) -> None:
    async with client.responses.stream(
        model="actor", input="Hello", tools=[TOOL], tool_choice={"type": "function", "name": "look_up"}
    ) as stream:
        pieces = [event.delta async for event in stream if event.type == "response.function_call_arguments.delta"]
        done = await stream.get_final_response()
    [call] = done.output
    assert call.type == "function_call"
    assert json.loads("".join(pieces)) == json.loads(call.arguments)


async def test_parsed_output(client: AsyncOpenAI) -> None:
    done = await client.responses.parse(model="tiny", input="Hello", text_format=Verdict, temperature=1)
    assert isinstance(done.output_parsed, Verdict)
    async with client.responses.stream(model="tiny", input="Hello", text_format=Verdict, temperature=1) as stream:
        streamed = await stream.get_final_response()
    assert isinstance(streamed.output_parsed, Verdict)


async def test_counted_tokens_are_those_that_a_response_costs(client: AsyncOpenAI) -> None:
    for extra in ({}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"}):
        asked: Any = {"model": "actor", "input": "Hello", "instructions": "Be brief.", **extra}
        counted = await client.responses.input_tokens.count(**asked)
        answered = cast("Response", await client.responses.create(**asked))
        assert answered.usage is not None
        assert counted.input_tokens == answered.usage.input_tokens


async def test_metadata_and_tier_come_back(client: AsyncOpenAI) -> None:
    done = await client.responses.create(model="actor", input="Hi", metadata={"run": "7"}, service_tier="flex")
    assert (done.metadata, done.service_tier) == ({"run": "7"}, "flex")
    retrieved = await client.responses.retrieve(done.id)
    assert retrieved.model_dump() == done.model_dump()


async def test_raw_responses_have_the_headers(client: AsyncOpenAI) -> None:
    raw = await client.responses.with_raw_response.create(model="actor", input="Hi")
    assert raw.headers["x-request-id"]
    assert raw.parse().output_text == TALK


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "takes no pictures"),
        ({"conversation": "conv_1"}, "conversation"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(client: AsyncOpenAI, params: dict[str, Any], words: str) -> None:
    asked: Any = {"model": "actor", "input": "Hi", **params}
    with pytest.raises(openai.BadRequestError, match=words):
        await client.responses.create(**asked)
