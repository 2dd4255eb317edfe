"""OpenAI's own client, against a real server with a real worker."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from .served_process import ServedProcess
from .tiny_server import FORCED, HELLO, KEYS


async def _text(client: AsyncOpenAI, **params: Any) -> str:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 24, **params}
    answer = cast("ChatCompletion", await client.chat.completions.create(**asked))
    content = answer.choices[0].message.content
    assert content is not None
    return content


async def test_a_whole_answer_has_its_text_reason_and_usage(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5, extra_body=FORCED)
    assert answer.choices[0].message.content == "aaaaa"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


async def test_a_streamed_answer_comes_in_pieces_and_ends_with_its_usage(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=50,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=FORCED,
    )
    chunks: list[ChatCompletionChunk] = [chunk async for chunk in stream]
    *answer, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == "a" * 50
    assert [chunk.choices[0].finish_reason for chunk in answer if chunk.choices[0].finish_reason] == ["length"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 50
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_synchronous_client_works_the_same(tiny: ServedProcess) -> None:
    with OpenAI(base_url=f"{tiny.url}/v1", api_key=KEYS["api_key"], max_retries=0) as client:
        whole = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4, extra_body=FORCED)
        stream = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=4, stream=True, extra_body=FORCED
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        models = {model.id for model in client.models.list()}
    assert whole.choices[0].message.content == streamed == "aaaa"
    assert {"tiny", "short"} <= models


async def test_completions_whole_and_streamed(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(model="tiny", prompt="Hi", max_tokens=3, extra_body=FORCED)
    stream = await client.completions.create(model="tiny", prompt="Hi", max_tokens=3, stream=True, extra_body=FORCED)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text == "aaa"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 2  # a token a byte, and no template


async def test_log_probabilities_of_a_chat_add_up_to_its_text_whole_and_streamed(client: AsyncOpenAI) -> None:
    """A token a byte: characters come in parts, and the parts are told as they are."""
    asked: dict[str, Any] = {
        "model": "tiny", "messages": HELLO, "max_tokens": 30, "temperature": 1.0, "seed": 4, "logprobs": True,
        "top_logprobs": 3, "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    whole = cast("ChatCompletion", await client.chat.completions.create(**asked))
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 30
    text = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content).decode(errors="replace")
    assert text == whole.choices[0].message.content
    for entry in logprobs.content:
        likeliest = [other.logprob for other in entry.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)
        assert len(likeliest) == 3
        assert entry.logprob <= likeliest[0] <= 0

    pieces = [chunk.choices[0].logprobs async for chunk in await client.chat.completions.create(**asked, stream=True)]
    streamed = [entry for piece in pieces if piece is not None for entry in piece.content or ()]
    assert [entry.bytes for entry in streamed] == [entry.bytes for entry in logprobs.content]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in logprobs.content])


async def test_log_probabilities_of_a_completion_say_where_in_the_text_each_token_is(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(
        model="tiny", prompt="Hi", max_tokens=20, temperature=0, logprobs=2, extra_body={"ignore_eos": True}
    )
    told = whole.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.text_offset is not None
    assert told.top_logprobs is not None
    assert len(told.tokens) == len(told.text_offset) == 20
    for token, logprob, offset, top in zip(
        told.tokens, told.token_logprobs, told.text_offset, told.top_logprobs, strict=True
    ):
        assert top[token] == max(top.values()) == logprob
        assert token.startswith(("\\x", "<|")) or whole.choices[0].text[offset] == token


async def test_models_are_listed_and_told_of_one_by_one(client: AsyncOpenAI) -> None:
    assert {"tiny", "short"} <= {model.id async for model in client.models.list()}
    assert (await client.models.retrieve("short")).id == "short"


async def test_a_stop_string_ends_the_text_and_is_no_part_of_it(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=50, stop=["b", "aaaaaa"], extra_body=FORCED
    )
    assert answer.choices[0].message.content == ""
    assert answer.choices[0].finish_reason == "stop"
    whole = await _text(client, temperature=0, max_tokens=30)
    cut = await _text(client, temperature=0, max_tokens=30, stop=[whole[8:11]])
    assert cut == whole[: whole.index(whole[8:11])]


async def test_a_seed_fixes_the_text_alone_and_in_a_crowd(client: AsyncOpenAI) -> None:
    alone = [await _text(client, seed=seed, temperature=1.0) for seed in range(3)]
    assert len(set(alone)) == 3  # different seeds differ
    crowd = await asyncio.gather(
        *(_text(client, seed=seed, temperature=1.0, max_tokens=24 + extra) for extra in (0, 9) for seed in range(3))
    )
    assert crowd[:3] == alone
    assert [text[:16] for text in crowd[3:]] == [text[:16] for text in alone]


async def test_every_row_of_a_crowd_has_its_own_sampling(client: AsyncOpenAI) -> None:
    greedy = await _text(client, temperature=0)
    forced, again, sampled = await asyncio.gather(
        _text(client, extra_body=FORCED, max_tokens=20),
        _text(client, temperature=0),
        _text(client, temperature=1.5, seed=5),
    )
    assert forced == "a" * 20
    assert again == greedy
    assert sampled != greedy


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
async def test_penalties_change_a_greedy_text(client: AsyncOpenAI, name: str) -> None:
    plain = await _text(client, temperature=0, max_tokens=60)
    assert await _text(client, temperature=0, max_tokens=60, **{name: 2.0}) != plain
