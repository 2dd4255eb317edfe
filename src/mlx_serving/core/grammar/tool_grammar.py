"""Grammars of answers that must call tools, in the notation of llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from mlx_serving.core.grammar.thought_grammar import Lead, TokenOf, mark
from mlx_serving.core.output.gemma_calls import FUNCTION_GEMMA, GEMMA_4
from mlx_serving.core.output.tagged_arguments import JSON_STYLE, TaggedArguments
from mlx_serving.core.output.tool_arguments import Schemas
from mlx_serving.errors import GuidanceError

BARE = frozenset({"llama"})
"""Styles whose calls nothing tells from an answer that is JSON."""


def tool_grammar(
    style: str, schemas: Schemas, token_of: TokenOf, *, parallel: bool, lead: Lead, form: str | None = None
) -> str:
    """An answer that is one call or, with `parallel`, several, behind what `lead` allows; with `form`, calls or what
    that rule says, which must not be in a style of `BARE`. Raises KeyError for a style that is not one of `FORCIBLE`,
    `GuidanceError` for a schema that cannot be followed in this style."""

    def marked(marker: str) -> str:
        return mark(marker, token_of)

    def arguments(number: int) -> str:
        return f"args_{number}"

    names = list(schemas)
    before, between, after, call = _PARTS[style](names, marked, arguments)
    repeated = f"({between} call)*" if parallel and between is not None else ""
    answer = "calls" if form is None else f"(calls | {form})"
    lines = [f"start: {lead.first}{answer}", *lead.rules, f"calls: {before} call {repeated} {after}".rstrip()]
    lines.append("call: " + " | ".join(call))
    tagged = _TAGGED.get(style)
    for number, name in enumerate(names):
        schema = schemas[name] or {"type": "object"}
        if tagged is not None:
            lines += tagged(marked).rules(arguments(number), name, schema, token_of)
        else:
            lines.append(f"{arguments(number)}: %json {json.dumps({**schema, 'x-guidance': JSON_STYLE})}")
    return "\n".join(lines) + "\n"


Mark: TypeAlias = Callable[[str], str]
"""How a marker is written in a grammar."""

_Parts: TypeAlias = tuple[str, str | None, str, list[str]]
"""What stands before the calls, between two (None: there is one only), after them, and how each may be."""


def _objects(names: Sequence[str], arguments: Callable[[int], str], key: str) -> list[str]:
    return [
        f'{json.dumps(f"""{{"name": {json.dumps(name)}, "{key}": """)} {arguments(number)} "}}"'
        for number, name in enumerate(names)
    ]


def _json_tools(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    start, end = mark("<tool_call>"), mark("</tool_call>")
    calls = [f'{start} "\\n" {call} "\\n" {end}' for call in _objects(names, arguments, "arguments")]
    return "", '"\\n"', "", calls


def _llama(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    return "", None, "", _objects(names, arguments, "parameters")


def _mistral(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    start, separator = mark("[TOOL_CALLS]"), mark("[ARGS]")
    if separator.startswith('"'):  # the older models have no such token, and write lists
        return f'{start} "["', '", "', '"]"', _objects(names, arguments, "arguments")
    calls = [f"{start} {json.dumps(name)} {separator} {arguments(number)}" for number, name in enumerate(names)]
    return "", '""', "", calls


def _kimi(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    start, separator, end = mark("<|tool_call_begin|>"), mark("<|tool_call_argument_begin|>"), mark("<|tool_call_end|>")
    calls = [
        f"{start} {json.dumps(f'functions.{name}:')} /[0-9]+/ {separator} {arguments(number)} {end}"
        for number, name in enumerate(names)
    ]
    return mark("<|tool_calls_section_begin|>"), '""', mark("<|tool_calls_section_end|>"), calls


def _harmony(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    calls = [
        f'{mark("<|channel|>")} {json.dumps(f"commentary to=functions.{name} ")} {mark("<|constrain|>")} "json" '
        f"{mark('<|message|>')} {arguments(number)}"
        for number, name in enumerate(names)
    ]
    return "", None, "", calls


def _deepseek(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    """The older models say that it is a function and put its arguments into a block of code."""
    start, separator, end = mark("<｜tool▁call▁begin｜>"), mark("<｜tool▁sep｜>"), mark("<｜tool▁call▁end｜>")
    calls: list[str] = []
    for number, name in enumerate(names):
        opening = _text(f"{name}\n```json\n")
        block = f'"function" {separator} {opening} {arguments(number)} "\\n```"'
        calls.append(f"{start} ({block} | {_text(name)} {separator} {arguments(number)}) {end}")
    return mark("<｜tool▁calls▁begin｜>"), "/\\n?/", mark("<｜tool▁calls▁end｜>"), calls


def _qwen_coder(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    start, end = mark("<tool_call>"), mark("</tool_call>")
    begins = [_text(f"\n<function={name}>\n") for name in names]
    calls = [f'{start} {begin} {arguments(number)} "</function>\\n" {end}' for number, begin in enumerate(begins)]
    return "", '"\\n"', "", calls


def _glm(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    start, end = mark("<tool_call>"), mark("</tool_call>")
    calls = [f"{start} {_text(name)} /\\n?/ {arguments(number)} {end}" for number, name in enumerate(names)]
    return "", "/\\n?/", "", calls


def _dsml(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    """Models differ in what they call the section of calls."""
    tag = mark("｜DSML｜")
    begins = [_text(f'invoke name="{name}">\n') for name in names]
    ends = f'"</" {tag} "invoke>\\n"'
    calls = [f'"<" {tag} {begin} {arguments(number)} {ends}' for number, begin in enumerate(begins)]
    section = '("function_calls>" | "tool_calls>")'
    return f'"<" {tag} {section} "\\n"', '""', f'"</" {tag} {section}', calls


def _minimax(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    begins = [_text(f'<invoke name="{name}">\n') for name in names]
    calls = [f'{begin} {arguments(number)} "</invoke>\\n"' for number, begin in enumerate(begins)]
    return f'{mark("<minimax:tool_call>")} "\\n"', '""', mark("</minimax:tool_call>"), calls


def _longcat(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    start, end = mark("<longcat_tool_call>"), mark("</longcat_tool_call>")
    calls = [f"{start} {_text(name)} /\\n?/ {arguments(number)} {end}" for number, name in enumerate(names)]
    return "", "/\\n?/", "", calls


def _minicpm(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    begins = [mark(f'<function name="{name}">') for name in names]
    calls = [f"{begin} {arguments(number)} {mark('</function>')}" for number, begin in enumerate(begins)]
    return "", "/\\n?/", "", calls


def _muse(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    begins = [_text(f'<atem:invoke name="{name}">\n') for name in names]
    calls = [f'{begin} {arguments(number)} "</atem:invoke>\\n"' for number, begin in enumerate(begins)]
    return f'{mark("<atem:function_calls>")} "\\n"', '""', mark("</atem:function_calls>"), calls


def _gemma(start: str, end: str, names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    calls = [
        f"{mark(start)} {_text(f'call:{name}')} {arguments(number)} {mark(end)}" for number, name in enumerate(names)
    ]
    return "", '""', "", calls


def _xtml(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    begins = [mark(f'<|open|>call tool="{name}" index="') for name in names]
    separator, end = mark("<|sep|>"), mark("<|close|>call<|sep|>")
    calls = [f'{begin} /[0-9]+"/ {separator} {arguments(number)} {end}' for number, begin in enumerate(begins)]
    return mark("<|open|>tools<|sep|>"), '""', mark("<|close|>tools<|sep|>"), calls


def _pythonic(names: Sequence[str], mark: Mark, arguments: Callable[[int], str]) -> _Parts:
    calls = [f'{_text(name + "(")} {arguments(number)} ")"' for number, name in enumerate(names)]
    return f'{mark("<|tool_call_start|>")} "["', '", "', f'"]" {mark("<|tool_call_end|>")}', calls


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_PARTS: dict[str, Callable[[Sequence[str], Mark, Callable[[int], str]], _Parts]] = {
    "json_tools": _json_tools,
    "llama": _llama,
    "mistral": _mistral,
    "kimi_k2": _kimi,
    "harmony": _harmony,
    "deepseek_v3": _deepseek,
    "deepseek_v32": _dsml,
    "glm47": _glm,
    "minimax_m2": _minimax,
    "pythonic": _pythonic,
    "qwen3_coder": _qwen_coder,
    "laguna": _glm,
    "longcat": _longcat,
    "minicpm5": _minicpm,
    "muse_spark": _muse,
    "gemma4": partial(_gemma, "<|tool_call>", "<tool_call|>"),
    "function_gemma": partial(_gemma, "<start_function_call>", "<end_function_call>"),
    "kimi_k3": _xtml,
}

FORCIBLE = tuple(_PARTS)
"""The styles in which a call can be forced, with arguments that fit the tool's schema."""


class Arguments(Protocol):
    """How a style writes arguments that are no JSON object."""

    def rules(self, name: str, tool: str, schema: Mapping[str, object], token_of: TokenOf) -> list[str]:
        """The rule `name` of arguments that fit a tool's schema, and those it needs. Raises `GuidanceError` for a
        schema that cannot be followed."""
        ...


@dataclass(frozen=True, slots=True)
class _XtmlArguments:
    """Kimi K3's: each with its type, or all in one JSON object, which can follow every schema."""

    mark: Mark

    def rules(self, name: str, tool: str, schema: Mapping[str, object], token_of: TokenOf) -> list[str]:
        start, end = self.mark('<|open|>json type="object"<|sep|>'), self.mark("<|close|>json<|sep|>")
        block = f"{start} {name}_json {end}"
        whole = f"{name}_json: %json {json.dumps({**schema, 'x-guidance': JSON_STYLE})}"
        apart = TaggedArguments(self._opening, "<|close|>argument<|sep|>")
        try:
            return [f"{name}: {name}_each | {block}", whole, *apart.rules(f"{name}_each", tool, schema, token_of)]
        except GuidanceError:
            return [f"{name}: {block}", whole]

    def _opening(self, key: str, kind: str) -> str:
        kind = "number" if kind == "integer" else kind
        kinds = [kind] if kind else ["number", "boolean", "null", "object", "array"]
        written = " | ".join(_text(f'{each}"') for each in kinds)
        begin = self.mark(f'<|open|>argument key="{key}" type="')
        return f"{begin} ({written}) {self.mark('<|sep|>')}"


def _pairs(prefix: str, mark: Mark) -> TaggedArguments:
    key_start, key_end, value = f"<{prefix}arg_key>", f"</{prefix}arg_key>", f"<{prefix}arg_value>"
    return TaggedArguments(
        lambda key, kind: f"{mark(key_start)} {_text(key)} {mark(key_end)} /\\n?/ {mark(value)}",
        f"</{prefix}arg_value>",
        "\n",
    )


_TAGGED: dict[str, Callable[[Mark], Arguments]] = {
    "qwen3_coder": lambda mark: TaggedArguments(
        lambda key, kind: _text(f"<parameter={key}>\n"), "\n</parameter>", "\n"
    ),
    "glm47": partial(_pairs, ""),
    "laguna": partial(_pairs, ""),
    "longcat": partial(_pairs, "longcat_"),
    "deepseek_v32": lambda mark: TaggedArguments(
        lambda key, kind: (
            f'"<" {mark("｜DSML｜")} '
            + _text(f'parameter name="{key}" string="{"true" if kind == "string" else "false"}">')
        ),
        "</｜DSML｜parameter>",
        "\n",
    ),
    "minimax_m2": lambda mark: TaggedArguments(
        lambda key, kind: _text(f'<parameter name="{key}">'), "</parameter>", "\n"
    ),
    "muse_spark": lambda mark: TaggedArguments(
        lambda key, kind: _text(f'<atem:parameter name="{key}">'), "</atem:parameter>", "\n"
    ),
    "minicpm5": lambda mark: TaggedArguments(
        lambda key, kind: mark(f'<param name="{key}">'), "</param>", sections=True
    ),
    "gemma4": lambda mark: GEMMA_4,
    "function_gemma": lambda mark: FUNCTION_GEMMA,
    "kimi_k3": _XtmlArguments,
    "pythonic": lambda mark: TaggedArguments(lambda key, kind: _text(f"{key}="), between=", ", quoted=True),
}
