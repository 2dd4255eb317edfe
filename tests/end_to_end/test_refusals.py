"""Bad requests get an error that names the parameter, the limit and what was given, and cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from .served_process import ServedProcess
from .tiny_server import HELLO, MAX_BODY_BYTES, SHORT_CONTEXT


@pytest.mark.parametrize(
    ("changed", "status", "code", "param", "words"),
    [
        ({"model": "gpt-4o"}, 404, "model_not_found", None, "gpt-4o"),
        ({"extra_body": {"temprature": 1}}, 400, "unknown_parameter", "temprature", "did you mean"),
        ({"max_tokens": -1}, 400, "invalid_value", "max_tokens", "-1"),
        ({"temperature": 3}, 400, "invalid_value", "temperature", "at most 2"),
        ({"messages": []}, 400, "invalid_value", "messages", "empty"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_value", "messages[0].role", "king"),
        ({"n": 129}, 400, "invalid_value", "n", "at most 128, got 129"),
        ({"top_logprobs": 2}, 400, "invalid_value", "top_logprobs", "logprobs is true"),
        ({"response_format": {"type": "jason"}}, 400, "invalid_value", "response_format.type", "jason"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            400,
            "invalid_value",
            "tools",
            "template",
        ),
    ],
)
async def test_the_official_client_gets_a_typed_error(
    client: AsyncOpenAI, changed: Mapping[str, Any], status: int, code: str, param: str | None, words: str
) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 1, **changed}
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(**asked)
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert words in error.message
    assert type(error) is {400: openai.BadRequestError, 404: openai.NotFoundError}[status]


async def test_a_streamed_request_is_refused_before_the_stream_begins(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=0, stream=True)
    assert caught.value.param == "max_tokens"


async def test_a_prompt_over_the_context_is_refused_with_the_numbers(client: AsyncOpenAI) -> None:
    message: Any = [{"role": "user", "content": "x" * SHORT_CONTEXT}]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="short", messages=message)
    assert caught.value.code == "context_length_exceeded"
    counted = SHORT_CONTEXT + len("user\n\nassistant\n") + 3  # three special tokens of the template
    assert str(SHORT_CONTEXT) in caught.value.message
    assert str(counted) in caught.value.message


async def test_a_default_that_nobody_sent_is_cut_to_the_context(client: AsyncOpenAI) -> None:
    prompt = [0] * (SHORT_CONTEXT - 2)
    answer = await client.completions.create(model="short", prompt=prompt, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 2)
    with pytest.raises(openai.BadRequestError, match="max_tokens 16"):
        await client.completions.create(model="short", prompt=prompt, max_tokens=16)


async def test_a_model_whose_context_the_operator_did_not_cap_takes_the_same_prompt(client: AsyncOpenAI) -> None:
    message: Any = [{"role": "user", "content": "x" * SHORT_CONTEXT}]
    answer = await client.chat.completions.create(model="tiny", messages=message, max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > SHORT_CONTEXT


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"messages": [', 400, "invalid_json"),
        (b"[1]", 400, "invalid_request"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
    ],
)
async def test_what_no_client_sends_is_refused_too(tiny: ServedProcess, body: bytes, status: int, code: str) -> None:
    headers = {"content-type": "application/json"}
    async with tiny.http() as http:
        answer = await http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


async def test_a_body_over_the_limit_is_refused_with_the_limit(client: AsyncOpenAI) -> None:
    message: Any = [{"role": "user", "content": "x" * MAX_BODY_BYTES}]
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model="tiny", messages=message)
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    assert str(MAX_BODY_BYTES) in caught.value.message


async def test_without_the_key_nobody_gets_in(tiny: ServedProcess) -> None:
    async with AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model="tiny", messages=HELLO)
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_balancers_need_no_key(tiny: ServedProcess) -> None:
    async with tiny.http(key="none") as http:
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/health/ready")).status_code == 200
        assert (await http.get("/health")).status_code == 401
