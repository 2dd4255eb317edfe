"""The form of an answer, as clients of OpenAI's and vLLM's servers ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_serving.core.generation import Structure
from mlx_serving.core.grammar.structure import MAX_DEPTH, MAX_SOURCE_CHARS
from mlx_serving.errors import GuidanceError, InvalidRequest
from mlx_serving.server.errors import error_code
from mlx_serving.server.openai.requests import parse_chat, parse_completion

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
OF_SCHEMA: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}


def chat(**fields: object) -> Structure | None:
    return parse_chat({"messages": [{"role": "user", "content": "Hello"}], **fields}).structure


def refusal(**fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Structure("json_object")),
        ({"response_format": OF_SCHEMA}, Structure("json_schema", SCHEMA)),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, Structure("json_schema", {})),
        ({"structured_outputs": {"json": SCHEMA}}, Structure("json_schema", SCHEMA)),
        ({"structured_outputs": {"json": '{"type": "object"}'}}, Structure("json_schema", {"type": "object"})),
        ({"structured_outputs": {"json_object": True}}, Structure("json_object")),
        ({"structured_outputs": {"regex": "a+"}}, Structure("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Structure("choice", ("a", "b"))),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Structure("grammar", 'start: "a"')),
        ({"guided_json": SCHEMA}, Structure("json_schema", SCHEMA)),
        ({"guided_regex": "a+"}, Structure("regex", "a+")),
        ({"guided_choice": ["a"]}, Structure("choice", ("a",))),
        ({"guided_grammar": 'start: "a"'}, Structure("grammar", 'start: "a"')),
    ],
)
def test_every_way_to_ask_is_understood(fields: dict[str, object], structure: Structure | None) -> None:
    assert chat(**fields) == structure
    assert parse_completion({"prompt": "Hello", **fields}).structure == structure


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be given"),
        ({"response_format": {**OF_SCHEMA, "type": "text"}}, "response_format.json_schema", "for no other"),
        ({"structured_outputs": {}}, "structured_outputs", "one of its parameters"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json", "no JSON Schema"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one"),
        ({"guided_regex": ""}, "guided_regex", "not empty"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "one form only"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs.regex",
            "one form only",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_and_named(fields: dict[str, object], param: str, words: str) -> None:
    error = refusal(**fields)
    assert isinstance(error, GuidanceError)
    assert (error.field, error_code(error)) == (param, "invalid_structure")
    assert words in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"guided_choice": "a"}, "guided_choice"),
    ],
)
def test_what_is_not_known_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    assert refusal(**fields).field == param


def test_what_is_too_large_or_too_deep_goes_no_further() -> None:
    schema: dict[str, Any] = {}
    for _ in range(10_000):
        schema = {"items": schema}
    assert refusal(guided_json=schema).details["limit"] == MAX_DEPTH
    large = refusal(response_format={**OF_SCHEMA, "json_schema": {"schema": {"const": "x" * 5_000_000}}})
    assert large.details["limit"] == MAX_SOURCE_CHARS
