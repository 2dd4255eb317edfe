"""Calls that models get wrong: what can be read of them, and that no markup is said."""

from __future__ import annotations

import json
from typing import TypeAlias

import pytest

from mlx_serving.core.output.output_formats import HARMONY, output_format
from mlx_serving.core.output.output_parser import OutputParser
from mlx_serving.core.output.parsed_output import OutputSink
from mlx_serving.core.output.text_scanner import TextScanner
from mlx_serving.core.output.tool_call_stream import NO_CALLS

TOOLS: tuple[dict[str, object], ...] = (
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}},
)


def parse(style: str, text: str, *, pieces: bool) -> tuple[str, list[tuple[str, str]]]:
    parser = OutputParser(output_format(style, HARMONY if style == HARMONY else None), "s", tools=TOOLS)
    said, calls = "", dict[int, tuple[str, str]]()
    for parts in (*map(parser.feed, text if pieces else [text]), parser.finish()):
        said += parts.text
        for call in parts.tool_calls:
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = (name + (call.name or ""), arguments + call.arguments)
    return said, [calls[index] for index in sorted(calls)]


WRAPPED = "<tool_call>{}</tool_call>"
Case: TypeAlias = tuple[str, str, list[tuple[str, dict[str, object]]] | None]
READ: list[Case] = [
    ("json_tools", WRAPPED.format('{"name": "f"}'), [("f", {})]),
    ("json_tools", WRAPPED.format('{"name": "f", "arguments": null}'), [("f", {})]),
    ("json_tools", WRAPPED.format('{"name": "f", "arguments": "{\\"x\\": 1}"}'), [("f", {"x": 1})]),
    ("json_tools", WRAPPED.format('{"arguments": {"x": 1}, "name": "f"}'), [("f", {"x": 1})]),
    ("json_tools", WRAPPED.format('{"id": 3, "name": "f", "arguments": {"x": "a\nb\tc"}}'), [("f", {"x": "a\nb\tc"})]),
    ("json_tools", WRAPPED.format('[{"name": "f"}, {"name": "f", "arguments": {}}]'), [("f", {}), ("f", {})]),
    ("json_tools", WRAPPED.format("[] "), []),
    ("json_tools", WRAPPED.format('[{"name": "f"} 3]'), [("f", {})]),
    ("json_tools", WRAPPED.format('[{"name": 3}]'), []),
    ("json_tools", WRAPPED.format("nothing"), []),
    ("json_tools", WRAPPED.format('{"name": "f", "arguments": 3}'), []),
    ("json_tools", WRAPPED.format('{"arguments": 3, "name": "f"}'), []),
    ("json_tools", WRAPPED.format('{"arguments": [1}, "name": "f"}'), []),
    ("json_tools", WRAPPED.format('{"arguments": 01, "name": "f"}'), []),
    ("json_tools", WRAPPED.format("{3: 4}"), []),
    ("json_tools", WRAPPED.format('{"name" "f"}'), []),
    ("json_tools", WRAPPED.format('{"name": "\\q"}'), []),
    ("json_tools", WRAPPED.format('{"other": :}'), []),
    ("json_tools", '<tool_call>{"name": "f"}<tool_call>{"name": "f"}</tool_call>', [("f", {}), ("f", {})]),
    ("llama", '{"name": "g", "parameters": {}}', None),
    ("llama", '{"name": "f", "other": {}}', None),
    ("llama", '{"name": "f"}', None),
    ("llama", '{"name": 3, "parameters": {}}', None),
    ("llama", "[1, 2]", None),
    ("llama", "[g(x=1)]", None),
    ("llama", '[f(x="a\\"]b")]', [("f", {"x": 'a"]b'})]),
    ("llama", '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {}}', [("f", {}), ("f", {})]),
    ("mistral", '[TOOL_CALLS]f{"x": 1}', [("f", {"x": 1})]),
    ("mistral", '[TOOL_CALLS]not a name[ARGS]{"x": 1}', []),
    ("mistral", '[TOOL_CALLS]not a name[TOOL_CALLS]f[ARGS]{"x": 1}', [("f", {"x": 1})]),
    ("mistral", "[TOOL_CALLS]f[ARGS]3", []),
    ("mistral", '[TOOL_CALLS]f[ARGS]"{}"', [("f", {})]),
    ("kimi_k2", ("<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_end|>"
     "<|tool_calls_section_end|>"), []),
    ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_calls_section_end|>", []),
    ("kimi_k2", ("<|tool_calls_section_begin|><|tool_call_begin|> <|tool_call_argument_begin|>{}<|tool_call_end|>"
     "<|tool_calls_section_end|>"), []),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜> \n```json\n"
     "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"), []),
    (
        "deepseek_v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [("f", {})],
    ),
    ("glm47", "<tool_call>f<arg_key>a</tool_call>b</tool_call>", [("f", {})]),
    (HARMONY, '<|channel|>commentary to=functions.f <|message|>3<|call|>', []),
    (HARMONY, '<|channel|>strange<|message|>nothing of it<|end|>', []),
    (HARMONY, '<|message|>nothing of it<|end|>', []),
]  # fmt: skip


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize(("style", "text", "calls"), READ)
def test_what_can_be_read_is_called_and_no_markup_is_said(
    style: str, text: str, calls: list[tuple[str, dict[str, object]]] | None, pieces: bool
) -> None:
    said, read = parse(style, text, pieces=pieces)
    if calls is None:  # it was no call, but what the model says
        assert (said, read) == (text, [])
        return
    assert [(name, json.loads(arguments)) for name, arguments in read] == calls
    assert "<" not in said
    assert "[TOOL" not in said


@pytest.mark.parametrize(("style", "text", "calls"), READ)
def test_what_breaks_off_raises_nothing(style: str, text: str, calls: object) -> None:
    for end in range(len(text)):
        parse(style, text[:end], pieces=False)


def test_behind_the_end_nothing_comes() -> None:
    parser = OutputParser(output_format("json_tools", None), "s", tools=TOOLS)
    assert parser.feed("Hello").text == "Hello"
    assert parser.finish() == parser.finish()


def test_where_no_calls_are_read_no_marker_leads() -> None:
    assert not NO_CALLS.starts
    with pytest.raises(AssertionError):
        NO_CALLS.read("", TextScanner(), OutputSink("s", style="long", trims=False, max_calls=None), {})
