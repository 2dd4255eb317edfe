"""What may come before a form, tried with llguidance itself."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from mlx_serving.core.grammar.thought_grammar import Thinking, form_lead, mark, thinking_of
from mlx_serving.core.output.output_formats import HARMONY, THINK_STYLES, output_format
from mlx_serving.core.output.output_parser import FormFormat, MarkedFormat, OutputParser

FORM = {"name": "form", "json_schema": {"const": "a </think> b"}}
ANSWER = '"a </think> b"'


def no_token(_: str) -> None:
    """Of a model whose markers are text."""


def fits(lead: str | None, text: str) -> bool:
    """Whether a text is all of an answer."""
    assert lead is not None
    matcher = LLMatcher(LLTokenizer("byte"), json.dumps({"grammars": [{"lark_grammar": lead}, FORM]}))
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("style", [*THINK_STYLES, HARMONY])
@pytest.mark.parametrize("thought", ["", "Is < 3 > 2?\n", "almost </thin", '{"x": [1'])
def test_a_form_holds_behind_the_reasoning_and_is_read_again(style: str, thought: str) -> None:
    output = output_format(None, style)
    start, end = output.think_starts[0], output.think_ends[0]
    between = "<|start|>assistant<|channel|>final<|message|>" if style == HARMONY else "\n\n" + output.answer_start
    whole = f"{thought}{end}{between}{ANSWER}"
    opened, ahead = (form_lead(output, state, no_token) for state in (Thinking.OPEN, Thinking.AHEAD))
    assert fits(opened, whole)
    assert fits(ahead, start + whole)
    assert fits(ahead, between.lstrip().removeprefix("<|start|>assistant") + ANSWER)
    assert not fits(opened, ANSWER)
    assert not fits(opened, whole + "x")
    assert not fits(opened, f"{thought}{end}{between}no")
    read = FormFormat(output) if isinstance(output, MarkedFormat) else output
    for thinking, text in ((True, whole), (False, start + whole)):
        for pieces in ([text], list(text)):
            parser = OutputParser(read, "s", thinking=thinking)
            parts = [*map(parser.feed, pieces), parser.finish()]
            assert "".join(part.text for part in parts) == ANSWER
            assert "".join(part.reasoning for part in parts) == thought.strip()


@pytest.mark.parametrize("said", ["", " ", ANSWER, '"<think> </think>"', " <thin"])
def test_what_is_said_without_reasoning_is_read_as_it_is(said: str) -> None:
    for pieces in ([said], list(said)):
        parser = OutputParser(FormFormat(MarkedFormat(("<thinks>", "<think>"), ("</think>",))), "s")
        parts = [*map(parser.feed, pieces), parser.finish()]
        assert "".join(part.text for part in parts) == said


def test_the_form_is_all_where_no_reasoning_comes() -> None:
    assert form_lead(output_format(None, "think"), Thinking.OVER, no_token) is None
    assert form_lead(MarkedFormat(), Thinking.OVER, no_token) is None
    said = form_lead(output_format(None, HARMONY), Thinking.OVER, no_token)
    assert fits(said, "<|channel|>final<|message|>" + ANSWER)


@pytest.mark.parametrize(
    ("style", "prompt", "thinking"),
    [
        (None, "<think>", Thinking.OVER),
        ("think", "assistant\n", Thinking.AHEAD),
        ("think", "assistant\n<think>\n", Thinking.OPEN),
        ("think", "assistant\n<think>\n\n</think>\n\n", Thinking.OVER),
        ("think", "<think>a</think>b<|im_end|>assistant\n", Thinking.AHEAD),
        ("gemma4", "model\n<|channel>thought\n", Thinking.OPEN),
        (HARMONY, "<|end|><|start|>assistant", Thinking.AHEAD),
    ],
)
def test_the_end_of_a_prompt_tells_where_reasoning_is(style: str | None, prompt: str, thinking: Thinking) -> None:
    assert thinking_of(prompt, output_format(None, style)) is thinking


def test_markers_that_are_tokens_are_written_as_tokens() -> None:
    tokens = {"<|open|>": 7, "<|sep|>": 8, "</think>": 9, "<|channel>": 10, "<longcat>": 11}
    assert mark("</think>", tokens.get) == "<[9]>"
    assert mark("<|open|>think<|sep|>", tokens.get) == '<[7]> "think" <[8]>'
    assert mark("<|channel>thought", tokens.get) == '<[10]> "thought"'
    assert mark("x<longcat>", tokens.get) == '"x" <[11]>'
    assert mark("[/THINK]", tokens.get) == '"[/THINK]"'
    lead = form_lead(output_format(None, "mistral"), Thinking.OPEN, tokens.get)
    assert lead is not None
    assert "THOUGHT <[9]>" in lead  # of the two ways to end it, the one that there is a token for
