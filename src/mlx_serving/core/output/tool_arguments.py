"""The tools that were offered, and values of their arguments that a model wrote without telling their types."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

Schemas: TypeAlias = Mapping[str, Mapping[str, object]]
"""The JSON Schema of each tool's parameters, by the tool's name."""

_PYTHON_WORDS: Mapping[str, object] = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True, slots=True)
class WholeCall:
    name: str
    arguments: Mapping[str, object]


def schemas_of(tools: Sequence[Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    """Of tools in OpenAI's form; what is not in that form is passed over."""
    schemas: dict[str, Mapping[str, object]] = {}
    for tool in tools:
        function = _object(tool.get("function"))
        name = function.get("name")
        if isinstance(name, str):
            schemas[name] = _object(function.get("parameters"))
    return schemas


def property_of(schemas: Schemas, tool: str, name: str) -> Mapping[str, object]:
    """The schema of one argument; empty if there is none."""
    return _object(_object(schemas.get(tool, {}).get("properties")).get(name))


def property_names(schemas: Schemas, tool: str) -> list[str]:
    """The arguments that a tool's schema knows."""
    return list(_object(schemas.get(tool, {}).get("properties")))


def typed(text: str, schema: Mapping[str, object]) -> object:
    """The value that a text means where the schema says what it may be: text that can be nothing else stays text."""
    kinds = _kinds(schema)
    if kinds == {"string"}:
        return text
    try:
        value: object = read_json(text)
    except ValueError:
        word = text.strip().lower()
        value = _PYTHON_WORDS.get(word, text)
    kind = _kind(value)
    if not kinds or kind in kinds or (kind == "integer" and "number" in kinds):
        return value
    if isinstance(value, float) and value.is_integer() and "integer" in kinds:
        return int(value)
    return text if "string" in kinds else value


def read_json(text: str) -> object:
    """As strict as JSON about numbers, lenient about line breaks in strings. Raises ValueError."""
    try:
        return cast(object, json.loads(text, strict=False, parse_constant=_refuse_constant))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _object(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _kinds(schema: Mapping[str, object]) -> set[str]:
    kinds: set[str] = set()
    named = schema.get("type")
    if isinstance(named, str):
        kinds.add(named)
    elif isinstance(named, list):
        kinds.update(each for each in cast("list[object]", named) if isinstance(each, str))
    for combinator in ("anyOf", "oneOf"):
        choices = schema.get(combinator)
        if isinstance(choices, list):
            for choice in cast("list[object]", choices):
                kinds |= _kinds(_object(choice))
    values = schema.get("enum")
    if not kinds and isinstance(values, list):
        kinds.update(_kind(value) for value in cast("list[object]", values))
    return kinds


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
