"""Anthropic's own client, against a real server with a real worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anthropic
import pytest
import pytest_asyncio
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageParam

from .served_process import ServedProcess
from .tiny_server import FORCED, KEYS

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0}


@pytest_asyncio.fixture(loop_scope="session")
async def claude(tiny: ServedProcess) -> AsyncGenerator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=tiny.url, api_key=KEYS["api_key"], max_retries=0) as opened:
        yield opened


async def test_streamed_and_whole_messages_are_the_same(claude: AsyncAnthropic) -> None:
    whole = await claude.messages.create(model="tiny", max_tokens=12, messages=HELLO, extra_body=GREEDY)
    async with claude.messages.stream(model="tiny", max_tokens=12, messages=HELLO, extra_body=GREEDY) as stream:
        streamed = await stream.get_final_message()
    assert [block.text for block in streamed.content if block.type == "text"] == [
        block.text for block in whole.content if block.type == "text"
    ]
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert streamed.stop_reason == whole.stop_reason


async def test_counted_tokens_are_those_that_a_message_costs(claude: AsyncAnthropic) -> None:
    counted = await claude.messages.count_tokens(model="tiny", messages=HELLO, system="Be brief")
    message = await claude.messages.create(model="tiny", max_tokens=1, messages=HELLO, system="Be brief")
    assert counted.input_tokens == message.usage.input_tokens


async def test_the_stop_sequence_that_ended_the_message_is_named(claude: AsyncAnthropic) -> None:
    message = await claude.messages.create(model="tiny", max_tokens=200, messages=HELLO, extra_body=GREEDY)
    assert message.content[0].type == "text"
    text = message.content[0].text
    stop = text[5:8]
    stopped = await claude.messages.create(
        model="tiny", max_tokens=200, messages=HELLO, stop_sequences=["no such text", stop], extra_body=GREEDY
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    shown = "".join(block.text for block in stopped.content if block.type == "text")
    assert shown == text[: text.index(stop)]


async def test_what_does_not_fit_is_an_invalid_request(claude: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="context holds"):
        await claude.messages.create(model="short", max_tokens=1, messages=[{"role": "user", "content": "a" * 60}])


async def test_a_wrong_key_is_an_authentication_error(tiny: ServedProcess) -> None:
    async with AsyncAnthropic(base_url=tiny.url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(model="tiny", max_tokens=1, messages=HELLO)


async def test_what_anthropics_api_does_not_have_is_refused_by_name(claude: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="logit_bias"):
        await claude.messages.create(model="tiny", max_tokens=1, messages=HELLO, extra_body=FORCED)


def test_the_synchronous_client_chats_with_the_embedded_model(embedded: ServedProcess) -> None:
    with Anthropic(base_url=embedded.url, api_key="none", max_retries=0) as client:
        message = client.messages.create(
            model="smollm2-135m", max_tokens=24, messages=[{"role": "user", "content": "Say hello."}], extra_body=GREEDY
        )
        with client.messages.stream(
            model="smollm2-135m", max_tokens=24, messages=[{"role": "user", "content": "Say hello."}], extra_body=GREEDY
        ) as stream:
            streamed = "".join(stream.text_stream)
    assert message.content[0].type == "text"
    assert message.content[0].text == streamed != ""
