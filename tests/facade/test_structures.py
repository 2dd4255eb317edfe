from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from mlx_serving import Engine
from mlx_serving.core.generation import Structure
from mlx_serving.errors import GuidanceError
from mlx_serving.facade.option_base import parse
from mlx_serving.facade.options import GeneratorParams
from mlx_serving.facade.structures import as_structure

from .embedding import configuration

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


class City(BaseModel):
    name: str = Field(max_length=5)


class Open(BaseModel, extra="allow"):
    city: City


CITY = {**City.model_json_schema(), "additionalProperties": False}


@dataclass
class Point:
    x: int


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Level(Enum):
    LOW = 1


def outlines_type(name: str, **attributes: object) -> object:
    """An instance as Outlines' own would look."""
    return type(name, (), {"__module__": "outlines.types.dsl"} | attributes)()


@pytest.mark.parametrize(
    ("given", "structure"),
    [
        (Structure("json_object"), Structure("json_object")),
        (City, Structure("json_schema", CITY)),
        (list[int], Structure("json_schema", {"type": "array", "items": {"type": "integer"}})),
        (int | None, Structure("json_schema", {"anyOf": [{"type": "integer"}, {"type": "null"}]})),
        (Literal["a", "b"], Structure("choice", ("a", "b"))),
        (Literal[1, 2], Structure("json_schema", {"enum": [1, 2], "type": "integer"})),
        (Size, Structure("choice", ("small", "large"))),
        (Level, Structure("json_schema", {"enum": [1], "title": "Level", "type": "integer"})),
        (["a", "b"], Structure("choice", ("a", "b"))),
        (re.compile("a+"), Structure("regex", "a+")),
        (SCHEMA, Structure("json_schema", SCHEMA)),
        ({}, Structure("json_schema", {})),
        ({"schema": SCHEMA, "format": "json"}, Structure("json_schema", SCHEMA)),
        ({"schema": City}, Structure("json_schema", CITY)),
        ({"mode": "json_schema", "schema": SCHEMA}, Structure("json_schema", SCHEMA)),
        ({"mode": "json_object"}, Structure("json_object")),
        ({"json_object": True}, Structure("json_object")),
        ({"json": SCHEMA}, Structure("json_schema", SCHEMA)),
        ({"regex": "a"}, Structure("regex", "a")),
        ({"choice": ["a"]}, Structure("choice", ("a",))),
        ({"grammar": 'start: "a"'}, Structure("grammar", 'start: "a"')),
        ({"schema": SCHEMA, "format": "yaml"}, Structure("yaml", SCHEMA)),
        ({"mode": "yaml", "schema": SCHEMA}, Structure("yaml", SCHEMA)),
        ({"yaml": City}, Structure("yaml", CITY)),
        ({"schema": "<!ELEMENT a EMPTY>", "format": "xml"}, Structure("xml", "<!ELEMENT a EMPTY>")),
        ({"mode": "xml", "schema": "<!ELEMENT a EMPTY>"}, Structure("xml", "<!ELEMENT a EMPTY>")),
        (outlines_type("JsonSchema", schema=json.dumps(SCHEMA)), Structure("json_schema", SCHEMA)),
        (outlines_type("Regex", pattern="a"), Structure("regex", "a")),
        (outlines_type("CFG", definition='start: "a"'), Structure("grammar", 'start: "a"')),
        (outlines_type("Choice", items=["a"]), Structure("choice", ("a",))),
    ],
)
def test_what_stands_for_a_structure(given: object, structure: Structure) -> None:
    assert as_structure(given) == structure


def test_other_types_have_the_schema_that_pydantic_gives_them() -> None:
    schema = TypeAdapter(Point).json_schema()
    assert as_structure(Point) == Structure("json_schema", {**schema, "additionalProperties": False})


def test_types_are_closed_unless_they_say_that_they_are_open() -> None:
    schema: Any = as_structure(Open).value
    assert schema["additionalProperties"] is True
    assert schema["$defs"]["City"] == CITY


def test_outlines_terms_become_regular_expressions(monkeypatch: pytest.MonkeyPatch) -> None:
    term = outlines_type("Sequence")
    with pytest.raises(GuidanceError, match="must be a type"):
        as_structure(term)
    dsl = types.ModuleType("outlines.types.dsl")

    def to_regex(given: object) -> str:
        assert given is term
        return "ab"

    monkeypatch.setattr(dsl, "to_regex", to_regex, raising=False)
    monkeypatch.setitem(sys.modules, "outlines.types.dsl", dsl)
    assert as_structure(term) == Structure("regex", "ab")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a schema", "must be a type"),
        (5, "must be a type"),
        (object(), "must be a type"),
        (types.SimpleNamespace, "no JSON Schema"),
        ({"schema": SCHEMA, "format": "html"}, "format must be one of json, yaml, xml, got 'html'"),
        ({"schema": SCHEMA, "format": "xml"}, "a xml must be a text"),
        ({"schema": ["a"], "format": "yaml"}, "must be an object"),
        ({"schema": "text", "format": "json"}, "must be a type"),
        ({"mode": "html", "schema": "<a/>"}, "mode must be one of"),
        ({"choice": "a"}, "at least one"),
        ([1, 2], "choices must be texts"),
        ([], "at least one"),
        ({"regex": ""}, "not empty"),
        ({"json_object": 5}, "no further description"),
    ],
)
def test_what_does_not_is_refused(given: object, words: str) -> None:
    with pytest.raises(GuidanceError, match=words):
        as_structure(given)


@pytest.mark.parametrize("name", ["structured", "structure", "guidance", "output_type", "outputType"])
def test_every_spelling_is_taken(name: str) -> None:
    asked = parse(GeneratorParams, {"model": "m", "prompt": "p", name: ["a", "b"]})
    assert asked.structured == Structure("choice", ("a", "b"))


async def test_an_engine_answers_in_that_form(tiny_model: Path) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Hello", "temperature": 1.0, "max_tokens": 200, "seed": 1}
    async with Engine(configuration(tiny_model)) as engine:
        await engine.load_model("tiny")
        assert await engine.generate({**asked, "output_type": Literal["yes", "no"]}) in ("yes", "no")
        City.model_validate_json(await engine.generate({**asked, "output_type": City}))
        with pytest.raises(GuidanceError) as refused:
            await engine.generate({**asked, "structured": {"type": "object", "not": {}}})
    assert refused.value.details["keywords"] == ["not"]
