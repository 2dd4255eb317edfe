from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlx_serving.core.generation import Structure
from mlx_serving.core.grammar.structure import MAX_DEPTH, MAX_SOURCE_CHARS, check, has_finite_instance, source
from mlx_serving.errors import GuidanceError


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


LOOP = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "structure",
    [
        Structure("json_object"),
        Structure("json_schema", {}),
        Structure("json_schema", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        Structure("json_schema", nested(MAX_DEPTH - 1)),
        Structure("regex", "a*"),
        Structure("regex", "a" * MAX_SOURCE_CHARS),
        Structure("choice", ("yes", "no")),
        Structure("grammar", 'start: "a"'),
    ],
)
def test_sound_descriptions_are_accepted(structure: Structure) -> None:
    check(structure)


@pytest.mark.parametrize(
    ("structure", "rule"),
    [
        (Structure("json_object", {}), "takes no further description"),
        (Structure("json_schema"), "must be an object, got nothing"),
        (Structure("json_schema", "{}"), "must be an object, got str"),
        (Structure("json_schema", {"const": {1, 2}}), "must be JSON"),
        (Structure("choice"), "at least one"),
        (Structure("choice", "yes"), "at least one"),
        (Structure("choice", ()), "at least one"),
        (Structure("choice", ("yes", "")), "none empty"),
        (Structure("regex"), "must be a text"),
        (Structure("regex", ""), "must be a text"),
        (Structure("grammar", ("a",)), "must be a text"),
    ],
)
def test_what_is_no_description_is_refused(structure: Structure, rule: str) -> None:
    with pytest.raises(GuidanceError, match=rule) as refused:
        check(replace(structure, field="response_format"))
    assert refused.value.field == "response_format"
    assert refused.value.message.startswith("response_format: ")


@pytest.mark.parametrize(
    "structure",
    [
        Structure("json_schema", {"const": "x" * MAX_SOURCE_CHARS}),
        Structure("regex", "x" * (MAX_SOURCE_CHARS + 1)),
        Structure("grammar", "x" * (MAX_SOURCE_CHARS + 1)),
        Structure("choice", ("x" * MAX_SOURCE_CHARS, "y")),
    ],
)
def test_what_is_too_large_is_refused_with_the_numbers(structure: Structure) -> None:
    with pytest.raises(GuidanceError) as refused:
        check(structure)
    assert refused.value.details["limit"] == MAX_SOURCE_CHARS
    assert int(str(refused.value.details["given"])) > MAX_SOURCE_CHARS


def test_depth_is_bounded_and_does_not_exhaust_the_stack() -> None:
    for levels in (MAX_DEPTH, 100_000):
        with pytest.raises(GuidanceError) as refused:
            check(Structure("json_schema", nested(levels)))
        assert refused.value.details["limit"] == MAX_DEPTH


ENDLESS: list[dict[str, Any]] = [
    LOOP,
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
    {"type": "array", "minItems": 1, "items": {"$ref": "#"}},
    {"anyOf": [{"$ref": "#"}, LOOP]},
    {"oneOf": [{"$ref": "#"}]},
]
ENDING: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"$ref": "#"}}},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": []},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["b"]},
    {"type": "object", "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}},
    {"type": "array", "minItems": 1, "prefixItems": [{}], "items": {"$ref": "#"}},
    {"type": "array", "minItems": 1},
    {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    {"anyOf": []},
    {"allOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": {"type": "integer"}}},
    {
        "$ref": "#/$defs/tree",
        "$defs": {"tree": {"anyOf": [{"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/tree"}}, {}]}},
    },
    {"$ref": "https://example.com/elsewhere"},
    {"$ref": "#/$defs/missing/further"},
    {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/x"}, "y": {"$ref": "#/$defs/y"}},
        "required": ["x", "y"],
        "$defs": {
            "x": {"anyOf": [{"allOf": [{"$ref": "#/$defs/y"}]}, {"type": "null"}]},
            "y": {"allOf": [{"$ref": "#/$defs/x"}]},
        },
    },
]  # fmt: skip


@pytest.mark.parametrize("schema", ENDLESS)
def test_a_schema_that_only_endless_values_fit_has_no_finite_instance(schema: dict[str, Any]) -> None:
    assert not has_finite_instance(schema)


@pytest.mark.parametrize("schema", ENDING)
def test_a_schema_that_some_value_fits_has_a_finite_instance(schema: dict[str, Any]) -> None:
    assert has_finite_instance(schema)


def test_a_long_chain_of_references_does_not_exhaust_the_stack() -> None:
    chain: dict[str, Any] = {f"a{number}": {"$ref": f"#/$defs/a{number + 1}"} for number in range(300)}
    assert has_finite_instance({"$ref": "#/$defs/a0", "$defs": {**chain, "a300": {"type": "null"}}})
    assert not has_finite_instance({"$ref": "#/$defs/a0", "$defs": {**chain, "a300": {"$ref": "#/$defs/a0"}}})


def test_the_source_is_the_text_or_the_json_text() -> None:
    assert source(Structure("regex", "ü")) == "ü"
    assert source(Structure("choice", ("a", "ü"))) == '["a", "ü"]'
    assert source(Structure("json_schema", {"b": 1, "a": 2})) == '{"b": 1, "a": 2}'
