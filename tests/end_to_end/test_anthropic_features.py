"""What Anthropic's client documents beyond plain calls, with the model of `actor`, which calls tools and thinks on
cue."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal, cast

import anthropic
import pytest
import pytest_asyncio
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message
from pydantic import BaseModel

from .actor import REPORT, TALK
from .served_process import ServedProcess
from .tiny_server import KEYS, SHORT_CONTEXT

HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOL: Any = {
    "name": "look_up",
    "input_schema": {
        "type": "object",
        "properties": {"what": {"enum": ["cats", "dogs"]}},
        "required": ["what"],
        "additionalProperties": False,
    },
}
ASKED: Any = {"model": "actor", "max_tokens": 2000, "messages": HELLO}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


class Verdict(BaseModel):
    word: Literal["good", "bad"]


@pytest_asyncio.fixture(loop_scope="session")
async def claude(tiny: ServedProcess) -> AsyncGenerator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=tiny.url, api_key=KEYS["api_key"], max_retries=0) as opened:
        yield opened


async def _message(claude: AsyncAnthropic, **params: Any) -> Message:
    return cast("Message", await claude.messages.create(**params))


def _prompt_tokens(message: Message) -> int:
    """What is read from the prefix cache does not count as input."""
    return message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


# -- streaming helpers


async def test_the_stream_helper_tells_of_text_and_the_prompt_first(claude: AsyncAnthropic) -> None:
    async with claude.messages.stream(**ASKED) as stream:
        events: list[Any] = [event async for event in stream]
        done = await stream.get_final_message()
    counted = await claude.messages.count_tokens(model="actor", messages=HELLO)
    assert events[0].type == "message_start"
    assert events[0].message.usage.input_tokens == counted.input_tokens == _prompt_tokens(done) > 0
    assert [event.text for event in events if event.type == "text"][-1] == "friend."
    assert "".join(block.text for block in done.content if block.type == "text") == TALK
    assert done.stop_reason == "end_turn"


async def test_the_stream_helper_tells_of_thinking_and_of_the_input_of_tools(claude: AsyncAnthropic) -> None:
    async with claude.messages.stream(**ASKED, tools=[TOOL], thinking=THINKING) as stream:
        events: list[Any] = [event async for event in stream]
        done = await stream.get_final_message()
    assert "".join(event.thinking for event in events if event.type == "thinking") == "I must look it up."
    inputs = [event.snapshot for event in events if event.type == "input_json"]
    assert inputs[-1] == {"what": "dogs"}
    assert [block.type for block in done.content] == ["thinking", "text", "tool_use"]
    assert done.stop_reason == "tool_use"


def test_the_synchronous_helper_streams_text(tiny: ServedProcess) -> None:
    with (
        Anthropic(base_url=tiny.url, api_key=KEYS["api_key"], max_retries=0) as claude,
        claude.messages.stream(**ASKED) as stream,
    ):
        assert "".join(stream.text_stream) == TALK


# -- tools


async def test_the_tool_runner_calls_and_reports(claude: AsyncAnthropic) -> None:
    looked_up: list[str] = []

    @anthropic.beta_async_tool
    async def look_up(what: str) -> str:
        """Facts about animals."""
        looked_up.append(what)
        return "A lot."

    runner = claude.beta.messages.tool_runner(model="actor", max_tokens=200, messages=HELLO, tools=[look_up])  # pyright: ignore[reportArgumentType]  the alias hides the model's type
    last = await runner.until_done()
    assert looked_up == ["cats"]
    assert [block.text for block in last.content if block.type == "text"] == [REPORT]


async def test_a_loop_of_tools_gives_thinking_back(claude: AsyncAnthropic) -> None:
    first = await _message(claude, **ASKED, tools=[TOOL], thinking=THINKING)
    [call] = [block for block in first.content if block.type == "tool_use"]
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "A lot."}]},
    ]
    last = await _message(claude, **ASKED | {"messages": messages}, tools=[TOOL], thinking=THINKING)
    assert [block.text for block in last.content if block.type == "text"] == [REPORT]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look_up"}])
async def test_a_call_can_be_forced(claude: AsyncAnthropic, choice: dict[str, Any]) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    done = await _message(claude, **ASKED, tools=[TOOL], tool_choice=choice)
    [call] = done.content
    assert call.type == "tool_use"
    assert call.input["what"] in ("cats", "dogs")


# -- parsed answers


async def test_parsed_output(claude: AsyncAnthropic) -> None:
    done = await claude.messages.parse(**ASKED | {"model": "tiny"}, output_format=Verdict)
    assert isinstance(done.parsed_output, Verdict)
    async with claude.messages.stream(**ASKED | {"model": "tiny"}, output_format=Verdict) as stream:
        streamed = await stream.get_final_message()
    assert isinstance(streamed.parsed_output, Verdict)


# -- counting, lengths


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        {"tools": [TOOL], "thinking": THINKING},
    ],
)
async def test_counted_tokens_are_those_that_a_message_costs(claude: AsyncAnthropic, extra: dict[str, Any]) -> None:
    counted = await claude.messages.count_tokens(model="actor", messages=HELLO, **extra)
    done = await _message(claude, **ASKED, **extra)
    assert counted.input_tokens == _prompt_tokens(done)


async def test_the_accounts_of_claude_code_do_not_hide_what_is_kept_behind_them(claude: AsyncAnthropic) -> None:
    async def ask(digest: str) -> anthropic.types.Usage:
        billing = f"x-anthropic-billing-header: cc_version=2.1.100; cc_entrypoint=cli; cch={digest};"
        system: Any = [{"type": "text", "text": text} for text in (billing, "You are a coding agent. " * 10)]
        return (await claude.messages.create(model="tiny", max_tokens=1, system=system, messages=HELLO)).usage

    first, second = await ask("eb6c6"), await ask("0aaa9")
    prompt = first.input_tokens + (first.cache_read_input_tokens or 0)
    assert (second.input_tokens, second.cache_read_input_tokens) == (1, prompt - 1)


async def test_max_tokens_is_cut_to_what_the_context_leaves(claude: AsyncAnthropic) -> None:
    claude = claude.with_options(timeout=60)  # without one, the client wants so long an answer streamed
    asked: Any = {"model": "short", "max_tokens": 32_000, "messages": HELLO, "extra_body": {"temperature": 0}}
    done = await _message(claude, **asked)
    assert _prompt_tokens(done) + done.usage.output_tokens == SHORT_CONTEXT
    assert done.stop_reason == "model_context_window_exceeded"
    fits = await _message(claude, **asked | {"max_tokens": done.usage.output_tokens})
    assert (fits.stop_reason, fits.content) == ("max_tokens", done.content)
    with pytest.raises(anthropic.BadRequestError, match=f"context holds {SHORT_CONTEXT} tokens"):
        await _message(claude, **asked | {"messages": [{"role": "user", "content": "a" * 60}]})


# -- raw responses, models, errors


async def test_raw_responses_have_the_headers(claude: AsyncAnthropic) -> None:
    raw: Any = await claude.messages.with_raw_response.create(model="actor", max_tokens=20, messages=HELLO)
    assert raw.headers["request-id"]
    message = await raw.parse()
    assert message._request_id == raw.headers["request-id"]


async def test_models_are_listed_page_by_page(claude: AsyncAnthropic) -> None:
    every = [model async for model in claude.models.list()]
    assert {"tiny", "short", "actor"} <= {model.id for model in every}
    one_by_one = [model.id async for model in claude.models.list(limit=1)]
    assert one_by_one == [model.id for model in every]
    model = await claude.models.retrieve("tiny")
    assert (model.id, model.type, model.max_input_tokens) == ("tiny", "model", 100_000)
    assert model.created_at.year > 2000
    backwards = await claude.models.list(before_id=every[-1].id, limit=1)
    assert [each.id for each in backwards.data] == [every[-2].id]
    with pytest.raises(anthropic.BadRequestError, match="after_id"):
        await claude.models.list(after_id="nobody")


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"model": "claude"}, anthropic.NotFoundError, "claude"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image",
                                "source": {"type": "base64", "media_type": "image/png", "data": "eA=="},
                            }
                        ],
                    }
                ]
            },
            anthropic.BadRequestError,
            "takes no pictures",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, anthropic.BadRequestError, "web_search"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, anthropic.BadRequestError, "1024"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "I"}]}, anthropic.BadRequestError, "assistant"),
    ],
)
async def test_errors_are_typed_and_name_what_is_wrong(
    claude: AsyncAnthropic, params: dict[str, Any], error: type[anthropic.APIStatusError], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        await _message(claude, **ASKED | params)
    assert raised.value.request_id
    assert raised.value.type in ("invalid_request_error", "not_found_error")
