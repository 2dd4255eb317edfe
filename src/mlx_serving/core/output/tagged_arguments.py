"""Grammars of arguments that are no JSON object: each stands between tags of its own, texts as they are, the rest as
JSON. A text with a length is of one line without `<`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from mlx_serving.core.grammar.thought_grammar import TokenOf, mark, text_until
from mlx_serving.errors import GuidanceError

_PLAIN = re.compile(r"[\w.-]+")
_ANNOTATIONS = {"title", "description", "default", "examples", "$comment", "deprecated"}
_OF_TOOLS = {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema", *_ANNOTATIONS}
_OF_TEXTS = {"type", "enum", "const", "minLength", "maxLength", *_ANNOTATIONS}


@dataclass(frozen=True, slots=True)
class TaggedArguments:
    """`opening` gives what stands before an argument, as a rule, from its name and its type in the schema, empty for
    one that may be of several; `closing` and `space` stand behind it. With `quoted` a text is JSON as well; with
    `between` arguments are separated, not closed; with `sections` a text of several lines, or with `<` or `&`, stands
    in a CDATA section.
    """

    opening: Callable[[str, str], str]
    closing: str = ""
    space: str = ""
    between: str = ""
    quoted: bool = False
    sections: bool = False

    def rules(self, name: str, tool: str, schema: Mapping[str, object], token_of: TokenOf) -> list[str]:
        """The rule `name` of arguments that fit a tool's schema, in the order of its properties, and those it needs.

        Raises `GuidanceError` for a schema that cannot be followed in this form.
        """
        _require(tool, "", schema, _OF_TOOLS)
        properties = cast("Mapping[str, Any]", schema.get("properties") or {})
        required = cast("list[str]", schema.get("required") or [])
        for missing in [each for each in required if each not in properties]:
            raise _refusal(tool, f"requires {missing}, which is not among its properties", ["required"])
        defined = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        rules: list[str] = []
        members: list[tuple[str, bool]] = []
        for number, (key, described) in enumerate(properties.items()):
            if not _PLAIN.fullmatch(key):
                raise _refusal(tool, f"has the property {key!r}, which cannot be a name in this model's calls", [])
            value, *more = self._value(f"{name}_{number}", tool, key, described, defined, token_of)
            members.append((value, key in required))
            rules += more
        return [f"{name}: {self._sequence(name, members, rules)}".rstrip(), *rules]

    def _sequence(self, name: str, members: list[tuple[str, bool]], rules: list[str]) -> str:
        if not self.between:
            return " ".join(member if needed else f"({member})?" for member, needed in members) or '""'
        separator = json.dumps(self.between)
        whole = tail = ""
        for number, (member, needed) in reversed(list(enumerate(members))):
            begun = f"{name}_from_{number}"
            rules.append(f"{begun}: {member} {tail}".rstrip())
            whole = begun if needed or not whole else f"{begun} | {whole}"
            following = f"{separator} {begun}"
            tail = f"({following})" if needed else f"({following} | {tail})" if tail else f"({following})?"
        is_optional = not any(needed for _, needed in members)
        return f"({whole})?" if whole and is_optional else whole or '""'

    def _value(
        self, name: str, tool: str, key: str, schema: object, defined: Mapping[str, object], token_of: TokenOf
    ) -> list[str]:
        """How an argument is written, and the rules it needs."""
        if schema is False:
            raise _refusal(tool, f"of {key} allows no value", [])
        described = cast("Mapping[str, Any]", schema if isinstance(schema, Mapping) else {})
        is_text = described.get("type") == "string" and not self.quoted
        kind = described.get("type")
        opening = self.opening(key, kind if isinstance(kind, str) else "")
        closing = f"{mark(self.closing, token_of)} " if self.closing else ""
        closing += json.dumps(self.space) if self.space else ""
        if not is_text:
            whole = {**described, **defined, "x-guidance": JSON_STYLE}
            return [f"{opening} {name} {closing}".rstrip(), f"{name}: %json {json.dumps(whole)}"]
        _require(tool, key, described, _OF_TEXTS)
        values = described.get("enum", [described["const"]] if "const" in described else None)
        if values is not None:
            texts = " | ".join(_text(self._section(each)) for each in values if isinstance(each, str))
            return [f"{opening} ({texts}) {closing}".rstrip()]
        if "minLength" in described or "maxLength" in described:
            lengths = f"{described.get('minLength', 0)},{described.get('maxLength', '')}"
            return [f"{opening} {name.upper()} {closing}".rstrip(), f"{name.upper()}: /{self._plain}{{{lengths}}}/"]
        if self.sections:
            text, rule = text_until("]]>", name, token_of)
            return [f'{opening} (/{self._plain}*/ | "<![CDATA[" {text}) {closing}'.rstrip(), rule]
        text, rule = text_until(self.closing, name, token_of)
        return [f"{opening} {text} {json.dumps(self.space) if self.space else ''}".rstrip(), rule]

    @property
    def _plain(self) -> str:
        return r"[^<&\n]" if self.sections else r"[^<\n]"

    def _section(self, text: str) -> str:
        return f"<![CDATA[{text}]]>" if self.sections and re.search(r"[<&\n]", text) else text


# JSON is written as most models write it in one line: nothing is left to choose but the values.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _require(tool: str, key: str, schema: Mapping[str, object], known: set[str]) -> None:
    unknown = sorted(schema.keys() - known)
    if unknown:
        whose = f"of {key} " if key else ""
        raise _refusal(tool, f"{whose}has what this model's calls cannot follow: {', '.join(unknown)}", unknown)


def _refusal(tool: str, what: str, keywords: list[str]) -> GuidanceError:
    return GuidanceError(f"tools: the schema of {tool} {what}", field="tools", keywords=keywords)
