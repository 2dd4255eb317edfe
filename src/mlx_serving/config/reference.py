"""What can be set: every section and setting with its type, limits, default and meaning.

All of it is read from the JSON Schema that pydantic makes of `schema.Config`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeAlias, cast

from mlx_serving.config.origin import Path
from mlx_serving.config.schema import Config

JsonSchema: TypeAlias = dict[str, object]

ANY_INDEX = "N"
"""Stands for every index of a list in the path of a `Setting`."""

_TYPE_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that can be set. `type`, `limits` and `default_text` are words for people."""

    path: Path
    type: str
    limits: str
    has_default: bool
    default: object
    description: str
    choices: tuple[str, ...]
    is_secret: bool

    @property
    def requirement(self) -> str:
        """Type and limits in one phrase."""
        return f"{self.type}, {self.limits}" if self.limits else self.type

    @property
    def default_text(self) -> str:
        return self.default if isinstance(self.default, str) else json.dumps(_brief(self.default), ensure_ascii=False)


def _brief(value: object) -> object:
    """Entries of lists without what they leave open."""
    if isinstance(value, list):
        return [_brief(entry) for entry in cast("list[object]", value)]
    if isinstance(value, dict):
        members = {name: _brief(member) for name, member in cast("dict[str, object]", value).items()}
        return {name: member for name, member in members.items() if member not in (None, [], {})}
    return value


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of keys to values: `keys` are its direct ones."""

    path: Path
    description: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """All sections and settings, in the order of the schema."""

    sections: Mapping[Path, Section]
    settings: Mapping[Path, Setting]

    def find(self, path: Path) -> Setting | None:
        """The setting at `path`, in which list indices are numbers."""
        return self.settings.get(_with_any_index(path))

    def keys_below(self, path: Path) -> tuple[str, ...]:
        """The keys that the section at `path` knows; none if there is no such section."""
        section = self.sections.get(_with_any_index(path))
        return section.keys if section is not None else ()

    def namesakes(self, path: Path) -> list[Path]:
        """Settings elsewhere that have the same last key, or are this key when spelled with `_` only; the closest
        first."""
        found = [
            known for known in self.settings if path[-1] in (known[-1], "_".join(known)) and ANY_INDEX not in known
        ]
        return sorted(found, key=lambda known: -_shared(known, path))

    def holds_secret(self, path: Path) -> bool:
        """Whether what was given at `path` may be, hold or belong to a secret."""
        return any(
            setting.is_secret and (setting.path[: len(path)] == path or path[: len(setting.path)] == setting.path)
            for setting in self.settings.values()
        )


def _shared(one: Path, other: Path) -> int:
    """How many parts two paths have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _with_any_index(path: Path) -> Path:
    return tuple(ANY_INDEX if part.isdecimal() else part for part in path)


def read_reference() -> Reference:
    """The settings of `Config`."""
    schema = cast("JsonSchema", Config.model_json_schema())
    sections: dict[Path, Section] = {}
    settings: dict[Path, Setting] = {}
    for found in _walk(schema, cast("dict[str, JsonSchema]", schema["$defs"]), ()):
        if isinstance(found, Section):
            sections[found.path] = found
        else:
            settings[found.path] = found
    return Reference(sections, settings)


def _walk(schema: JsonSchema, definitions: Mapping[str, JsonSchema], path: Path) -> Iterator[Section | Setting]:
    resolved = _resolved(schema, definitions)
    if "properties" in resolved:
        properties = cast("dict[str, JsonSchema]", resolved["properties"])
        yield Section(path, str(resolved.get("description", "")), tuple(properties))
        for name, child in properties.items():
            yield from _walk(child, definitions, (*path, name))
    elif "items" in resolved:
        yield _setting(path, resolved)
        items = _resolved(cast("JsonSchema", resolved["items"]), definitions)
        if "properties" in items:
            yield from _walk(items, definitions, (*path, ANY_INDEX))
    else:
        yield _setting(path, resolved)


def _resolved(schema: JsonSchema, definitions: Mapping[str, JsonSchema]) -> JsonSchema:
    """`schema` with what it refers to; what stands beside the reference wins."""
    target = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    return {**definitions[target], **schema} if target else schema


def _setting(path: Path, schema: JsonSchema) -> Setting:
    options = cast("list[JsonSchema]", schema.get("anyOf", [schema]))
    main = next(option for option in options if option.get("type") != "null")
    choices = tuple(str(choice) for choice in cast("list[object]", main.get("enum", [])))
    words = f"one of {', '.join(choices)}" if choices else _TYPE_WORDS[str(main["type"])]
    is_secret = main.get("format") == "password"
    return Setting(
        path=path,
        type=("a secret" if is_secret else words) + (" or null" if len(options) > 1 else ""),
        limits=_limits(main),
        has_default="default" in schema,
        default=schema.get("default"),
        description=str(schema["description"]),
        choices=choices,
        is_secret=is_secret,
    )


def _limits(schema: JsonSchema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    parts = [f"greater than {above}"] if above is not None else []
    if low is not None and high is not None:
        parts.append(f"{low} to {high}")
    elif low is not None:
        parts.append(f"at least {low}")
    elif high is not None:
        parts.append(f"at most {high}")
    if "minItems" in schema:
        parts.append(f"at least {schema['minItems']} entry")
    if "maxLength" in schema:
        parts.append(f"{schema.get('minLength', 0)} to {schema['maxLength']} characters")
    elif schema.get("minLength") == 1:
        parts.append("not empty")
    return " and ".join(parts)
