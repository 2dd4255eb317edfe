"""Documents of a schema, tried with llguidance itself and read by pyyaml."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from mlx_serving.core.grammar.schema_writer import MAX_RULES
from mlx_serving.core.grammar.yaml_grammar import yaml_grammar
from mlx_serving.errors import GuidanceError

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "yes": {"enum": ["on", 'a "b"\n', 1, 1e30, 2e-7, 2.5, None, True, [1, {"a": "é\x85"}]]},
        "two words": {"type": ["integer", "null"], "minimum": 3, "maximum": 700},
        "pets": {"type": "array", "items": {"$ref": "#/$defs/pet"}, "minItems": 1, "maxItems": 3},
        "rows": {"type": "array", "items": {"type": "array", "items": {"type": "number"}, "maxItems": 3}},
        "nothing": {"type": "object", "properties": {}},
        "either": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/pet"}]},
        "never": {"type": "array", "maxItems": 0},
    },
    "required": ["name", "pets"],
    "additionalProperties": False,
    "$defs": {
        "pet": {
            "title": "Pet",
            "type": "object",
            "properties": {"kind": {"const": "cat"}, "age": {"type": "number", "exclusiveMinimum": 0, "maximum": 9}},
        }
    },
}
DOCUMENT = """name: "Ann"
yes: "a \\"b\\"\\U0000000a"
two words: 17
pets:
  - kind: "cat"
    age: 2.5
  - {}
rows:
  - - 1
    - -2.5
  - []
nothing: {}
either:
  age: 3
never: []"""


def matcher(schema: Mapping[str, Any]) -> LLMatcher:
    made = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(yaml_grammar(schema, "schema")))
    assert not made.is_error(), made.get_error()
    return made


def fits(schema: Mapping[str, Any], text: str) -> bool:
    tokens = list(text.encode())
    tried = matcher(schema)
    return tried.try_consume_tokens(tokens) == len(tokens) and tried.is_accepting()


def drawn(schema: Mapping[str, Any], dice: random.Random) -> str | None:
    """A document of random bytes, as far as the grammar allows; None for one that does not end soon."""
    tried, text = matcher(schema), bytearray()
    mask = allocate_token_bitmask(1, 256 + 1)
    while len(text) < 3000:
        if tried.is_accepting() and (tried.is_stopped() or dice.random() < 0.2):
            return text.decode()
        fill_next_token_bitmask(tried, mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        byte = dice.choice([int(each) for each in allowed if each < 256])
        assert tried.consume_token(byte)
        text.append(byte)
    return None


def test_a_document_in_block_style_fits_and_is_read() -> None:
    text = DOCUMENT.replace("two words:", '"two words":').replace("yes:", '"yes":')
    assert fits(PERSON, text)
    read = yaml.safe_load(text)
    assert read["pets"] == [{"kind": "cat", "age": 2.5}, {}]
    assert read["rows"] == [[1, -2.5], []]
    assert read["yes"] == 'a "b"\n'
    jsonschema.validate(read, PERSON)


@pytest.mark.parametrize(
    "text", ["", "name: Ann", 'name: "Ann"', 'pets:\n  - {}\nname: "Ann"', 'name: "Ann"\npets:\n- {}', "---\n"]
)
def test_others_do_not_fit(text: str) -> None:
    assert not fits(PERSON, text)


@pytest.mark.parametrize("text", ["- \t-4", "-  -4", "- -4 "])
def test_there_is_no_space_around_a_number(text: str) -> None:
    number = {"type": "integer", "minimum": -5}
    for items in (number, {"anyOf": [number, number]}):
        schema = {"type": "array", "items": items}
        assert fits(schema, "- -4")
        assert not fits(schema, text)


def test_whatever_is_drawn_is_read_as_the_schema_says() -> None:
    dice = random.Random(2)
    documents = [document for _ in range(60) if (document := drawn(PERSON, dice)) is not None]
    assert len(documents) > 30
    for document in documents:
        jsonschema.validate(yaml.safe_load(document), PERSON)


SCALARS: list[dict[str, Any]] = [
    {},
    {"type": "string", "minLength": 1, "maxLength": 3},
    {"type": "integer", "minimum": -5, "maximum": 12},
    {"type": "number"},
    {"type": ["null", "boolean"]},
    {"enum": ["yes", "1", "", "~", "a: b", "🙈\u2028", 1.0, {"null": []}]},
    {"const": -0.0},
]
NAMES = ["a", "b_2", "no", "1", "", "a: b", "#x", "größe", "- c", "\n"]


@st.composite
def schemas(draw: st.DrawFn, depth: int = 0) -> dict[str, Any]:
    inner = schemas(depth + 1)
    match draw(st.sampled_from(["scalar", *(["object", "array", "anyOf"] if depth < 3 else [])])):
        case "object":
            properties = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=3))
            required = [name for name in properties if draw(st.booleans())]
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        case "array":
            return {"type": "array", "items": draw(inner), "minItems": draw(st.integers(0, 2)), "maxItems": 2}
        case "anyOf":
            return {"anyOf": draw(st.lists(inner, min_size=1, max_size=2))}
        case _:
            return draw(st.sampled_from(SCALARS))


@settings(max_examples=100, deadline=None)
@given(schema=schemas(), seed=st.integers(0, 1000))
def test_whatever_the_schema_what_is_drawn_fits_it(schema: dict[str, Any], seed: int) -> None:
    document = drawn(schema, random.Random(seed))
    if document is not None:
        jsonschema.validate(yaml.safe_load(document), schema)


REFUSED: Sequence[tuple[dict[str, Any], str, list[str]]] = [
    ({"type": "string", "pattern": "a"}, "not supported in YAML: pattern", ["pattern"]),
    ({"properties": {"a": {"oneOf": []}}, "type": "object"}, "oneOf", ["oneOf"]),
    ({"type": "object", "additionalProperties": {}}, "additionalProperties", ["additionalProperties"]),
    ({"type": "object", "required": ["a"]}, "requires a", ["required"]),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}}, "leads back to itself", ["$ref"]),
    ({"$ref": "#/$defs/a"}, "not in it", ["$ref"]),
    ({"$ref": "https://example.com/a"}, "not in it", ["$ref"]),
    ({"$ref": "#/title/a", "title": "x"}, "not in it", ["$ref"]),
    ({"type": "text"}, "which there is not", ["type"]),
    ({"type": []}, "nothing in type", ["type"]),
    ({"enum": []}, "nothing in enum", ["enum"]),
    ({"anyOf": []}, "nothing in anyOf", ["anyOf"]),
    ({"anyOf": [True]}, "no object", []),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "below its minLength", ["minLength", "maxLength"]),
    ({"type": "array", "minItems": "1"}, "whole numbers", ["minItems", "maxItems"]),
    ({"type": "object", "properties": {f"p{n}": {} for n in range(MAX_RULES)}}, "too large", []),
]


@pytest.mark.parametrize(("schema", "words", "keywords"), REFUSED)
def test_what_cannot_be_is_refused_by_name(schema: dict[str, Any], words: str, keywords: list[str]) -> None:
    with pytest.raises(GuidanceError, match=words) as refused:
        yaml_grammar(schema, "guidance.schema")
    assert refused.value.field == "guidance.schema"
    assert refused.value.details.get("keywords", []) == keywords
