"""Grammars of what stands before an answer that has a form, in the notation of llguidance's Lark: a model that thinks
may think first, and no mask is in the way of it but what keeps its turn from ending there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from mlx_serving.core.output.harmony import HarmonyFormat
from mlx_serving.core.output.output_parser import OutputFormat, opens_thought

TokenOf: TypeAlias = Callable[[str], int | None]
"""The token that stands for a marker and is no text, if there is one."""

_PIECE = re.compile(r"｜DSML｜|<｜[^<>]*｜>|<[^<>｜]*>|\[[^\[\]]*\]|[^<\[｜]+|[<\[｜]")


class Thinking(Enum):
    """Where reasoning is when an answer begins."""

    AHEAD = auto()  # the model may begin it
    OPEN = auto()  # the prompt has begun it
    OVER = auto()  # the prompt has ended it, or the model does none


def thinking_of(prompt: str, output: OutputFormat) -> Thinking:
    """As a prompt with this end leaves it to the model."""
    if not output.think_ends:
        return Thinking.OVER
    if opens_thought(prompt, output):
        return Thinking.OPEN
    is_over = prompt.rstrip().endswith(tuple(output.think_ends))
    return Thinking.OVER if is_over else Thinking.AHEAD


def mark(marker: str, token_of: TokenOf) -> str:
    """A marker as a sequence of tokens and texts."""
    whole = token_of(marker)
    if whole is not None:
        return f"<[{whole}]>"
    pieces: list[str] = []
    text = ""
    for piece in _PIECE.findall(marker):
        token = token_of(piece)
        if token is None:
            text += piece
            continue
        pieces += [_text(text), f"<[{token}]>"] if text else [f"<[{token}]>"]
        text = ""
    return " ".join([*pieces, _text(text)] if text else pieces)


def text_until(end: str, name: str, token_of: TokenOf) -> tuple[str, str]:
    """Any text and its end, and the rule that it needs, which has this name. An end that is text is found in whatever
    tokens it comes."""
    ending = mark(end, token_of)
    text, token, rest = ending.partition("<[")
    if not token:
        return name, f"{name}[suffix={_text(end)}]: /(.|\\n)*/"
    before = re.sub(r"[\\/.^$|?*+()\[\]{}]", r"\\\g<0>", json.loads(text)) if text else ""
    return f"{name.upper()} {token}{rest}", f"{name.upper()}: /(.|\\n)*{before}/"


class Lead(NamedTuple):
    """What comes first in the rule of an answer, empty or with a space behind it, and the lines it needs besides."""

    first: str
    rules: Sequence[str] = ()


def thought_lead(output: OutputFormat, thinking: Thinking, token_of: TokenOf) -> Lead:
    """Of an answer in this format, to its first token that is neither reasoning nor a separator."""
    if isinstance(output, HarmonyFormat):
        return _harmony(thinking, token_of)
    if thinking is Thinking.OVER:
        return Lead(_answer_start(output, token_of))
    return _marked(output, thinking, token_of)


def form_lead(output: OutputFormat, thinking: Thinking, token_of: TokenOf) -> str | None:
    """The grammar whose `@form` is the grammar of the form that the answer must have; None where the form is all that
    the model writes."""
    first, rules = thought_lead(output, thinking, token_of)
    answer = form_rule(output, token_of)
    return "\n".join([f"start: {first}{answer}", *rules]) + "\n" if first or answer != "@form" else None


def form_rule(output: OutputFormat, token_of: TokenOf) -> str:
    """An answer that has a form, behind what `thought_lead` allows."""
    if isinstance(output, HarmonyFormat):
        return f'{mark("<|channel|>", token_of)} "final" {mark("<|message|>", token_of)} @form'
    return "@form"


def _marked(output: OutputFormat, thinking: Thinking, token_of: TokenOf) -> Lead:
    start = mark(_written(output.think_starts, token_of), token_of)
    thought, rule = text_until(_written(output.think_ends, token_of), "thought", token_of)
    answer = _answer_start(output, token_of)
    rules = [rule, "THOUGHT_SPACE: /[ \\n]{0,4}/"]
    if thinking is Thinking.OPEN:
        return Lead(f"{thought} THOUGHT_SPACE {answer}", rules)
    return Lead(f"({start} {thought} THOUGHT_SPACE)? {answer}", rules)


def _harmony(thinking: Thinking, token_of: TokenOf) -> Lead:
    """What follows is a message of its own, and says on which channel."""
    if thinking is Thinking.OVER:
        return Lead("")
    thought, rule = text_until("<|end|>", "thought", token_of)
    closing = f'{thought} {mark("<|start|>", token_of)} "assistant"'
    if thinking is Thinking.OPEN:
        return Lead(f"{closing} ", [rule])
    return Lead(f'({mark("<|channel|>", token_of)} "analysis" {mark("<|message|>", token_of)} {closing})? ', [rule])


def _written(markers: Sequence[str], token_of: TokenOf) -> str:
    """Of the ways to write a marker the one that the model has a token for, or else the first."""
    return next((marker for marker in markers if token_of(marker) is not None), markers[0])


def _answer_start(output: OutputFormat, token_of: TokenOf) -> str:
    return f"({mark(output.answer_start, token_of)})? " if output.answer_start else ""


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
