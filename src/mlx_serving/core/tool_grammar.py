"""Grammars of answers that must call tools, in the notation of llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeAlias

from mlx_serving.core.tagged_arguments import JSON_STYLE, TaggedArguments
from mlx_serving.core.thought_grammar import Lead, TokenOf, mark
from mlx_serving.core.tool_arguments import Schemas


def tool_grammar(style: str, schemas: Schemas, token_of: TokenOf, *, parallel: bool, lead: Lead) -> str:
    """An answer that is one call or, with `parallel`, several, behind what `lead` allows. Raises KeyError for a style
    that is not one of `FORCIBLE`, `GuidanceError` for a schema that cannot be followed in this style."""

    def marked(marker: str) -> str:
        return mark(marker, token_of)

    def arguments(number: int) -> str:
        return f"args_{number}"

    names = list(schemas)
    before, between, after, call = _PARTS[style](names, marked, arguments)
    repeated = f"({between} call)*" if parallel and between is not None else ""
    lines = [f"start: {lead.first}{before} call {repeated} {after}".rstrip(), *lead.rules]
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
}

FORCIBLE = tuple(_PARTS)
"""The styles in which a call can be forced, with arguments that fit the tool's schema."""

_TAGGED: dict[str, Callable[[Mark], TaggedArguments]] = {
    "qwen3_coder": lambda mark: TaggedArguments(
        lambda key, is_text: _text(f"<parameter={key}>\n"), "\n</parameter>", "\n"
    ),
    "glm47": lambda mark: TaggedArguments(
        lambda key, is_text: f"{mark('<arg_key>')} {_text(key)} {mark('</arg_key>')} /\\n?/ {mark('<arg_value>')}",
        "</arg_value>",
        "\n",
    ),
    "deepseek_v32": lambda mark: TaggedArguments(
        lambda key, is_text: (
            f'"<" {mark("｜DSML｜")} ' + _text(f'parameter name="{key}" string="{"true" if is_text else "false"}">')
        ),
        "</｜DSML｜parameter>",
        "\n",
    ),
    "minimax_m2": lambda mark: TaggedArguments(
        lambda key, is_text: _text(f'<parameter name="{key}">'), "</parameter>", "\n"
    ),
    "pythonic": lambda mark: TaggedArguments(lambda key, is_text: _text(f"{key}="), between=", ", quoted=True),
}
