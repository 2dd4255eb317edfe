"""Answers with a form, as the official client asks for them and reads them."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Literal

import httpx2
import jsonschema
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from .served_process import ServedProcess
from .tiny_server import HELLO, KEYS


class City(BaseModel):
    name: str = Field(max_length=20)
    country: str = Field(max_length=20)
    continent: Literal["Europe", "Asia", "Africa", "America", "Oceania"]
    is_capital: bool


QUESTION: Any = [{"role": "user", "content": "Describe the city of Paris in France."}]


async def test_the_client_parses_an_answer_into_a_pydantic_model(embedded: ServedProcess) -> None:
    async with embedded.openai() as client:
        done = await client.chat.completions.parse(
            model="smollm2-135m", messages=QUESTION, response_format=City, temperature=0, max_tokens=100
        )
    [choice] = done.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, City)
    assert choice.message.parsed.name == "Paris"


async def test_the_streaming_helper_parses_as_well(embedded: ServedProcess) -> None:
    async with (
        embedded.openai() as client,
        client.chat.completions.stream(
            model="smollm2-135m", messages=QUESTION, response_format=City, temperature=0, max_tokens=100
        ) as stream,
    ):
        pieces = [event.delta async for event in stream if event.type == "content.delta"]
        done = await stream.get_final_completion()
    assert len(pieces) > 5
    assert City.model_validate_json("".join(pieces)) == done.choices[0].message.parsed


async def test_several_answers_share_a_prompt_and_each_fits(client: AsyncOpenAI) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": [1, 2, 3]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    done = await client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        n=4,
        temperature=1,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    for choice in done.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), schema)


async def test_completions_take_vllms_parameters(client: AsyncOpenAI) -> None:
    done = await client.completions.create(
        model="tiny", prompt="Hello", extra_body={"structured_outputs": {"regex": "[a-c]{5}"}}
    )
    assert re.fullmatch("[a-c]{5}", done.choices[0].text)


@pytest.mark.parametrize(
    "form",
    [
        {"guided_json": {"type": "array", "uniqueItems": True}},
        {"guided_json": {"allOf": [{"type": "string", "pattern": f".*(a|b){{{n}}}.*"} for n in range(40)]}},
        {"guided_regex": "(a"},
        {"guided_regex": "((a{1,1000}){1,1000}){1,1000}" * 200 + "("},
        {"guided_grammar": "start: " + "(" * 20_000},
        {"guided_json": {"const": "x" * 60_000}, "guided_regex": "a"},
    ],
)
async def test_bombs_and_mistakes_are_the_clients_fault_and_nobody_elses(tiny: ServedProcess, form: Any) -> None:
    async with tiny.openai() as client:

        async def bystander() -> str:
            done = await client.chat.completions.create(
                model="tiny", messages=HELLO, max_tokens=30, extra_body={"guided_regex": "[a-z]{12}"}
            )
            return done.choices[0].message.content or ""

        async def attack() -> None:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="tiny", messages=HELLO, extra_body=form)
            assert refused.value.code == "invalid_structure"
            assert refused.value.param in form

        texts, _ = await asyncio.gather(asyncio.gather(bystander(), bystander()), attack())
    assert all(re.fullmatch("[a-z]{12}", text) for text in texts)


async def test_ten_thousand_nested_arrays_are_refused(tiny: ServedProcess) -> None:
    nested = '{"items":' * 10_000 + "{}" + "}" * 10_000
    body = '{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "guided_json": ' + nested + "}"
    async with httpx2.AsyncClient(timeout=30) as http:
        response = await http.post(
            f"{tiny.url}/v1/chat/completions",
            content=body,
            headers={"authorization": f"Bearer {KEYS['api_key']}", "content-type": "application/json"},
        )
    assert response.status_code in (400, 413)


UNIQUE: dict[str, Any] = {"type": "array", "uniqueItems": True}


@pytest.mark.parametrize(
    ("path", "asked", "field"),
    [
        (
            "chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": UNIQUE}}},
            "response_format.json_schema.schema",
        ),
        ("chat/completions", {"structured_outputs": {"json": UNIQUE}}, "structured_outputs.json"),
        ("messages", {"output_config": {"format": {"type": "json_schema", "schema": UNIQUE}}}, "output_config.format"),
        (
            "responses",
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": UNIQUE}}},
            "text.format.schema",
        ),
    ],
)
async def test_a_refusal_names_what_the_client_sent(
    tiny: ServedProcess, path: str, asked: dict[str, Any], field: str
) -> None:
    body: dict[str, Any] = {"model": "tiny", **asked}
    body |= {"input": "Hi"} if path == "responses" else {"messages": HELLO}
    body |= {"max_tokens": 10} if path == "messages" else {}
    async with httpx2.AsyncClient(timeout=30) as http:
        response = await http.post(
            f"{tiny.url}/v1/{path}", json=body, headers={"authorization": f"Bearer {KEYS['api_key']}"}
        )
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(field)
    assert "uniqueItems" in message
