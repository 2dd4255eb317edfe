"""What models write, taken apart: the same however it is cut, and never with markup in it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.output.output_formats import HARMONY, THINK_STYLES, TOOL_STYLES, output_format
from mlx_serving.core.output.output_parser import OutputFormat, OutputParser, opens_thought
from mlx_serving.core.output.parsed_output import call_id

TOOLS: tuple[dict[str, object], ...] = (
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}},
    {"type": "function"},
)
THINK = {"gemma4": "gemma4", "kimi_k3": "kimi_k3", "mistral": "mistral", HARMONY: HARMONY}
FORMATS = {name: output_format(name, THINK.get(name, "think")) for name in (*TOOL_STYLES, HARMONY)}

CALLS = {
    "json_tools": '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    "llama": '{"name": "f", "parameters": {"x": 1}}',
    "mistral": '[TOOL_CALLS]f[ARGS]{"x": 1}',
    "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
    "glm47": "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    "gemma4": "<|tool_call>call:f{x:1}<tool_call|>",
    "function_gemma": "<start_function_call>call:f{x:1}<end_function_call>",
    "laguna": "<tool_call>f<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>",
    "longcat": "<longcat_tool_call>f\n<longcat_arg_key>x</longcat_arg_key>\n<longcat_arg_value>1</longcat_arg_value>\n"
    "</longcat_tool_call>",
    "minicpm5": '<function name="f"><param name="x">1</param></function>',
    "minimax_m2": '<minimax:tool_call>\n<invoke name="f">\n<parameter name="x">1</parameter>\n</invoke>\n'
    "</minimax:tool_call>",
    "muse_spark": '<atem:function_calls>\n<atem:invoke name="f">\n<atem:parameter name="x">1</atem:parameter>\n'
    "</atem:invoke>\n</atem:function_calls>",
    "pythonic": "<|tool_call_start|>[f(x=1)]<|tool_call_end|>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    '{"x": 1}<|tool_call_end|><|tool_calls_section_end|>',
    "kimi_k3": '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|><|open|>argument key="x" type="number"<|sep|>'
    "1<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
    '{"x": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek_v32": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">1'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    HARMONY: '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>',
}
PIECES = sorted(
    {
        *CALLS.values(),
        *(text[:cut] for text in CALLS.values() for cut in (len(text) // 3, len(text) - 4)),
        *(marker for think in THINK_STYLES.values() for marker in (*think.starts, *think.ends)),
        *("a", " ", "\n", "{", "}", "[", '"', "<", "|", '{"name": "f"', '"arguments": "{}"', "[f(x='a')]", "\\"),
        *("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|>", "<|start|>assistant", "; "),
    }
)


def parse(
    output: OutputFormat, pieces: Sequence[str], **options: bool
) -> tuple[str, str, list[tuple[str | None, str | None, str]]]:
    parser = OutputParser(output, "stream", tools=TOOLS, **options)
    text, reasoning = "", ""
    calls: dict[int, tuple[str | None, str | None, str]] = {}
    for parts in (*map(parser.feed, pieces), parser.finish()):
        text += parts.text
        reasoning += parts.reasoning
        for piece in parts.tool_calls:
            known = calls.get(piece.index, (piece.id, piece.name, ""))
            calls[piece.index] = (known[0], known[1], known[2] + piece.arguments)
    return text, reasoning, [calls[index] for index in sorted(calls)]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_format_has_its_calls_read(name: str) -> None:
    text, _, calls = parse(FORMATS[name], [CALLS[name]])
    assert text == ""
    assert [(called, json.loads(arguments)) for _, called, arguments in calls] == [("f", {"x": 1})]


@given(name=st.sampled_from(sorted(FORMATS)), pieces=st.lists(st.sampled_from(PIECES), max_size=8), data=st.data())
def test_the_parts_are_the_same_however_the_text_is_cut(name: str, pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    thinking = data.draw(st.booleans())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    cut = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(FORMATS[name], cut, thinking=thinking) == parse(FORMATS[name], [text], thinking=thinking)


@given(name=st.sampled_from(sorted(set(TOOL_STYLES) - {"llama"})), pieces=st.lists(st.sampled_from(PIECES), max_size=8))
def test_no_part_has_a_marker_that_begins_calls_or_reasoning(name: str, pieces: list[str]) -> None:
    output = FORMATS[name]
    said, thought, _ = parse(output, pieces)
    for marker in (*TOOL_STYLES[name].calls.starts, *output.think_starts):
        assert marker not in said
    for marker in output.think_ends:
        assert marker not in thought


@given(text=st.text("ab{}[]\"'<|>/ \n\\"), name=st.sampled_from(sorted(set(TOOL_STYLES))))
def test_a_text_without_markers_loses_nothing(text: str, name: str) -> None:
    assert parse(FORMATS[name], list(text)) == (text, "", [])


def test_one_call_is_kept_where_there_may_be_no_more() -> None:
    parser = OutputParser(FORMATS["json_tools"], "stream", parallel=False)
    assert not parser.is_done
    assert len(parser.feed(CALLS["json_tools"] * 2).tool_calls) == 1
    assert parser.is_done
    assert parser.calls == 2


def test_ids_follow_from_the_stream_and_the_place() -> None:
    [(given_id, _, _)] = parse(FORMATS["json_tools"], [CALLS["json_tools"]])[2]
    assert given_id == call_id("stream", 0)
    [(short, _, _)] = parse(FORMATS["mistral"], [CALLS["mistral"]])[2]
    assert short == call_id("stream", 0, "short")
    assert short is not None
    assert len(short) == 9
    [(own, _, _)] = parse(FORMATS["kimi_k2"], [CALLS["kimi_k2"]])[2]
    assert own == "functions.f:0"


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("Hi", False), ("<think> is a tag. assistant:", False)],
)
def test_a_prompt_may_open_the_reasoning(prompt: str, opened: bool) -> None:
    assert opens_thought(prompt, FORMATS["json_tools"]) is opened


def test_a_model_that_neither_thinks_nor_calls_only_says() -> None:
    text = f"<think>a</think>{CALLS['glm47']}"
    assert parse(output_format(None, None), list(text))[0] == text
