"""What OpenAI's client documents of the Responses API, with the embedded model."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response

from .schooled import KEYS, LOOK_UP, MODEL, City, Verdict
from .served_process import ServedProcess

PARIS = "What is the capital of France?"
CATS = "How long do cats sleep?"
TOOL: Any = {"type": "function", "name": "look_up", "parameters": LOOK_UP, "strict": True}
NAMED: Any = {"type": "function", "name": "look_up"}


@pytest_asyncio.fixture(loop_scope="session")
async def client(school: ServedProcess) -> AsyncGenerator[AsyncOpenAI]:
    async with school.openai() as opened:
        yield opened


async def _ask(client: AsyncOpenAI, **params: Any) -> Response:
    create: Any = client.responses.create
    response = await create(**{"model": MODEL, "input": PARIS, "store": False, **params})
    assert isinstance(response, Response)
    return response


# -- plain calls


async def test_a_response_has_text_status_usage_and_request_id(client: AsyncOpenAI) -> None:
    response = await _ask(client, metadata={"run": "7"}, user="ann")
    assert "Paris" in response.output_text
    assert (response.status, response.metadata, response.error) == ("completed", {"run": "7"}, None)
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert cast("Any", response)._request_id


def test_the_synchronous_client_answers_and_streams(school: ServedProcess) -> None:
    with OpenAI(base_url=f"{school.url}/v1", api_key=KEYS["api_key"], max_retries=0) as client:
        whole = client.responses.create(model=MODEL, input=PARIS)
        with client.responses.stream(model=MODEL, input=PARIS) as stream:
            assert stream.get_final_response().output_text == whole.output_text


async def test_instructions_and_messages_reach_the_model(client: AsyncOpenAI) -> None:
    items = [
        {"role": "user", "content": PARIS},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And of Germany?"}]},
    ]
    assert "Berlin" in (await _ask(client, instructions="You are brief.", input=items)).output_text


async def test_what_runs_into_its_limit_is_incomplete(client: AsyncOpenAI) -> None:
    response = await _ask(client, max_output_tokens=2)
    assert (response.status, response.output_text) == ("incomplete", "The capital")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


async def test_log_probabilities_come_when_they_are_included(client: AsyncOpenAI) -> None:
    included = ["message.output_text.logprobs"]
    response = await _ask(client, include=included, top_logprobs=2, max_output_tokens=4)
    [message] = response.output
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    told = message.content[0].logprobs or []
    assert [entry.token for entry in told] == ["The", " capital", " of", " France"]
    assert all(len(entry.top_logprobs) == 2 for entry in told)


# -- what the server remembers


async def test_a_conversation_goes_on_from_a_stored_response(client: AsyncOpenAI) -> None:
    first = await _ask(client, store=True)
    second = await _ask(client, input="And of Germany?", previous_response_id=first.id, store=True)
    assert "Berlin" in second.output_text
    assert (await client.responses.retrieve(first.id)).output_text == first.output_text
    page = await client.responses.input_items.list(second.id, order="asc", limit=1)
    assert page.has_next_page() is False
    assert [item.type for item in page.data] == ["message"]
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match=first.id):
        await client.responses.retrieve(first.id)


async def test_what_is_not_stored_cannot_be_gone_on_from(client: AsyncOpenAI) -> None:
    first = await _ask(client, max_output_tokens=1)
    with pytest.raises(openai.BadRequestError) as raised:
        await _ask(client, previous_response_id=first.id)
    assert raised.value.param == "previous_response_id"


# -- streaming


async def test_a_stream_has_numbered_events_in_their_order(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model=MODEL, input=PARIS, stream=True, store=False)
    events: list[Any] = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert "Paris" in events[-1].response.output_text


async def test_the_stream_helper_keeps_a_snapshot_of_the_text(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model=MODEL, input=PARIS) as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        done = await stream.get_final_response()
    assert len(snapshots) > 3
    assert snapshots[-1] == done.output_text


async def test_reasoning_is_an_item_of_its_own(school: ServedProcess, client: AsyncOpenAI) -> None:
    """It may think for two thousand tokens; who leaves before ends the work."""
    thought: list[str] = []
    async with client.responses.stream(model=MODEL, input=PARIS, reasoning={"effort": "low"}) as stream:
        async for event in stream:
            if event.type == "response.output_item.added":
                assert event.item.type == "reasoning"
            if event.type == "response.reasoning_text.delta":
                thought.append(event.delta)
                if len(thought) == 5:
                    break
    await school.healthy_when(lambda report: report["active_streams"] == 0)


# -- parsed answers


async def test_an_answer_is_parsed_into_a_model(client: AsyncOpenAI) -> None:
    done = await client.responses.parse(model=MODEL, input=PARIS, text_format=City)
    assert isinstance(done.output_parsed, City)
    async with client.responses.stream(model=MODEL, input=PARIS, text_format=Verdict) as stream:
        [text] = [event async for event in stream if event.type == "response.output_text.done"]
        streamed = await stream.get_final_response()
    assert streamed.output_parsed == text.parsed
    assert isinstance(text.parsed, Verdict)


async def test_an_answer_in_a_form_without_a_model(client: AsyncOpenAI) -> None:
    form = {"format": {"type": "json_schema", "name": "what", "schema": LOOK_UP}}
    assert json.loads((await _ask(client, text=form)).output_text)["what"] in ("cats", "dogs")


# -- tools


async def test_a_loop_of_tools_goes_on_from_the_stored_response(client: AsyncOpenAI) -> None:
    first = await _ask(client, input=CATS, tools=[TOOL], tool_choice=NAMED, store=True)
    [call] = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["what"] in ("cats", "dogs")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "15 hours a day."}
    last = await _ask(client, input=[result], tools=[TOOL], tool_choice="none", previous_response_id=first.id)
    assert last.output_text


async def test_a_loop_of_tools_without_the_server_remembering(client: AsyncOpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": CATS}]
    first = await _ask(client, input=items, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    [call] = first.output
    assert call.type == "function_call"
    items += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "15 hours a day."}]
    assert (await _ask(client, input=items, tools=[TOOL], tool_choice="none")).output_text


async def test_arguments_of_calls_stream_and_are_parsed(client: AsyncOpenAI) -> None:
    class look_up(Verdict):  # noqa: N801  the helper names the tool after its class
        """Facts about animals."""

    tool: Any = openai.pydantic_function_tool(look_up)
    flat: Any = {"type": "function", **tool["function"]}
    async with client.responses.stream(model=MODEL, input=CATS, tools=[flat], tool_choice=NAMED) as stream:
        pieces: list[Any] = [
            event async for event in stream if event.type.startswith("response.function_call_arguments.")
        ]
        done = await stream.get_final_response()
    assert "".join(piece.delta for piece in pieces[:-1]) == pieces[-1].arguments
    [call] = done.output
    assert call.type == "function_call"
    assert look_up.model_validate_json(call.arguments)


# -- counting, raw responses


@pytest.mark.parametrize("extra", [{}, {"tools": [TOOL], "tool_choice": "none"}, {"instructions": "Be brief."}])
async def test_counted_tokens_are_those_that_a_response_costs(client: AsyncOpenAI, extra: dict[str, Any]) -> None:
    counted = await client.responses.input_tokens.count(model=MODEL, input=PARIS, **extra)
    response = await _ask(client, max_output_tokens=1, **extra)
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens


async def test_raw_responses_have_the_headers(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "input": PARIS, "max_output_tokens": 2, "store": False}
    raw: Any = await cast("Any", client.responses.with_raw_response).create(**asked)
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    async with client.responses.with_streaming_response.create(**asked, stream=True) as response:
        lines = [line async for line in response.iter_lines() if line]
    assert lines[0] == "event: response.created"


# -- what is not served


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(client: AsyncOpenAI, params: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        await _ask(client, **params)


async def test_what_only_openai_can_do_with_a_stored_response_is_refused(client: AsyncOpenAI) -> None:
    stored = await _ask(client, store=True, max_output_tokens=1)
    with pytest.raises(openai.NotFoundError):
        await client.responses.cancel(stored.id)
    with pytest.raises(openai.APIStatusError, match="not served"):
        await client.responses.compact(model=MODEL, input=PARIS)
    with pytest.raises(openai.BadRequestError, match="stream"):
        await client.responses.retrieve(stored.id, stream=True)
