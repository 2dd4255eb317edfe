"""What OpenAI's client documents beyond plain calls: streaming helpers, loops of tools, parsed answers, raw responses,
errors and retries. The model of `actor` calls tools and thinks on cue."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal, cast

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field

from .actor import REPORT, TALK
from .served_process import ServedProcess
from .tiny_server import ENDLESS, FORCED, HELLO, KEYS


class look_up(BaseModel):  # noqa: N801  the helper names the tool after its class
    """Facts about animals."""

    what: Literal["cats", "dogs"]


class Verdict(BaseModel):
    score: int = Field(ge=1, le=5)
    word: Literal["good", "bad"]


TOOL: Any = openai.pydantic_function_tool(look_up)
FACTS: Any = [{"role": "user", "content": "How do cats sleep?"}]


# -- streaming helpers


async def test_the_stream_helper_tells_of_content_and_its_end(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="actor", messages=HELLO) as stream:
        events = [event async for event in stream]
        done = await stream.get_final_completion()
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == done.choices[0].message.content == TALK
    assert [event.content for event in events if event.type == "content.done"] == [TALK]


async def test_the_stream_helper_tells_of_calls_and_parses_their_arguments(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="actor", messages=FACTS, tools=[TOOL]) as stream:
        events = [event async for event in stream]
        done = await stream.get_final_completion()
    pieces = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert json.loads("".join(pieces)) == {"what": "cats"}
    [ended] = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert ended.parsed_arguments == look_up(what="cats")
    assert done.choices[0].finish_reason == "tool_calls"
    assert done.choices[0].message.content == "Let me look."


async def test_log_probabilities_come_by_the_stream_helper(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="actor", messages=HELLO, logprobs=True, top_logprobs=2) as stream:
        told = [event async for event in stream if event.type == "logprobs.content.done"]
    assert "".join(entry.token for entry in told[0].content) == TALK
    assert all(len(entry.top_logprobs) == 2 for entry in told[0].content)


async def test_reasoning_streams_apart_from_the_answer(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="actor", messages=HELLO, reasoning_effort="low", stream=True)
    deltas: list[Any] = [chunk.choices[0].delta async for chunk in stream]
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thought == "A greeting, I greet back."
    assert "".join(delta.content or "" for delta in deltas) == "Good day."


async def test_a_stream_of_several_answers_keeps_them_apart(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="actor", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, usage = ["", ""], None
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert texts == [TALK, TALK]
    assert usage is not None
    assert usage.completion_tokens == 10


# -- tools


async def test_a_loop_of_tools_ends_with_an_answer(client: AsyncOpenAI) -> None:
    messages: list[Any] = [*FACTS]
    while True:
        done = await client.chat.completions.parse(model="actor", messages=messages, tools=[TOOL])
        message = done.choices[0].message
        if not message.tool_calls:
            break
        messages.append(message)
        for call in message.tool_calls:
            assert call.function.parsed_arguments == look_up(what="cats")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "A lot."})
    assert message.content == REPORT
    assert len(messages) == 3


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
async def test_a_call_can_be_forced(client: AsyncOpenAI, choice: Any) -> None:
    done = await client.chat.completions.parse(
        model="actor", messages=HELLO, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False
    )
    [call] = done.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, look_up)
    assert done.choices[0].message.content is None


async def test_a_choice_among_tools_hides_the_others(client: AsyncOpenAI) -> None:
    other: Any = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "look_up"}}]}
    done = await client.chat.completions.create(
        model="actor",
        messages=HELLO,
        tools=[other, TOOL],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},  # pyright: ignore[reportArgumentType]
        parallel_tool_calls=False,
    )
    [call] = done.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "look_up"


# -- parsed answers


async def test_an_answer_is_parsed_into_a_model(client: AsyncOpenAI) -> None:
    done = await client.chat.completions.parse(
        model="tiny", messages=HELLO, response_format=Verdict, temperature=1, seed=1
    )
    assert isinstance(done.choices[0].message.parsed, Verdict)


async def test_an_answer_that_is_cut_off_is_no_model(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Verdict, max_tokens=3)


# -- raw responses, time limits, leaving


async def test_raw_responses_have_the_headers(client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="actor", messages=HELLO, extra_headers={"x-client-request-id": "mine"}
    )
    assert raw.headers["x-request-id"]
    assert float(raw.headers["openai-processing-ms"]) >= 0
    parsed = raw.parse()
    assert parsed.choices[0].message.content == TALK
    assert raw.http_response.status_code == 200


async def test_streaming_responses_are_read_line_by_line(client: AsyncOpenAI) -> None:
    async with client.chat.completions.with_streaming_response.create(
        model="actor", messages=HELLO, stream=True
    ) as response:
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


async def test_a_time_limit_of_the_client_ends_the_work(tiny: ServedProcess, client: AsyncOpenAI) -> None:
    impatient = client.with_options(timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        await impatient.chat.completions.create(model="tiny", messages=HELLO, extra_body=ENDLESS)
    await tiny.healthy_when(lambda report: report["active_streams"] == 0)


async def test_closing_a_stream_and_cancelling_a_call_end_the_work(tiny: ServedProcess, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=ENDLESS)
    async for _ in stream:
        break
    await stream.close()
    whole = asyncio.create_task(client.chat.completions.create(model="tiny", messages=HELLO, extra_body=ENDLESS))
    await tiny.healthy_when(lambda report: report["active_streams"] == 1)
    whole.cancel()
    await asyncio.wait([whole])
    await tiny.healthy_when(lambda report: report["active_streams"] == 0)


def test_the_synchronous_helper_streams_as_well(tiny: ServedProcess) -> None:
    with (
        OpenAI(base_url=f"{tiny.url}/v1", api_key=KEYS["api_key"], max_retries=0) as client,
        client.chat.completions.stream(model="actor", messages=HELLO) as stream,
    ):
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == TALK


# -- what is honoured and told


async def test_a_service_tier_is_told_where_one_was_asked_for(client: AsyncOpenAI) -> None:
    async def tier(**fields: Any) -> str | None:
        asked: Any = {"model": "actor", "messages": HELLO, "max_tokens": 1, **fields}
        return cast("ChatCompletion", await client.chat.completions.create(**asked)).service_tier

    assert [await tier(), await tier(service_tier="auto"), await tier(service_tier="flex")] == [None, "default", "flex"]
    stream = await client.chat.completions.create(
        model="actor", messages=HELLO, max_tokens=1, service_tier="priority", stream=True
    )
    assert {chunk.service_tier async for chunk in stream} == {"priority"}
    with pytest.raises(openai.BadRequestError, match="service_tier"):
        await tier(service_tier="scale")


async def test_metadata_and_its_user_are_in_the_log(tiny: ServedProcess, client: AsyncOpenAI) -> None:
    await client.chat.completions.create(
        model="actor", messages=HELLO, max_tokens=1, metadata={"run": "7"}, safety_identifier="ann", store=False
    )
    await tiny.logged("request", user="ann", metadata={"run": "7"})


# -- errors


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "gpt-5"),
        ({"model": "short", "max_tokens": 1000}, openai.BadRequestError, "context holds 48"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
            openai.BadRequestError,
            "image_url",
        ),
        ({"modalities": ["audio"], "audio": {"voice": "a", "format": "wav"}}, openai.BadRequestError, "audio"),
        ({"web_search_options": {}}, openai.BadRequestError, "web_search_options"),
        ({"store": True}, openai.BadRequestError, "store"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, openai.BadRequestError, "custom"),
    ],
)
async def test_errors_are_typed_and_name_what_is_wrong(
    client: AsyncOpenAI, params: dict[str, Any], error: type[openai.APIStatusError], words: str
) -> None:
    asked: Any = {"model": "actor", "messages": HELLO, **params}
    with pytest.raises(error, match=words) as raised:
        await client.chat.completions.create(**asked)
    assert raised.value.request_id


async def test_a_wrong_key_is_no_permission(tiny: ServedProcess) -> None:
    async with AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_what_is_wrong_is_not_tried_again(tiny: ServedProcess) -> None:
    async with AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key=KEYS["api_key"], max_retries=3) as client:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nobody's", messages=HELLO, user="once")
        await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1, extra_body=FORCED, user="last")
    await tiny.logged("request", user="last")
    assert sum(line.get("user") == "once" for line in tiny.log) == 1
