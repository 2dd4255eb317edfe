"""The form an answer must have: what is accepted as a description of it, before anybody compiles it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from mlx_serving.core.generation import Structure
from mlx_serving.errors import GuidanceError

MAX_SOURCE_CHARS = 262_144
"""Of a schema as JSON text, a regular expression, a grammar, or all choices together."""
MAX_DEPTH = 100
"""Levels of objects and arrays in a schema."""


def check(structure: Structure) -> None:
    """Raises `GuidanceError` for what is too large, too deep, empty or of the wrong type."""
    value, field = structure.value, structure.field
    match structure.kind:
        case "json_object":
            if value is not None:
                raise GuidanceError(f"{field}: json_object takes no further description", field=field)
        case "json_schema" | "yaml":
            if not isinstance(value, Mapping):
                raise GuidanceError(f"{field}: a JSON Schema must be an object, got {_kind(value)}", field=field)
            _check_schema(value, field)
        case "choice":
            if not isinstance(value, tuple) or not value or not all(value):
                raise GuidanceError(f"{field}: choices must be texts, at least one and none empty", field=field)
            _check_size(sum(map(len, value)), field)
        case _:
            if not isinstance(value, str) or not value:
                raise GuidanceError(f"{field}: a {structure.kind} must be a text that is not empty", field=field)
            _check_size(len(value), field)


def has_finite_instance(schema: Mapping[str, object]) -> bool:
    """Whether more than endless values fit a schema, as far as its references tell. Deep ones take time: their number
    squared, at worst."""
    return _Finite(schema).has_instance()


def source(structure: Structure) -> str:
    """What describes the form, as text; the same text and kind describe the same form. It must have been checked."""
    value = structure.value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_schema(schema: Mapping[str, object], field: str) -> None:
    if _is_deeper(schema, MAX_DEPTH):
        raise GuidanceError(
            f"{field}: a JSON Schema may have at most {MAX_DEPTH} levels of objects and arrays",
            field=field,
            limit=MAX_DEPTH,
        )
    try:
        size = len(json.dumps(schema, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise GuidanceError(f"{field}: a JSON Schema must be JSON: {error}", field=field) from None
    _check_size(size, field)


def _check_size(chars: int, field: str) -> None:
    if chars > MAX_SOURCE_CHARS:
        raise GuidanceError(
            f"{field}: the description of an answer may have at most {MAX_SOURCE_CHARS} characters, got {chars}",
            field=field,
            limit=MAX_SOURCE_CHARS,
            given=chars,
        )


def _is_deeper(value: object, limit: int) -> bool:
    """It goes level by level: how deep the value is was the sender's choice, how deep the stack is was not."""
    level: list[object] = [value]
    for _ in range(limit):
        level = [item for each in level for item in _items(each) if isinstance(item, Mapping | list | tuple)]
        if not level:
            return False
    return True


def _items(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return cast("Mapping[str, object]", value).values()
    return cast("Sequence[object]", value)


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


class _Finite:
    """Whether a schema has an instance that ends. Only references within the schema matter: whatever else cannot be
    fulfilled is found when it is compiled."""

    def __init__(self, root: Mapping[str, object]) -> None:
        self._root = root
        self._ending: set[str] = set()  # references that are known to have an instance

    def has_instance(self) -> bool:
        """Round by round, from what needs no reference to what needs those that were found to end."""
        targets = {reference: self._resolve(reference) for reference in _references(self._root)}
        found: list[str] = [""]
        while found:
            found = [name for name, target in targets.items() if name not in self._ending and self._ends(target)]
            self._ending.update(found)
        return self._ends(self._root)

    def _ends(self, schema: object) -> bool:
        if not isinstance(schema, Mapping):
            return True
        parts = cast("Mapping[str, object]", schema)
        reference = parts.get("$ref")
        if isinstance(reference, str) and reference not in self._ending:
            return False
        for one_of in ("anyOf", "oneOf"):
            choices = _list(parts.get(one_of))
            if choices and not any(map(self._ends, choices)):
                return False
        return all(map(self._ends, _list(parts.get("allOf")))) and self._members_end(parts)

    def _members_end(self, parts: Mapping[str, object]) -> bool:
        """Where a value could be of a type that has no members, it ends."""
        match parts.get("type"):
            case "object":
                return all(self._ends(_member(parts.get("properties"), name)) for name in _list(parts.get("required")))
            case "array":
                count = parts.get("minItems")
                is_empty = not isinstance(count, int) or count < 1
                return is_empty or "prefixItems" in parts or self._ends(parts.get("items"))
            case _:
                return True

    def _resolve(self, reference: str) -> object:
        """None for what is not found here."""
        if not reference.startswith("#"):
            return None
        value: object = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            value = _member(value, step.replace("~1", "/").replace("~0", "~"))
        return value


def _references(root: Mapping[str, object]) -> set[str]:
    found: set[str] = set()
    level: list[object] = [root]
    while level:
        found |= {name for each in level if isinstance(name := _member(each, "$ref"), str)}
        level = [item for each in level for item in _items(each) if isinstance(item, Mapping | list)]
    return found


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _member(value: object, name: object) -> object:
    return cast("Mapping[object, object]", value).get(name) if isinstance(value, Mapping) else None
