"""What a program may give to say which form an answer must have: types, schemas, expressions.

Outlines' types are known by their names: it need not be installed.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from mlx_serving.core.generation import Structure
from mlx_serving.core.grammar.structure import check
from mlx_serving.errors import GuidanceError

_FIELD = "structured"
_KINDS: Mapping[str, Literal["json_schema", "regex", "choice", "grammar", "xml", "yaml"]] = {
    "json": "json_schema",
    "json_schema": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "xml": "xml",
    "yaml": "yaml",
}
_FORMATS = ("json", "yaml", "xml")


def as_structure(given: object) -> Structure:
    """The structure that `given` stands for:

    - a Pydantic model, or any other type that Pydantic has a JSON Schema for: JSON of that type, without members that
      it does not name, unless it says that it takes others
    - a `Literal` of texts, an `Enum` of texts, a list of texts: one of them, as it is
    - a mapping: `{"schema": …, "format": …}` for `json`, `yaml` or `xml`, `{"mode": …, "schema": …}`, one of `json`,
      `regex`, `choice`, `grammar`, `xml`, `yaml` or `json_object` with its value, else a JSON Schema
    - a compiled regular expression
    - Outlines' `JsonSchema`, `Regex`, `CFG`, `Choice`, and its terms that come to a regular expression

    Raises `GuidanceError` for anything else, and for what `core.grammar.structure.check` refuses.
    """
    structure = replace(_read(given), field=_FIELD)
    check(structure)
    return structure


def _read(given: object) -> Structure:
    match given:
        case Structure():
            return given
        case re.Pattern():
            return _of("regex", cast("re.Pattern[Any]", given).pattern)
        case Mapping():
            return _of_mapping(cast("Mapping[str, object]", given))
        case list() | tuple():
            return _of("choice", cast("Sequence[object]", given))
        case str() | bytes() | int() | float():
            raise _refusal(given)
        case _:
            return _of_outlines(given) or _of_type(given)


def _of_mapping(given: Mapping[str, object]) -> Structure:
    if "schema" in given and given.keys() <= {"schema", "format"}:
        form = given.get("format", "json")
        if form not in _FORMATS:
            raise GuidanceError(
                f"{_FIELD}.format must be one of {', '.join(_FORMATS)}, got {str(form)[:80]!r}",
                field=f"{_FIELD}.format",
                limit=list(_FORMATS),
                given=form,
            )
        return _of(str(form), given["schema"])
    if "mode" in given and given.keys() <= {"mode", "schema"}:
        return _of(str(given["mode"]), given.get("schema"))
    if len(given) == 1:
        [(name, value)] = given.items()
        if name in _KINDS or name == "json_object":
            return _of(name, value)
    return Structure("json_schema", given)


def _of(name: str, value: object) -> Structure:
    if name == "json_object":
        return Structure("json_object", None if value is True else cast(Any, value))
    kind = _KINDS.get(name)
    if kind is None:
        known = ", ".join(["json_object", *_KINDS])
        raise GuidanceError(f"{_FIELD}.mode must be one of {known}, got {name[:80]!r}", field=f"{_FIELD}.mode")
    if kind == "json_schema" and not isinstance(value, Mapping):
        return _read(value)
    if kind == "yaml" and not isinstance(value, Mapping):
        return replace(_read(value), kind=kind)
    if kind == "choice" and isinstance(value, Sequence) and not isinstance(value, str):
        texts = tuple(cast("Sequence[object]", value))
        if not all(isinstance(text, str) for text in texts):
            raise GuidanceError(f"{_FIELD}: choices must be texts", field=_FIELD)
        return Structure("choice", cast("tuple[str, ...]", texts))
    return Structure(kind, cast(Any, value))


def _of_outlines(given: object) -> Structure | None:
    kind = type(given)
    if kind.__module__.partition(".")[0] != "outlines":
        return None
    term: Any = given
    match kind.__name__:
        case "JsonSchema":
            return Structure("json_schema", TypeAdapter(dict[str, object]).validate_json(term.schema))
        case "Regex":
            return Structure("regex", term.pattern)
        case "CFG":
            return Structure("grammar", term.definition)
        case "Choice":
            return _of("choice", list(term.items))
        case _:
            to_regex: Callable[[object], str] | None = getattr(sys.modules.get("outlines.types.dsl"), "to_regex", None)
            if to_regex is None:
                raise _refusal(given)
            return Structure("regex", to_regex(given))


def _of_type(given: object) -> Structure:
    if isinstance(given, type) and issubclass(given, BaseModel):
        return Structure("json_schema", _closed(given.model_json_schema()))
    texts: list[object] = []
    if isinstance(given, type) and issubclass(given, Enum):
        texts = [member.value for member in given]
    elif get_origin(given) is Literal:
        texts = list(get_args(given))
    if texts and all(isinstance(text, str) for text in texts):
        return Structure("choice", cast("tuple[str, ...]", tuple(texts)))
    if not isinstance(given, type | types.GenericAlias | types.UnionType) and get_origin(given) is None:
        raise _refusal(given)
    try:
        return Structure("json_schema", _closed(TypeAdapter(cast(Any, given)).json_schema()))
    except Exception as error:
        raise GuidanceError(f"{_FIELD}: there is no JSON Schema of {given!r}: {error}", field=_FIELD) from error


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    closed = {name: _closed_within(value) for name, value in schema.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


def _closed_within(value: Any) -> Any:
    if isinstance(value, dict):
        return _closed(cast("dict[str, Any]", value))
    return [_closed_within(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value


def _refusal(given: object) -> GuidanceError:
    return GuidanceError(
        f"{_FIELD} must be a type, a JSON Schema, a compiled regular expression or a list of texts, got "
        f"{repr(given)[:80]}",
        field=_FIELD,
    )
