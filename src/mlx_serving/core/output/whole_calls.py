"""How calls read that are not JSON: each function takes what stands between the markers of a call, and returns the
calls in it, or None if it cannot be read. `is_whole_…` say whether a text is one of them from its beginning to its end,
or only as far as a marker that belongs to an argument."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias, cast

from mlx_serving.core.output.tool_arguments import Schemas, WholeCall, property_names, property_of, read_json, typed

ReadCalls: TypeAlias = Callable[[str, Schemas], Sequence[WholeCall] | None]
IsWhole: TypeAlias = Callable[[str], bool]

_NAME = re.compile(r"[^\s<>{}()\[\]=\"']+")

# -- <function=name> <parameter=key>\nvalue\n</parameter> </function>


def read_tagged_parameters(body: str, schemas: Schemas) -> list[WholeCall] | None:
    """Qwen's: behind `<function=`, before `</function>`."""
    name, closed, rest = body.partition(">")
    name = name.strip()
    if not closed or not _NAME.fullmatch(name):
        return None
    arguments: dict[str, object] = {}
    for match in _parameter(property_names(schemas, name)).finditer(rest):
        key, value = match.group(1).strip(), match.group(2).removeprefix("\n")
        arguments[key] = typed(value, property_of(schemas, name, key))
    return [WholeCall(name, arguments)]


def _parameter(known: Sequence[str]) -> re.Pattern[str]:
    """A parameter ends where another begins or none comes, and also without its own end before one that is known."""
    ends = [r"\n?</parameter>\s*(?=<parameter=|\Z)", r"\Z"]
    if known:
        ends.append(rf"\n(?=<parameter=(?:{'|'.join(map(re.escape, known))})>)")
    return re.compile(rf"<parameter=([^>\n]+)>(.*?)(?:{'|'.join(ends)})", re.S)


def is_whole_tagged_parameters(body: str) -> bool:
    return body.count("<parameter=") == 0 or body.rstrip().endswith("</parameter>")


# -- name <arg_key>key</arg_key> <arg_value>value</arg_value>


def _pairs(prefix: str) -> re.Pattern[str]:
    key, value = f"{prefix}arg_key>", f"{prefix}arg_value>"
    return re.compile(rf"<{key}(.*?)</{key}\s*<{value}(.*?)(?:</{value}\s*(?=<{key}|\Z)|\Z)", re.S)


_ARGUMENTS = {prefix: _pairs(prefix) for prefix in ("", "longcat_")}


def read_argument_pairs(body: str, schemas: Schemas, prefix: str = "") -> list[WholeCall] | None:
    """GLM's: behind `<tool_call>`, before `</tool_call>`. The tags may have a prefix."""
    name, _, _ = body.partition(f"<{prefix}arg_key>")
    name = name.strip()
    if not _NAME.fullmatch(name):
        return None
    arguments: dict[str, object] = {}
    for match in _ARGUMENTS[prefix].finditer(body):
        key = match.group(1).strip()
        arguments[key] = typed(match.group(2), property_of(schemas, name, key))
    return [WholeCall(name, arguments)]


def is_whole_argument_pairs(body: str) -> bool:
    return "arg_key>" not in body or body.rstrip().endswith("arg_value>")


def read_longcat(body: str, schemas: Schemas) -> list[WholeCall] | None:
    """LongCat's: as GLM's with tags of its own, or a JSON object."""
    if not body.lstrip().startswith("{"):
        return read_argument_pairs(body, schemas, "longcat_")
    try:
        whole = cast("Mapping[str, object]", read_json(body))
    except ValueError:
        return None
    name, arguments = whole.get("name"), whole.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        return None
    return [WholeCall(name, cast("Mapping[str, object]", arguments))]


def is_whole_longcat(body: str) -> bool:
    return body.rstrip().endswith("}") if body.lstrip().startswith("{") else is_whole_argument_pairs(body)


# -- name="name"><parameter name="key">value</parameter>

_QUOTED = r"""("[^"]*"|'[^']*'|[^\s"'<>]+)"""
_HEAD = re.compile(rf"\s*(?:[^>]*?\bname\s*=\s*)?{_QUOTED}[^>]*>")
_CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", re.S)


@dataclass(frozen=True, slots=True)
class NamedParameters:
    """Calls that give their names and those of their arguments as attributes: MiniMax's, MiniCPM's, Muse Spark's. `tag`
    is an argument's; with `sections` its value may stand in a CDATA section, as texts of several lines do."""

    tag: str
    sections: bool = False

    def read(self, body: str, schemas: Schemas) -> list[WholeCall] | None:
        """Behind the tag of a call, before its end."""
        head = _HEAD.match(body)
        if head is None:
            return None
        name = head.group(1).strip("\"'")
        arguments: dict[str, object] = {}
        for match in _named(self.tag).finditer(body, head.end()):
            key, value = match.group(1).strip("\"'"), match.group(2)
            section = _CDATA.fullmatch(value) if self.sections else None
            arguments[key] = typed(section.group(1) if section else value, property_of(schemas, name, key))
        return [WholeCall(name, arguments)]

    def is_whole(self, body: str) -> bool:
        return f"<{self.tag}" not in body or body.rstrip().endswith(f"</{self.tag}>")


@cache
def _named(tag: str) -> re.Pattern[str]:
    return re.compile(rf"<{tag}\b[^>]*?\bname\s*=\s*{_QUOTED}[^>]*>(.*?)</{tag}>\s*(?=<{tag}\b|\Z)", re.S)


# -- name="name"> <…parameter name="key" string="true">value</…parameter>

_DSML_NAME = re.compile(r'\s*name="([^"]+)"\s*(?:>|\Z)')
_DSML_PARAMETER = re.compile(
    r'<｜DSML｜ ?parameter name="([^"]+)"(?: string="(true|false)")?\s*>(.*?)'
    r"</｜DSML｜ ?parameter>\s*(?=<｜DSML｜ ?parameter name=|\Z)",
    re.S,
)


def read_dsml(body: str, schemas: Schemas) -> list[WholeCall] | None:
    """DeepSeek's: behind `<｜DSML｜invoke`, before `</｜DSML｜invoke>`."""
    head = _DSML_NAME.match(body)
    if head is None:
        return None
    name = head.group(1)
    arguments: dict[str, object] = {}
    for match in _DSML_PARAMETER.finditer(body, head.end()):
        key, is_string, value = match.groups()
        schema = {"type": "string"} if is_string == "true" else property_of(schemas, name, key) if not is_string else {}
        arguments[key] = typed(value, schema)
    return [WholeCall(name, arguments)]


def is_whole_dsml(body: str) -> bool:
    return "｜parameter" not in body.replace(" ", "") or body.rstrip().endswith("parameter>")


# -- [name(key="text", other=[1, True]), …]

_WORDS: Mapping[str, object] = {"true": True, "false": False, "null": None}


def read_pythonic(body: str, schemas: Schemas) -> list[WholeCall] | None:
    """A list of calls in Python's notation, which may have JSON's words for True, False and None."""
    try:
        parsed = ast.parse(body.strip(), mode="eval").body
        nodes = parsed.elts if isinstance(parsed, ast.List) else [parsed]
        calls = [_pythonic_call(node) for node in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return calls or None


def _pythonic_call(node: ast.expr) -> WholeCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call by keywords")
    return WholeCall(_dotted(node.func), {_key(keyword): _literal(keyword.value) for keyword in node.keywords})


def _key(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("not by keyword")
    return keyword.arg


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{_dotted(node.value)}.{node.attr}"
        case _:
            raise ValueError("not a name")


def _literal(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None as value):
            return value
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict():
            return {_text(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True)}
        case _:
            raise ValueError("not a literal")


def _text(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("a key that is no text")


# -- tool="name" …<|sep|> <|open|>argument key="key" type="string"<|sep|>value<|close|>argument<|sep|>

_XTML_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_XTML_ARGUMENT = re.compile(
    r"<\|open\|>(argument|json)\b([^<]*)<\|sep\|>(.*?)<\|close\|>\1<\|sep\|>(?=\s*(?:<\|open\|>|\Z))", re.S
)


def read_xtml(body: str, schemas: Schemas) -> list[WholeCall] | None:
    """Kimi K3's: behind `<|open|>call`, before `<|close|>call<|sep|>`."""
    head, _, rest = body.partition("<|sep|>")
    name = _xtml_attributes(head).get("tool")
    if not name:
        return None
    arguments: dict[str, object] = {}
    for match in _XTML_ARGUMENT.finditer(rest):
        kind, attributes, value = match.groups()
        if kind == "json":
            whole = typed(value, {"type": "object"})
            if not isinstance(whole, Mapping):
                return None
            arguments.update(cast("Mapping[str, object]", whole))
            continue
        named = _xtml_attributes(attributes)
        if "key" not in named:
            return None
        arguments[named["key"]] = typed(value, {"type": named["type"]} if "type" in named else {})
    return [WholeCall(name, arguments)]


def is_whole_xtml(body: str) -> bool:
    return "<|open|>" not in body or body.rstrip().endswith("<|sep|>")


def _xtml_attributes(text: str) -> dict[str, str]:
    return {key: value.replace("&quot;", '"').replace("&amp;", "&") for key, value in _XTML_ATTRIBUTE.findall(text)}
