"""Grammars of XML documents that a DTD describes, in the notation of llguidance's Lark.

A document has no prologue and no comments. Between elements may stand a line break and up to 16 spaces. A text has its
`<`, `>` and `&` as entities, an attribute its quotation marks as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mlx_serving.core.grammar.dtd import Attribute, Content, Part, Text, read_dtd

# Not what XML may not have in it, nor what a parser would give back as something else: a carriage return.
_FORBIDDEN = r"<>&\x00-\x08\x0b-\x1f\x7f-\x9f\x{fffe}\x{ffff}"
_ENTITY = "&(lt|gt|amp|quot|apos);"
_RULES = (
    rf"TEXT: /([^{_FORBIDDEN}]|{_ENTITY})+/",
    rf'CDATA: /([^"\t\n{_FORBIDDEN}]|{_ENTITY})*/',
    "NMTOKEN: /[A-Za-z0-9_.:-]+/",
    "NMTOKENS: /[A-Za-z0-9_.:-]+( [A-Za-z0-9_.:-]+)*/",
    r"GAP: /(\n {0,16})?/",
)


def xml_grammar(dtd: str, parameter: str) -> str:
    """Raises `GuidanceError`, which names the `parameter`, for what is no DTD, has parts that are not supported, or no
    document."""
    read = read_dtd(dtd, parameter)
    rules = {name: f"e{number}" for number, name in enumerate(read.contents)}
    lines = [f"start: {rules[read.root]}"]
    for name, content in read.contents.items():
        opening = " ".join([_text(f"<{name}"), *map(_attribute, read.attributes.get(name, ()))])
        body = _content(content, rules)
        closing = '"/>"' if body is None else f'">" {body} {_text(f"</{name}>")}'
        lines.append(f"{rules[name]}: {opening} {closing}")
    return "\n".join([*lines, *_RULES]) + "\n"


def _content(content: Content, rules: Mapping[str, str]) -> str | None:
    match content:
        case None:
            return None
        case Text():
            return "(" + " | ".join(["TEXT", *(rules[name] for name in content.elements)]) + ")*"
        case _:
            return f"GAP {_part(content, rules)}"


def _part(part: Part, rules: Mapping[str, str]) -> str:
    if part.element:
        return f"({rules[part.element]} GAP){part.times}"
    between = " | " if part.separator == "|" else " "
    return "(" + between.join(_part(each, rules) for each in part.parts) + f"){part.times}"


def _attribute(attribute: Attribute) -> str:
    values = [_text(value.replace("&", "&amp;").replace('"', "&quot;")) for value in attribute.values]
    value = f"({' | '.join(values)})" if values else attribute.kind
    written = f"{_text(f' {attribute.name}=' + chr(34))} {value} {_text(chr(34))}"
    return written if attribute.required else f"({written})?"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
