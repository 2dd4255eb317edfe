"""Several answers to a request and several prompts in one: OpenAI's own client, a real server, a real worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from openai import AsyncOpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion

from .tiny_server import FORCED, HELLO

_PROMPTS = ["Once upon", "Hi", "The cat"]


async def _chat(client: AsyncOpenAI, **params: Any) -> ChatCompletion:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 24, "temperature": 1.0, **params}
    return cast("ChatCompletion", await client.chat.completions.create(**asked))


async def _completion(client: AsyncOpenAI, **params: Any) -> Completion:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 12, **params}
    return cast("Completion", await client.completions.create(**asked))


def _texts(answer: ChatCompletion | Completion) -> list[str]:
    """The texts of the choices, whose numbers count up from 0."""
    choices: Sequence[Any] = answer.choices
    assert [choice.index for choice in choices] == list(range(len(choices)))
    if isinstance(answer, ChatCompletion):
        return [choice.message.content or "" for choice in answer.choices]
    return [choice.text for choice in answer.choices]


async def _streamed(client: AsyncOpenAI, **params: Any) -> list[str]:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 24, "temperature": 1.0, **params}
    texts = [""] * params["n"]
    async for chunk in await client.chat.completions.create(stream=True, **asked):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    return texts


async def test_the_choices_of_a_seed_differ_and_come_again(client: AsyncOpenAI) -> None:
    whole = _texts(await _chat(client, n=3, seed=11))
    assert len(set(whole)) == 3
    assert _texts(await _chat(client, n=3, seed=11)) == whole
    assert await _streamed(client, n=3, seed=11) == whole
    assert _texts(await _chat(client, n=2, seed=11)) == whole[:2]
    assert _texts(await _chat(client, seed=11)) == whole[:1]  # the first has the seed itself
    assert not set(_texts(await _chat(client, n=3, seed=12))) & set(whole)


async def test_choices_without_a_seed_differ(client: AsyncOpenAI) -> None:
    assert len(set(_texts(await _chat(client, n=3)))) == 3
    assert len(set(await _streamed(client, n=3))) == 3


async def test_every_choice_is_generated_to_its_end_and_the_prompt_is_counted_once(client: AsyncOpenAI) -> None:
    alone = await _chat(client, max_tokens=5, extra_body=FORCED)
    answer = await _chat(client, max_tokens=5, n=4, extra_body=FORCED)
    assert _texts(answer) == ["aaaaa"] * 4
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 4
    assert alone.usage is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.usage.completion_tokens == 4 * 5


async def test_a_stream_of_choices_ends_with_one_usage(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        n=3,
        max_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=FORCED,
    )
    *chunks, last = [chunk async for chunk in stream]
    ended = [chunk.choices[0] for chunk in chunks if chunk.choices[0].finish_reason is not None]
    assert sorted((choice.index, choice.finish_reason) for choice in ended) == [(n, "length") for n in range(3)]
    assert last.usage is not None
    assert last.usage.completion_tokens == 3 * 7


async def test_each_of_several_prompts_is_answered_as_if_it_were_alone(client: AsyncOpenAI) -> None:
    alone = [_texts(await _completion(client, prompt=prompt, temperature=0)) for prompt in _PROMPTS]
    together = await _completion(client, prompt=_PROMPTS, temperature=0)
    assert _texts(together) == [text for texts in alone for text in texts]
    assert together.usage is not None
    assert together.usage.prompt_tokens == len("".join(_PROMPTS))  # a token a byte


async def test_several_prompts_have_several_answers_each(client: AsyncOpenAI) -> None:
    params: dict[str, Any] = {"n": 2, "seed": 3, "temperature": 1.0}
    alone = [_texts(await _completion(client, prompt=prompt, **params)) for prompt in _PROMPTS]
    assert _texts(await _completion(client, prompt=_PROMPTS, **params)) == [text for texts in alone for text in texts]


async def test_prompts_may_be_lists_of_token_ids(client: AsyncOpenAI) -> None:
    first, second = [10, 20, 30], [40, 50]
    params: dict[str, Any] = {"temperature": 0}
    answer = await _completion(client, prompt=[first, second], **params)
    alone = [_texts(await _completion(client, prompt=each, **params))[0] for each in (first, second)]
    assert _texts(answer) == alone
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
