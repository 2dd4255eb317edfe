"""What Anthropic's client documents, with the embedded model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import anthropic
import pytest
import pytest_asyncio
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message, TextBlock, ToolUseBlock

from ..command_line import LIMIT_S
from .schooled import AT_ONCE, CATS, KEYS, LOOK_UP, MODEL, PARIS, City, Verdict
from .served_process import ServedProcess

ASKED: Any = {"model": MODEL, "max_tokens": 40, "messages": PARIS}
ENDLESS: Any = {"format": {"type": "json_schema", "schema": {"type": "string", "minLength": 4000}}}
LONG: Any = ASKED | {"max_tokens": 5000, "output_config": ENDLESS}
"""A form that no answer fills within a minute."""
TOOL: Any = {"name": "look_up", "description": "Facts about animals.", "input_schema": LOOK_UP}
OTHER: Any = {**TOOL, "name": "other"}


def _client(school: ServedProcess, key: str = "api_key") -> AsyncAnthropic:
    return AsyncAnthropic(base_url=school.url, api_key=KEYS.get(key, "none"), max_retries=0, timeout=LIMIT_S)


@pytest_asyncio.fixture(loop_scope="session")
async def claude(school: ServedProcess) -> AsyncGenerator[AsyncAnthropic]:
    async with _client(school) as opened:
        yield opened


async def _ask(claude: AsyncAnthropic, **params: Any) -> Message:
    create: Any = claude.messages.create
    message = await create(**ASKED | params)
    assert isinstance(message, Message)
    return message


def _text(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


# -- plain calls


async def test_a_message_has_text_reason_usage_and_request_id(claude: AsyncAnthropic) -> None:
    message = await _ask(claude, metadata={"user_id": "ann"})
    assert "Paris" in _text(message)
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
    assert message.usage.output_tokens > 3
    assert cast("Any", message)._request_id
    assert json.loads(message.to_json())["id"] == message.to_dict()["id"] == message.id


def test_the_synchronous_client_answers_and_streams(school: ServedProcess) -> None:
    with Anthropic(base_url=school.url, api_key=KEYS["api_key"], max_retries=0) as claude:
        create: Any = claude.messages.create
        whole: Message = create(**ASKED)
        with claude.messages.stream(**ASKED) as stream:
            streamed = "".join(stream.text_stream)
            assert _text(stream.get_final_message()) == stream.get_final_text() == streamed
    assert streamed == _text(whole)


async def test_system_blocks_and_earlier_turns_reach_the_model(claude: AsyncAnthropic) -> None:
    messages = [
        *PARIS,
        {"role": "assistant", "content": [{"type": "text", "text": "The capital of France is Paris."}]},
        {"role": "user", "content": [{"type": "text", "text": "And of Germany?"}]},
    ]
    system = [{"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}}]
    assert "Berlin" in _text(await _ask(claude, messages=messages, system=system))


async def test_the_stop_sequence_that_ended_a_message_is_named(claude: AsyncAnthropic) -> None:
    message = await _ask(claude, stop_sequences=["no such text", " is"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " is")
    assert _text(message) == "The capital of France"


async def test_max_tokens_end_a_message(claude: AsyncAnthropic) -> None:
    message = await _ask(claude, max_tokens=2)
    assert (message.stop_reason, message.usage.output_tokens, _text(message)) == ("max_tokens", 2, "The capital")


# -- streaming


async def test_a_stream_has_every_event_in_its_order(claude: AsyncAnthropic) -> None:
    events: list[Any] = [event async for event in await claude.messages.create(**ASKED, stream=True)]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) <= {"content_block_delta", "ping"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens > 3) == ("end_turn", True)


async def test_the_stream_helper_tells_of_text_and_keeps_a_snapshot(claude: AsyncAnthropic) -> None:
    async with claude.messages.stream(**ASKED) as stream:
        events: list[Any] = []
        async for event in stream:
            events.append(event)
            if event.type == "text":
                assert _text(stream.current_message_snapshot) == event.snapshot
        assert "Paris" in await stream.get_final_text()
    [block] = [event.content_block for event in events if event.type == "content_block_stop"]
    [done] = [event.message for event in events if event.type == "message_stop"]
    assert block.text == _text(done)


async def test_the_stream_helper_tells_of_the_input_of_tools(claude: AsyncAnthropic) -> None:
    choice: Any = {"type": "tool", "name": "look_up", "disable_parallel_tool_use": True}
    async with claude.messages.stream(**ASKED, tools=[TOOL], tool_choice=choice) as stream:
        pieces: list[Any] = [event async for event in stream if event.type == "input_json"]
        done = await stream.get_final_message()
    [call] = done.content
    assert isinstance(call, ToolUseBlock)
    assert json.loads("".join(piece.partial_json for piece in pieces)) == pieces[-1].snapshot == call.input
    assert done.stop_reason == "tool_use"


async def test_thinking_streams_in_a_block_of_its_own(school: ServedProcess, claude: AsyncAnthropic) -> None:
    """It may think for a thousand tokens at least; who leaves before ends the work."""
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    thought: list[str] = []
    async with claude.messages.stream(**ASKED | {"max_tokens": 2000}, thinking=thinking) as stream:
        async for event in stream:
            if event.type == "thinking":
                thought.append(event.thinking)
                if len(thought) == 5:
                    break
        assert stream.current_message_snapshot.content[0].type == "thinking"
    await school.healthy_when(lambda report: report["active_streams"] == 0)


# -- tools


async def test_a_loop_of_tools_ends_with_an_answer(claude: AsyncAnthropic) -> None:
    first = await _ask(claude, messages=CATS, tools=[TOOL, OTHER], tool_choice={"type": "tool", "name": "look_up"})
    [call] = first.content
    assert isinstance(call, ToolUseBlock)
    assert call.input["what"] in ("cats", "dogs")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "15 hours a day."}]}
    messages = [*CATS, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = await _ask(claude, messages=messages, tools=[TOOL, OTHER], tool_choice={"type": "none"})
    assert last.stop_reason in ("end_turn", "max_tokens")
    assert _text(last)


async def test_any_tool_can_be_asked_for_and_one_call_only(claude: AsyncAnthropic) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    message = await _ask(claude, messages=CATS, tools=[TOOL, OTHER], tool_choice=choice)
    [call] = message.content
    assert isinstance(call, ToolUseBlock)
    assert (call.name in ("look_up", "other"), message.stop_reason) == (True, "tool_use")


async def test_the_tool_runner_calls_and_reports(claude: AsyncAnthropic) -> None:
    looked_up: list[str] = []

    @anthropic.beta_async_tool(input_schema=LOOK_UP)
    async def look_up(what: str) -> str:
        """Facts about animals."""
        looked_up.append(what)
        return "15 hours a day."

    choice: Any = {"type": "tool", "name": "look_up"}
    runner = claude.beta.messages.tool_runner(
        model=MODEL, max_tokens=40, messages=CATS, tools=[look_up], tool_choice=choice
    )
    said: list[str] = []
    async for message in runner:
        said.append(message.content[0].type)
        runner.set_messages_params(lambda params: {**params, "tool_choice": {"type": "none"}})
    assert said == ["tool_use", "text"]
    assert len(looked_up) == 1


def test_the_synchronous_tool_runner_streams(school: ServedProcess) -> None:
    @anthropic.beta_tool(input_schema=LOOK_UP)
    def look_up(what: str) -> str:
        """Facts about animals."""
        return f"{what} sleep a lot."

    with Anthropic(base_url=school.url, api_key=KEYS["api_key"], max_retries=0) as claude:
        choice: Any = {"type": "any", "disable_parallel_tool_use": True}
        runner = claude.beta.messages.tool_runner(
            model=MODEL, max_tokens=40, messages=CATS, tools=[look_up], tool_choice=choice, stream=True,
            max_iterations=1,
        )  # fmt: skip
        kinds = [event.type for stream in runner for event in stream]
    assert "input_json" in kinds
    assert kinds[-1] == "message_stop"


# -- parsed answers, counting


async def test_an_answer_is_parsed_into_a_model(claude: AsyncAnthropic) -> None:
    done = await claude.messages.parse(**ASKED, output_format=City)
    assert isinstance(done.parsed_output, City)
    async with claude.messages.stream(**ASKED, output_format=Verdict) as stream:
        streamed = await stream.get_final_message()
    assert isinstance(streamed.parsed_output, Verdict)


async def test_an_answer_in_a_form_without_a_model(claude: AsyncAnthropic) -> None:
    form = {"format": {"type": "json_schema", "schema": LOOK_UP}}
    assert json.loads(_text(await _ask(claude, output_config=form)))["what"] in ("cats", "dogs")


@pytest.mark.parametrize("extra", [{}, {"tools": [TOOL], "tool_choice": {"type": "none"}}, {"system": "Be brief."}])
async def test_counted_tokens_are_those_that_a_message_costs(claude: AsyncAnthropic, extra: dict[str, Any]) -> None:
    counted = await claude.messages.count_tokens(model=MODEL, messages=PARIS, **extra)
    message = await _ask(claude, max_tokens=1, **extra)
    assert counted.input_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


async def test_tools_count_as_part_of_the_prompt(claude: AsyncAnthropic) -> None:
    alone, offered = await asyncio.gather(
        claude.messages.count_tokens(model=MODEL, messages=PARIS),
        claude.beta.messages.count_tokens(model=MODEL, messages=PARIS, tools=[TOOL]),
    )
    assert offered.input_tokens > alone.input_tokens


# -- raw responses, models


async def test_raw_responses_have_the_headers(claude: AsyncAnthropic) -> None:
    create: Any = claude.messages.with_raw_response.create
    raw = await create(**ASKED | {"max_tokens": 2})
    assert raw.headers["request-id"] == (await raw.parse())._request_id
    streaming: Any = claude.messages.with_streaming_response
    async with streaming.create(**ASKED | {"max_tokens": 2}, stream=True) as response:
        lines = [line async for line in response.iter_lines() if line]
    assert lines[0] == "event: message_start"
    assert lines[-2:] == ["event: message_stop", 'data: {"type":"message_stop"}']


async def test_models_are_listed_and_told_of(claude: AsyncAnthropic) -> None:
    assert [model.id async for model in claude.models.list()] == [MODEL]
    assert (await claude.models.retrieve(MODEL)).type == "model"


# -- errors, time limits, what is tried again


@pytest.mark.parametrize(
    ("params", "error", "kind", "words"),
    [
        ({"model": "claude"}, anthropic.NotFoundError, "not_found_error", "claude"),
        ({"extra_body": {"temperature": 3}}, anthropic.BadRequestError, "invalid_request_error", "temperature"),
        ({"messages": [{"role": "king", "content": "x"}]}, anthropic.BadRequestError, "invalid_request_error", "king"),
        ({"extra_body": {"container": "c"}}, anthropic.BadRequestError, "invalid_request_error", "container"),
    ],
)
async def test_errors_are_typed_and_name_what_is_wrong(
    claude: AsyncAnthropic, params: dict[str, Any], error: type[anthropic.APIStatusError], kind: str, words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        await _ask(claude.with_options(max_retries=3), **params)
    assert raised.value.type == kind
    assert raised.value.request_id


async def test_there_are_no_batches(claude: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="There is no"):
        await claude.messages.batches.list()


async def test_keys_decide_who_may(school: ServedProcess) -> None:
    async with _client(school, "nobody's") as nobody, _client(school, "stranger") as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await _ask(nobody)
        with pytest.raises(anthropic.PermissionDeniedError):
            await _ask(stranger)


async def test_what_was_refused_for_now_is_tried_again(school: ServedProcess) -> None:
    async with _client(school, "single") as claude, claude.messages.stream(**LONG) as stream:
        await anext(stream.text_stream)
        with pytest.raises(anthropic.RateLimitError) as raised:
            await _ask(claude)
        assert int(raised.value.response.headers["retry-after"]) >= 1
        patient = claude.with_options(max_retries=5)
        again = asyncio.create_task(_ask(patient, max_tokens=1, metadata={"user_id": "patient of Anthropic's"}))
        await school.logged("request", user="patient of Anthropic's", status=429)
        await stream.close()
        assert (await again).stop_reason == "max_tokens"


async def test_a_server_that_is_full_is_overloaded(school: ServedProcess, claude: AsyncAnthropic) -> None:
    streams: list[Any] = await asyncio.gather(*(claude.messages.create(**LONG, stream=True) for _ in range(AT_ONCE)))
    with pytest.raises(anthropic.InternalServerError) as raised:
        await _ask(claude)
    assert (raised.value.status_code, raised.value.type) == (529, "overloaded_error")
    for stream in streams:
        await stream.close()
    assert (await _ask(claude.with_options(max_retries=5), max_tokens=1)).content


async def test_a_time_limit_of_the_client_ends_the_work(school: ServedProcess, claude: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.APITimeoutError):
        await _ask(claude.with_options(timeout=0.5), **LONG)
    await school.healthy_when(lambda report: report["active_streams"] == 0)
