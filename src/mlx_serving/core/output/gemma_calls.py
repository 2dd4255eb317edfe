"""Gemma's calls: `call:name{key:<|"|>text<|"|>,other:[1,true]}`, read, and the grammars of their arguments.

Keys are bare, texts stand between quotes of their own, which are all that they may not have in them, and all else is as
in JSON. Its templates sort members by their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from mlx_serving.core.grammar.schema_writer import SchemaWriter
from mlx_serving.core.grammar.thought_grammar import TokenOf, mark, text_until
from mlx_serving.core.output.tool_arguments import Schemas, WholeCall, typed

_BARE_VALUE = re.compile(r"[^,\]}]*")
_BARE_KEY = re.compile(r"[\w.$-]([\w.$ -]*[\w.$-])?")
_CALL = re.compile(r"\s*,?\s*call:([^{\s]+)\s*(?=\{)")


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """What stands between the markers of a call; it may be several."""

    quote: str

    def read(self, body: str, schemas: Schemas) -> list[WholeCall] | None:
        """The calls, or None for what cannot be read."""
        calls: list[WholeCall] = []
        at = 0
        while match := _CALL.match(body, at):
            reader = _Reader(body, match.end(), self.quote)
            try:
                arguments = reader.mapping()
            except (ValueError, RecursionError):
                return None
            calls.append(WholeCall(match.group(1), arguments))
            at = reader.at
        return calls or None

    def is_whole(self, body: str) -> bool:
        """Whether it ends here, and not within a text."""
        return body.count(self.quote) % 2 == 0

    def rules(self, name: str, tool: str, schema: Mapping[str, object], token_of: TokenOf) -> list[str]:
        """The rule `name` of arguments that fit a tool's schema, and those it needs.

        Raises `GuidanceError` for a schema that cannot be followed in this form.
        """
        writer = _Writer(tool, schema, f"{name}_", self.quote, token_of)
        arguments = {"type": "object", **schema}
        return [f"{name}: {writer.value(arguments, None)}", *writer.rules]


GEMMA_4 = GemmaCalls('<|"|>')
FUNCTION_GEMMA = GemmaCalls("<escape>")


class _Reader:
    """It passes over a value; `at` is behind it then."""

    def __init__(self, text: str, at: int, quote: str) -> None:
        self._text = text
        self._quote = quote
        self.at = at

    def mapping(self) -> dict[str, object]:
        found: dict[str, object] = {}
        self.at += 1
        while not self._closes("}"):
            key = self._quoted() if self._text.startswith(self._quote, self.at) else None
            end = self._text.index(":", self.at)
            key = self._text[self.at : end].strip() if key is None else key
            found[key] = self._value_at(end + 1)
        return found

    def _value_at(self, at: int) -> object:
        self.at = at
        self._skip_space()
        if self._text.startswith(self._quote, self.at):
            return self._quoted()
        match self._text[self.at : self.at + 1]:
            case "{":
                return self.mapping()
            case "[":
                self.at += 1
                items: list[object] = []
                while not self._closes("]"):
                    items.append(self._value_at(self.at))
                return items
            case '"':
                end = self._text.index('"', self.at + 1)
                text, self.at = self._text[self.at + 1 : end], end + 1
                return text
            case _:
                bare = _BARE_VALUE.match(self._text, self.at)
                assert bare is not None  # it matches nothing, too
                self.at = bare.end()
                return typed(bare.group().strip(), {})

    def _quoted(self) -> str:
        start = self.at + len(self._quote)
        end = self._text.index(self._quote, start)
        self.at = end + len(self._quote)
        return self._text[start:end]

    def _closes(self, bracket: str) -> bool:
        """Whether the bracket comes next, which then is passed, as commas are. Raises ValueError at the end."""
        self._skip_space()
        if self._text.startswith(",", self.at):
            self.at += 1
            self._skip_space()
        if self.at >= len(self._text):
            raise ValueError("it does not end")
        if not self._text.startswith(bracket, self.at):
            return False
        self.at += 1
        return True

    def _skip_space(self) -> None:
        while self._text[self.at : self.at + 1].isspace():
            self.at += 1


class _Writer(SchemaWriter[None]):
    notation = "this model's calls"

    def __init__(self, tool: str, schema: Mapping[str, object], prefix: str, quote: str, token_of: TokenOf) -> None:
        super().__init__(schema, subject=f"tools: the schema of {tool}", field="tools", prefix=prefix)
        self._end = quote
        self._token_of = token_of
        self._quote = mark(quote, token_of)

    def literal(self, value: object, place: None) -> str:
        match value:
            case str():
                return f"{self._quote} {_text(value)} {self._quote}"
            case Mapping():
                pairs = sorted(cast("Mapping[str, object]", value).items())
                members = [f"{self._key(key)} {self.literal(each, None)}" for key, each in pairs]
                return " ".join(['"{"', ' "," '.join(members), '"}"'])
            case list() | tuple():
                items = [self.literal(each, None) for each in cast("Sequence[object]", value)]
                return " ".join(['"["', ' "," '.join(items), '"]"'])
            case _:
                return _text(json.dumps(value))

    def string(self, least: int, most: int | None, place: None) -> str:
        if least or most is not None:
            return f"{self._quote} /[^<]{{{least},{'' if most is None else most}}}/ {self._quote}"
        text, rule = text_until(self._end, f"{self._prefix}text", self._token_of)
        if rule not in self.rules:
            self.rules.append(rule)
        return f"{self._quote} {text}"

    def scalar(self, rule: str, place: None) -> str:
        return rule

    def object(self, members: Sequence[tuple[str, object, bool]], place: None) -> str:
        ordered = sorted(members, key=lambda member: member[0].lower())
        written = [(f"{self._key(key)} {self.value(each, None)}", needed) for key, each, needed in ordered]
        whole = self.sequence(written, '","')
        if not whole:
            return '"{" "}"'
        return f'"{{" {whole} "}}"' if any(needed for _, needed in written) else f'"{{" ({whole})? "}}"'

    def array(self, items: object, least: int, most: int | None, place: None) -> str:
        item = self.rule(self.value(items, None))
        some = f'{item} ("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return f'"[" {some} "]"' if least else f'"[" ({some})? "]"'

    def no_items(self, place: None) -> str:
        return '"[" "]"'

    def _key(self, key: str) -> str:
        return _text(f"{key}:") if _BARE_KEY.fullmatch(key) else f'{self._quote} {_text(key)} {self._quote} ":"'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
