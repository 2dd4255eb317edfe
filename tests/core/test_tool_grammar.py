"""Grammars that leave nothing but calls, tried with llguidance itself."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from mlx_serving.core.output_formats import HARMONY, output_format
from mlx_serving.core.output_parser import OutputParser
from mlx_serving.core.thought_grammar import Lead, Thinking, thought_lead
from mlx_serving.core.tool_arguments import Schemas
from mlx_serving.core.tool_grammar import FORCIBLE, tool_grammar

from .test_output_parser import THINK

SCHEMAS: Schemas = {
    "f": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False},
    "g": {},
}
ANSWERS = {
    "json_tools": '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    "llama": '{"name": "f", "parameters": {"x": 1}}',
    "mistral": '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    '{"x": 1}<|tool_call_end|><|tool_calls_section_end|>',
    "harmony": '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}',
}


def no_token(_: str) -> None:
    """Of a model whose markers are text."""


def fits(grammar: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(grammar))
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("style", FORCIBLE)
@pytest.mark.parametrize("thinking", [False, True])
def test_a_call_fits_and_is_read_again(style: str, thinking: bool) -> None:
    output = output_format(style, THINK.get(style, "think"))
    lead = thought_lead(output, Thinking.OPEN if thinking else Thinking.AHEAD, no_token)
    grammar = tool_grammar(style, SCHEMAS, no_token, parallel=True, lead=lead)
    answer = ANSWERS[style]
    start, end = output.think_starts[0], output.think_ends[0]
    before = ("" if thinking else start) + "hm" + end + ("<|start|>assistant" if style == HARMONY else "\n")
    assert fits(grammar, before + answer)
    assert fits(grammar, answer) is not thinking
    assert not fits(grammar, before + answer.replace("1}", "3}"))
    assert not fits(grammar, "Hello")
    parser = OutputParser(output, "s", tools=[], thinking=thinking)
    if style != "llama":
        [call] = parser.feed(before + answer).tool_calls
        assert (call.name, json.loads(call.arguments)) == ("f", {"x": 1})


def test_several_calls_only_where_they_may_be() -> None:
    two = "\n".join([ANSWERS["json_tools"]] * 2)
    for parallel in (True, False):
        grammar = tool_grammar("json_tools", SCHEMAS, no_token, parallel=parallel, lead=Lead(""))
        assert fits(grammar, two) is parallel


def test_markers_that_are_tokens_are_written_as_tokens() -> None:
    grammar = tool_grammar("mistral", SCHEMAS, len, parallel=True, lead=Lead(""))
    assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)) == ""
    assert '<[12]> "f" <[6]> args_0' in grammar
