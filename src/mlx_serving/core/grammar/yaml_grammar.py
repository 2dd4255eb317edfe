"""Grammars of YAML documents that a JSON Schema describes, in the notation of llguidance's Lark.

A document is in block style: members and items stand on lines of their own, indented by two spaces, in the order of
`properties`. Texts stand between double quotes and on one line. What is empty, a constant or one of `enum`, is in flow
style. There are no comments, anchors, tags or document marks. So YAML 1.1 and 1.2 read the same in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from mlx_serving.core.grammar.schema_writer import SchemaWriter

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
# What YAML 1.1 takes for something else than text.
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
# What YAML can have between double quotes on one line: line breaks and what cannot be printed are escaped.
_CHAR = r"([^\"\\\x00-\x1f\x7f-\x9f\x{2028}\x{2029}\x{feff}\x{fffe}\x{ffff}]|\\[\"\\nt])"


def yaml_grammar(schema: Mapping[str, object], parameter: str) -> str:
    """Raises `GuidanceError`, which names the `parameter` and the schema's keyword, for what is not supported or too
    large. The schema must not be deeper than `core.grammar.structure` allows."""
    writer = _Writer(schema, subject=parameter, field=parameter)
    start = writer.value(schema, _Place(0, at_root=True))
    return "\n".join([f"start: {start}", *writer.rules]) + "\n"


class _Place(NamedTuple):
    """Members of a value have this indent. It stands behind a key, or, `at_root`, where its first member begins."""

    indent: int
    at_root: bool = False

    @property
    def space(self) -> str:
        return "" if self.at_root else '" " '

    @property
    def before(self) -> str:
        return "" if self.at_root else f"{self.separator} "

    @property
    def separator(self) -> str:
        return _text("\n" + " " * self.indent)


class _Writer(SchemaWriter[_Place]):
    """What a value is written as, up to the end of its last line."""

    notation = "YAML"

    def literal(self, value: object, place: _Place) -> str:
        return _text(("" if place.at_root else " ") + _flow(value))

    def string(self, least: int, most: int | None, place: _Place) -> str:
        return f'{place.space}/"{_CHAR}{{{least},{"" if most is None else most}}}"/'

    def scalar(self, rule: str, place: _Place) -> str:
        return f"{place.space}{rule}"

    def object(self, members: Sequence[tuple[str, object, bool]], place: _Place) -> str:
        within = _Place(place.indent + 2)
        written = [(f"{_text(_key(name) + ':')} {self.value(each, within)}", needed) for name, each, needed in members]
        whole = self.sequence(written, place.separator)
        if not members:
            return f'{place.space}"{{}}"'
        needs_any = any(needed for _, needed in written)
        return f"{place.before}{whole}" if needs_any else f'({place.before}{whole} | {place.space}"{{}}")'

    def array(self, items: object, least: int, most: int | None, place: _Place) -> str:
        # Behind a dash, members of an object or items of an array begin on the same line.
        item = self.rule(f'"-" " " {self.value(items, _Place(place.indent + 2, at_root=True))}')
        times = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        some = f"{place.before}{item} ({place.separator} {item}){times}"
        return some if least else f"({some} | {self.no_items(place)})"

    def no_items(self, place: _Place) -> str:
        return f'{place.space}"[]"'


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
