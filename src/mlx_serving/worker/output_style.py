"""How a model's answers are marked: found in its template and vocabulary, or named by whoever serves it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_serving.core.output.output_formats import HARMONY, THINK_STYLES, TOOL_STYLES, output_format
from mlx_serving.core.output.output_parser import OutputFormat
from mlx_serving.core.suggest import did_you_mean
from mlx_serving.errors import InvalidRequest

NONE = "none"

TOOL_PARSERS = tuple(sorted([HARMONY, NONE, *TOOL_STYLES]))
REASONING_PARSERS = tuple(sorted([HARMONY, NONE, *THINK_STYLES]))

_TOOLS_BY_TEMPLATE: Sequence[tuple[str, str]] = (
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("｜DSML｜", "deepseek_v32"),
    ("<|python_tag|>", "llama"),
    ("<tool_call>", "json_tools"),
)
"""For templates that mlx-lm finds nothing in."""

_THINK_BY_MARKER: Sequence[tuple[str, str]] = (
    ("<think>", "think"),
    ("[THINK]", "mistral"),
    ("<|channel>", "gemma4"),
    ("<longcat_think>", "longcat"),
    ("<|think:start|>", "think_blocks"),
    ("<seed:think>", "seed"),
)


@dataclass(frozen=True, slots=True)
class OutputStyle:
    """`tool_parser` and `reasoning_parser` are names, or None for a model that does not call or think."""

    tool_parser: str | None = None
    reasoning_parser: str | None = None

    def format(self, *, tools: bool) -> OutputFormat:
        """With or without calls apart."""
        think = HARMONY if self.tool_parser == HARMONY else self.reasoning_parser
        return output_format(self.tool_parser if tools else None, think)


def find_style(wrapper: TokenizerWrapper, tool_parser: str | None, reasoning_parser: str | None) -> OutputStyle:
    """`tool_parser` and `reasoning_parser` are what was asked for. Raises `InvalidRequest` for a name that is none."""
    _require("tool_parser", tool_parser, TOOL_PARSERS)
    _require("reasoning_parser", reasoning_parser, REASONING_PARSERS)
    tools = tool_parser if tool_parser is not None else _tools_of(wrapper)
    think = reasoning_parser if reasoning_parser is not None else _thinking_of(wrapper)
    return OutputStyle(None if tools == NONE else tools, None if think == NONE else think)


def _require(field: str, name: str | None, known: Sequence[str]) -> None:
    if name is not None and name not in known:
        close = did_you_mean(name, known)
        hint = f"; did you mean {close!r}?" if close else ""
        raise InvalidRequest(
            f"{field} must be one of {', '.join(known)}, got {name!r}{hint}", field=field, limit=list(known), given=name
        )


def _is_harmony(vocabulary: Mapping[str, int]) -> bool:
    return all(marker in vocabulary for marker in ("<|channel|>", "<|message|>", "<|start|>"))


def _tools_of(wrapper: TokenizerWrapper) -> str | None:
    vocabulary = cast("Mapping[str, int]", cast(Any, wrapper).get_vocab())
    if _is_harmony(vocabulary):
        return HARMONY
    found = cast(Any, wrapper).init_kwargs.get("tool_parser_type")
    if found in TOOL_PARSERS:
        return str(found)
    template = template_source(wrapper)
    return next((name for marker, name in _TOOLS_BY_TEMPLATE if marker in template), None)


def _thinking_of(wrapper: TokenizerWrapper) -> str | None:
    vocabulary = cast("Mapping[str, int]", cast(Any, wrapper).get_vocab())
    if _is_harmony(vocabulary):
        return HARMONY
    if cast(Any, wrapper).think_start == "<|open|>think<|sep|>":
        return "kimi_k3"
    template = template_source(wrapper)
    return next((name for marker, name in _THINK_BY_MARKER if marker in vocabulary or marker in template), None)


def template_source(wrapper: TokenizerWrapper) -> str:
    """The text of the model's chat template, of all if it has several; empty for one that is a program."""
    template = cast(Any, wrapper).chat_template
    return template if isinstance(template, str) else json.dumps(template, ensure_ascii=False) if template else ""


def knows_tools(wrapper: TokenizerWrapper) -> bool:
    """Whether the chat template has a place for tools; one that is a program is trusted to."""
    if not wrapper.has_chat_template:
        return False
    source = template_source(wrapper)
    return not source or tells_of_tools(source)


def tells_of_tools(template: str) -> bool:
    """Whether a chat template, in Jinja, has a place for tools."""
    return "tools" in template
