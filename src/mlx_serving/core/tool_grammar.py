"""Grammars of answers that must call tools, in the notation of llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeAlias

from mlx_serving.core.thought_grammar import Lead, TokenOf, mark
from mlx_serving.core.tool_arguments import Schemas

FORCIBLE = ("json_tools", "llama", "mistral", "kimi_k2", "harmony")
"""The styles whose arguments are JSON, so that a tool's schema says what they may be."""

# JSON is written as most models write it in one line: nothing is left to choose but the values.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def tool_grammar(style: str, schemas: Schemas, token_of: TokenOf, *, parallel: bool, lead: Lead) -> str:
    """An answer that is one call or, with `parallel`, several, behind what `lead` allows. Raises KeyError for a style
    that is not one of `FORCIBLE`."""

    def marked(marker: str) -> str:
        return mark(marker, token_of)

    def arguments(number: int) -> str:
        return f"args_{number}"

    names = list(schemas)
    before, between, after, call = _PARTS[style](names, marked, arguments)
    repeated = f"({between} call)*" if parallel and between is not None else ""
    lines = [f"start: {lead.first}{before} call {repeated} {after}".rstrip(), *lead.rules]
    lines.append("call: " + " | ".join(call))
    for number, name in enumerate(names):
        schema = {**(schemas[name] or {"type": "object"}), "x-guidance": _JSON_STYLE}
        lines.append(f"{arguments(number)}: %json {json.dumps(schema)}")
    return "\n".join(lines) + "\n"


_Parts: TypeAlias = tuple[str, str | None, str, list[str]]
"""What stands before the calls, between two (None: there is one only), after them, and how each may be."""


def _objects(names: Sequence[str], arguments: Callable[[int], str], key: str) -> list[str]:
    return [
        f'{json.dumps(f"""{{"name": {json.dumps(name)}, "{key}": """)} {arguments(number)} "}}"'
        for number, name in enumerate(names)
    ]


def _json_tools(names: Sequence[str], mark: Callable[[str], str], arguments: Callable[[int], str]) -> _Parts:
    start, end = mark("<tool_call>"), mark("</tool_call>")
    calls = [f'{start} "\\n" {call} "\\n" {end}' for call in _objects(names, arguments, "arguments")]
    return "", '"\\n"', "", calls


def _llama(names: Sequence[str], mark: Callable[[str], str], arguments: Callable[[int], str]) -> _Parts:
    return "", None, "", _objects(names, arguments, "parameters")


def _mistral(names: Sequence[str], mark: Callable[[str], str], arguments: Callable[[int], str]) -> _Parts:
    start, separator = mark("[TOOL_CALLS]"), mark("[ARGS]")
    if separator.startswith('"'):  # the older models have no such token, and write lists
        return f'{start} "["', '", "', '"]"', _objects(names, arguments, "arguments")
    calls = [f"{start} {json.dumps(name)} {separator} {arguments(number)}" for number, name in enumerate(names)]
    return "", '""', "", calls


def _kimi(names: Sequence[str], mark: Callable[[str], str], arguments: Callable[[int], str]) -> _Parts:
    start, separator, end = mark("<|tool_call_begin|>"), mark("<|tool_call_argument_begin|>"), mark("<|tool_call_end|>")
    calls = [
        f"{start} {json.dumps(f'functions.{name}:')} /[0-9]+/ {separator} {arguments(number)} {end}"
        for number, name in enumerate(names)
    ]
    return mark("<|tool_calls_section_begin|>"), '""', mark("<|tool_calls_section_end|>"), calls


def _harmony(names: Sequence[str], mark: Callable[[str], str], arguments: Callable[[int], str]) -> _Parts:
    calls = [
        f'{mark("<|channel|>")} {json.dumps(f"commentary to=functions.{name} ")} {mark("<|constrain|>")} "json" '
        f"{mark('<|message|>')} {arguments(number)}"
        for number, name in enumerate(names)
    ]
    return "", None, "", calls


_PARTS: dict[str, Callable[[Sequence[str], Callable[[str], str], Callable[[int], str]], _Parts]] = {
    "json_tools": _json_tools,
    "llama": _llama,
    "mistral": _mistral,
    "kimi_k2": _kimi,
    "harmony": _harmony,
}
