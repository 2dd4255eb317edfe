"""Grammars of YAML documents that a JSON Schema describes, in the notation of llguidance's Lark.

A document is in block style: members and items stand on lines of their own, indented by two spaces, in the order of
`properties`. Texts stand between double quotes and on one line. What is empty, a constant or one of `enum`, is in flow
style. There are no comments, anchors, tags or document marks. So YAML 1.1 and 1.2 read the same in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import cast

from mlx_serving.errors import GuidanceError

MAX_RULES = 4000
"""Of a grammar: an object that is used at several depths has rules for each."""

_KNOWN = {
    *("type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "enum", "const"),
    *("minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "anyOf", "$ref"),
    *("$defs", "definitions", "title", "description", "default", "examples", "$schema", "$id", "$comment"),
    *("deprecated", "readOnly", "writeOnly"),
}
_RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
# What YAML 1.1 takes for something else than text.
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
# What YAML can have between double quotes on one line: line breaks and what cannot be printed are escaped.
_CHAR = r"([^\"\\\x00-\x1f\x7f-\x9f\x{2028}\x{2029}\x{feff}\x{fffe}\x{ffff}]|\\[\"\\nt])"


def yaml_grammar(schema: Mapping[str, object], parameter: str) -> str:
    """Raises `GuidanceError`, which names the `parameter` and the schema's keyword, for what is not supported or too
    large. The schema must not be deeper than `core.structure` allows."""
    writer = _Writer(schema, parameter)
    start = writer.value(schema, 0, at_root=True)
    return "\n".join([f"start: {start}", *writer.rules]) + "\n"


class _Writer:
    def __init__(self, root: Mapping[str, object], parameter: str) -> None:
        self._root = root
        self._parameter = parameter
        self._known: dict[tuple[int, int, bool], str] = {}
        self._within: list[str] = []  # references that are being followed
        self.rules: list[str] = []

    def value(self, schema: object, indent: int, *, at_root: bool = False) -> str:
        """What a value is written as, up to the end of its last line. It stands behind a key, whose members have this
        indent, or, `at_root`, where its first member begins."""
        if not isinstance(schema, Mapping):
            raise self._error("has a schema that is no object: say what it may be", [])
        parts = cast("Mapping[str, object]", schema)
        key = (id(parts), indent, at_root)
        if key not in self._known:
            self._known[key] = self._rule(" | ".join(self._choices(parts, indent, at_root=at_root)))
        return self._known[key]

    def _choices(self, parts: Mapping[str, object], indent: int, *, at_root: bool) -> list[str]:
        unknown = sorted(parts.keys() - _KNOWN)
        if unknown:
            raise self._error(f"has keywords that are not supported in YAML: {', '.join(unknown)}", unknown)
        reference = parts.get("$ref")
        if isinstance(reference, str):
            return [self._referred(reference, indent, at_root=at_root)]
        space = "" if at_root else " "
        if "const" in parts:
            return [_text(space + _flow(parts["const"]))]
        if "enum" in parts:
            return [_text(space + _flow(each)) for each in _list(parts["enum"])] or [self._none("enum")]
        if "anyOf" in parts:
            return [self.value(each, indent, at_root=at_root) for each in _list(parts["anyOf"])] or [
                self._none("anyOf")
            ]
        named = parts.get("type", list(_TYPES[2:]))
        kinds = [named] if isinstance(named, str) else _list(named)
        return [self._of_type(parts, kind, indent, at_root=at_root) for kind in kinds] or [self._none("type")]

    def _of_type(self, parts: Mapping[str, object], kind: object, indent: int, *, at_root: bool) -> str:
        space = "" if at_root else '" " '
        before = "" if at_root else _text("\n" + " " * indent) + " "
        match kind:
            case "object":
                return self._object(parts, indent, before, space)
            case "array":
                return self._array(parts, indent, before, space)
            case "string":
                least, most = self._bounds(parts, "minLength", "maxLength")
                return f'{space}/"{_CHAR}{{{least},{"" if most is None else most}}}"/'
            case "integer" | "number":
                ranged = {name: parts[name] for name in _RANGE if name in parts}
                if ranged or kind == "integer":
                    number = json.dumps({"type": kind, **ranged})
                    return f"{space}{self._rule(f'%json {number}')}"
                return rf"{space}/-?(0|[1-9][0-9]{{0,14}})(\.[0-9]{{1,15}})?/"
            case "boolean":
                return f'{space}("true" | "false")'
            case "null":
                return f'{space}"null"'
            case _:
                raise self._error(f"has the type {json.dumps(kind)[:40]}, which there is not", ["type"])

    def _object(self, parts: Mapping[str, object], indent: int, before: str, space: str) -> str:
        if parts.get("additionalProperties") not in (None, False):
            raise self._error(
                "allows additionalProperties, which is not supported in YAML: name all properties",
                ["additionalProperties"],
            )
        properties = cast("Mapping[str, object]", parts.get("properties") or {})
        required = set(_list(parts.get("required")))
        missing = [str(name) for name in required if name not in properties]
        if missing:
            raise self._error(f"requires {missing[0]}, which is not among its properties", ["required"])
        members = [
            (f"{_text(_key(name) + ':')} {self.value(each, indent + 2)}", name in required)
            for name, each in properties.items()
        ]
        separator = _text("\n" + " " * indent)
        # From the last member back: what may follow a member, and what an object may be from a member on.
        tail, whole = "", ""
        for member, needed in reversed(members):
            begun = self._rule(f"{member} {tail}")
            whole = begun if needed else (self._rule(f"{begun} | {whole}") if whole else begun)
            following = f"{separator} {begun}"
            tail = self._rule(following if needed else f"{following} | {tail}" if tail else f"({following})?")
        if not members:
            return f'{space}"{{}}"'
        return f"{before}{whole}" if required else f'({before}{whole} | {space}"{{}}")'

    def _array(self, parts: Mapping[str, object], indent: int, before: str, space: str) -> str:
        least, most = self._bounds(parts, "minItems", "maxItems")
        if most == 0:
            return f'{space}"[]"'
        items = parts.get("items", {})
        item = self._rule(f'"-" {self._item(items, indent + 2)}')
        more = f"{_text(chr(10) + ' ' * indent)} {item}"
        times = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        some = f"{before}{item} ({more}){times}"
        return some if least else f'({some} | {space}"[]")'

    def _item(self, schema: object, indent: int) -> str:
        """Behind a dash, members of an object or items of an array begin on the same line."""
        return f'" " {self.value(schema, indent, at_root=True)}'

    def _bounds(self, parts: Mapping[str, object], low: str, high: str) -> tuple[int, int | None]:
        least, most = parts.get(low, 0), parts.get(high)
        if not isinstance(least, int) or not isinstance(most, int | None) or least < 0:
            raise self._error(f"must have whole numbers for {low} and {high}", [low, high])
        if most is not None and most < least:
            raise self._error(f"has a {high} of {most} below its {low} of {least}", [low, high])
        return least, most

    def _referred(self, reference: str, indent: int, *, at_root: bool) -> str:
        if reference in self._within:
            raise self._error(f"leads back to itself with {reference}: in YAML nothing may", ["$ref"])
        target = cast("object", self._root)
        for step in reference.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            target = cast("Mapping[str, object]", target).get(name) if isinstance(target, Mapping) else None
        if not reference.startswith("#") or target is None:
            raise self._error(f"refers to {reference[:80]}, which is not in it", ["$ref"])
        self._within.append(reference)
        try:
            return self.value(target, indent, at_root=at_root)
        finally:
            self._within.pop()

    def _rule(self, body: str) -> str:
        if len(self.rules) >= MAX_RULES:
            raise self._error(f"is too large: its grammar has more than {MAX_RULES} rules", [])
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def _none(self, keyword: str) -> str:
        raise self._error(f"has nothing in {keyword}: no answer fits it", [keyword])

    def _error(self, what: str, keywords: list[str]) -> GuidanceError:
        return GuidanceError(f"{self._parameter} {what}", field=self._parameter, keywords=keywords)


def _list(value: object) -> Sequence[object]:
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name.lower() not in _WORDS else _quoted(name)


def _flow(value: object) -> str:
    match value:
        case str():
            return _quoted(value)
        case float():
            mantissa, e, exponent = repr(value).partition("e")
            point = mantissa if "." in mantissa else mantissa + ".0"
            return f"{point}e{exponent if exponent[0] in '+-' else '+' + exponent}" if e else point
        case Mapping():
            pairs = cast("Mapping[str, object]", value).items()
            return "{" + ", ".join(f"{_quoted(name)}: {_flow(each)}" for name, each in pairs) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_flow, cast("Sequence[object]", value))) + "]"
        case _:
            return json.dumps(value)


def _quoted(text: str) -> str:
    """YAML's escapes are not JSON's: a character beyond 16 bits has one of its own."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
