"""From a JSON Schema to the rules of a grammar in the notation of llguidance's Lark, for values that are not written as
JSON. What that means is said by who writes them: see `core.grammar.yaml_grammar` and `core.output.gemma_calls`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar, cast

from mlx_serving.errors import GuidanceError

MAX_RULES = 4000
"""Of a grammar: a schema that is used at several places has rules for each."""

_KNOWN = {
    *("type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "enum", "const"),
    *("minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "anyOf", "$ref"),
    *("$defs", "definitions", "title", "description", "default", "examples", "$schema", "$id", "$comment"),
    *("deprecated", "readOnly", "writeOnly"),
}
_RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_NO_SPACE = {"x-guidance": {"whitespace_flexible": False}}  # else there may be some before a number, by JSON's rules
_SCALARS = ["string", "integer", "number", "boolean", "null"]

Place = TypeVar("Place", bound=Hashable)
"""Where a value stands, as far as that changes how it is written."""


class SchemaWriter(ABC, Generic[Place]):
    """Errors begin with `subject` and name `field` and the keyword at fault; the schema must not be deeper than
    `core.grammar.structure` allows. Rules are called after `prefix`."""

    notation: str

    def __init__(self, root: Mapping[str, object], *, subject: str, field: str, prefix: str = "r") -> None:
        self._root = root
        self._subject = subject
        self._field = field
        self._prefix = prefix
        self._known: dict[tuple[int, Place], str] = {}
        self._within: list[str] = []  # references that are being followed
        self.rules: list[str] = []

    @abstractmethod
    def literal(self, value: object, place: Place) -> str:
        """How a constant is written."""

    @abstractmethod
    def string(self, least: int, most: int | None, place: Place) -> str:
        """How a text is written that has so many characters."""

    @abstractmethod
    def scalar(self, rule: str, place: Place) -> str:
        """How a number or a word is written that this rule describes."""

    @abstractmethod
    def object(self, members: Sequence[tuple[str, object, bool]], place: Place) -> str:
        """How an object is written, whose members have a name, a schema, and may be missing or not."""

    @abstractmethod
    def array(self, items: object, least: int, most: int | None, place: Place) -> str:
        """How an array of so many such items is written; `most` is not 0."""

    @abstractmethod
    def no_items(self, place: Place) -> str:
        """How an empty array is written."""

    def value(self, schema: object, place: Place) -> str:
        """The rule of a value. Raises `GuidanceError` for what is not supported or too large."""
        if not isinstance(schema, Mapping):
            raise self.error("has a schema that is no object: say what it may be", [])
        parts = cast("Mapping[str, object]", schema)
        key = (id(parts), place)
        if key not in self._known:
            self._known[key] = self.rule(" | ".join(self._choices(parts, place)))
        return self._known[key]

    def rule(self, body: str) -> str:
        if len(self.rules) >= MAX_RULES:
            raise self.error(f"is too large: its grammar has more than {MAX_RULES} rules", [])
        name = f"{self._prefix}{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def sequence(self, members: Iterable[tuple[str, bool]], separator: str) -> str:
        """The rule of members of which some must be there, and one is; empty for no members."""
        # From the last member back: what may follow a member, and what there may be from a member on.
        tail, whole = "", ""
        for member, needed in reversed(list(members)):
            begun = self.rule(f"{member} {tail}".rstrip())
            whole = begun if needed else (self.rule(f"{begun} | {whole}") if whole else begun)
            following = f"{separator} {begun}"
            tail = self.rule(following if needed else f"{following} | {tail}" if tail else f"({following})?")
        return whole

    def error(self, what: str, keywords: list[str]) -> GuidanceError:
        return GuidanceError(f"{self._subject} {what}", field=self._field, keywords=keywords)

    def _choices(self, parts: Mapping[str, object], place: Place) -> list[str]:
        unknown = sorted(parts.keys() - _KNOWN)
        if unknown:
            raise self.error(f"has keywords that are not supported in {self.notation}: {', '.join(unknown)}", unknown)
        reference = parts.get("$ref")
        if isinstance(reference, str):
            return [self._referred(reference, place)]
        if "const" in parts:
            return [self.literal(parts["const"], place)]
        if "enum" in parts:
            return [self.literal(each, place) for each in _list(parts["enum"])] or [self._none("enum")]
        if "anyOf" in parts:
            return [self.value(each, place) for each in _list(parts["anyOf"])] or [self._none("anyOf")]
        named = parts.get("type", _SCALARS)
        kinds = [named] if isinstance(named, str) else _list(named)
        return [self._of_type(parts, kind, place) for kind in kinds] or [self._none("type")]

    def _of_type(self, parts: Mapping[str, object], kind: object, place: Place) -> str:
        match kind:
            case "object":
                return self.object(self._members(parts), place)
            case "array":
                least, most = self._bounds(parts, "minItems", "maxItems")
                return self.no_items(place) if most == 0 else self.array(parts.get("items", {}), least, most, place)
            case "string":
                return self.string(*self._bounds(parts, "minLength", "maxLength"), place)
            case "integer" | "number":
                ranged = {name: parts[name] for name in _RANGE if name in parts}
                if ranged or kind == "integer":
                    number = {"type": kind, **ranged, **_NO_SPACE}
                    return self.scalar(self.rule(f"%json {json.dumps(number)}"), place)
                return self.scalar(r"/-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?/", place)
            case "boolean":
                return self.scalar('("true" | "false")', place)
            case "null":
                return self.scalar('"null"', place)
            case _:
                raise self.error(f"has the type {json.dumps(kind)[:40]}, which there is not", ["type"])

    def _members(self, parts: Mapping[str, object]) -> list[tuple[str, object, bool]]:
        if parts.get("additionalProperties") not in (None, False):
            raise self.error(
                f"allows additionalProperties, which is not supported in {self.notation}: name all properties",
                ["additionalProperties"],
            )
        properties = cast("Mapping[str, object]", parts.get("properties") or {})
        required = set(_list(parts.get("required")))
        missing = [str(name) for name in required if name not in properties]
        if missing:
            raise self.error(f"requires {missing[0]}, which is not among its properties", ["required"])
        return [(name, each, name in required) for name, each in properties.items()]

    def _bounds(self, parts: Mapping[str, object], low: str, high: str) -> tuple[int, int | None]:
        least, most = parts.get(low, 0), parts.get(high)
        if not isinstance(least, int) or not isinstance(most, int | None) or least < 0:
            raise self.error(f"must have whole numbers for {low} and {high}", [low, high])
        if most is not None and most < least:
            raise self.error(f"has a {high} of {most} below its {low} of {least}", [low, high])
        return least, most

    def _referred(self, reference: str, place: Place) -> str:
        if reference in self._within:
            raise self.error(f"leads back to itself with {reference}: in {self.notation} nothing may", ["$ref"])
        target = cast("object", self._root)
        for step in reference.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            target = cast("Mapping[str, object]", target).get(name) if isinstance(target, Mapping) else None
        if not reference.startswith("#") or target is None:
            raise self.error(f"refers to {reference[:80]}, which is not in it", ["$ref"])
        self._within.append(reference)
        try:
            return self.value(target, place)
        finally:
            self._within.pop()

    def _none(self, keyword: str) -> str:
        raise self.error(f"has nothing in {keyword}: no answer fits it", [keyword])


def _list(value: object) -> Sequence[object]:
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
