"""The formats that are known by name: how models mark what they think and what they call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_serving.core.output.gemma_calls import FUNCTION_GEMMA, GEMMA_4
from mlx_serving.core.output.harmony import HarmonyFormat
from mlx_serving.core.output.output_parser import MarkedFormat, OutputFormat
from mlx_serving.core.output.parsed_output import IdStyle
from mlx_serving.core.output.tool_call_stream import (
    NO_CALLS,
    BareCalls,
    CallFormat,
    HeadedJson,
    MistralCalls,
    WholeCalls,
    WrappedJson,
)
from mlx_serving.core.output.whole_calls import (
    NamedParameters,
    is_whole_argument_pairs,
    is_whole_dsml,
    is_whole_longcat,
    is_whole_tagged_parameters,
    is_whole_xtml,
    read_argument_pairs,
    read_dsml,
    read_longcat,
    read_pythonic,
    read_tagged_parameters,
    read_xtml,
)

_KIMI_HEADER = re.compile(r"((?:functions\.)?([\w.-]+?)(?::\d+)?)", re.S)


def _kimi_name(header: str) -> tuple[str, str | None] | None:
    match = _KIMI_HEADER.fullmatch(header)
    return None if match is None else (match.group(2), match.group(1))


def _plain_name(header: str) -> tuple[str, str | None] | None:
    return (header, None) if re.fullmatch(r"[\w.-]+", header) else None


_MINICPM = NamedParameters("param", sections=True)
_MINIMAX = NamedParameters("parameter")
_MUSE = NamedParameters("atem:parameter")

_DSML_SECTIONS = tuple(
    (f"<｜DSML｜{name}>", f"</｜DSML｜{name}>") for name in ("function_calls", "tool_calls", " calls", " tool_calls")
)


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """How a model writes its calls; see `MarkedFormat`."""

    calls: CallFormat
    trims: bool = True
    ids: IdStyle = "long"
    calls_end_thought: bool = False
    ignored: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ThinkStyle:
    """What reasoning stands between: the first of each is what the model's template writes."""

    starts: Sequence[str]
    ends: Sequence[str]
    answer_start: str = ""


HARMONY = "harmony"
"""Thinks and calls in one notation: the name of a style of either kind, which only go together."""

_GLM = ToolStyle(
    WholeCalls((("<tool_call>", "</tool_call>"),), read_argument_pairs, is_whole_argument_pairs),
    ignored=("</tool_call>",),
)

TOOL_STYLES: Mapping[str, ToolStyle] = {
    "json_tools": ToolStyle(WrappedJson("<tool_call>", "</tool_call>")),
    "llama": ToolStyle(BareCalls(), trims=False, ignored=("<|python_end|>",)),
    "mistral": ToolStyle(MistralCalls(), ids="short"),
    "qwen3_coder": ToolStyle(
        WholeCalls(
            (("<function=", "</function>"),),
            read_tagged_parameters,
            is_whole_tagged_parameters,
            (("<tool_call>", "</tool_call>"),),
        ),
        calls_end_thought=True,
        ignored=("</tool_call>",),
    ),
    "glm47": _GLM,
    "laguna": _GLM,
    "longcat": ToolStyle(
        WholeCalls((("<longcat_tool_call>", "</longcat_tool_call>"),), read_longcat, is_whole_longcat)
    ),
    "minicpm5": ToolStyle(WholeCalls((("<function name=", "</function>"),), _MINICPM.read, _MINICPM.is_whole)),
    "minimax_m2": ToolStyle(
        WholeCalls(
            (("<invoke", "</invoke>"),),
            _MINIMAX.read,
            _MINIMAX.is_whole,
            (("<minimax:tool_call>", "</minimax:tool_call>"),),
        )
    ),
    "muse_spark": ToolStyle(
        WholeCalls(
            (("<atem:invoke", "</atem:invoke>"),),
            _MUSE.read,
            _MUSE.is_whole,
            (("<atem:function_calls>", "</atem:function_calls>"),),
        )
    ),
    "gemma4": ToolStyle(WholeCalls((("<|tool_call>", "<tool_call|>"),), GEMMA_4.read, GEMMA_4.is_whole), trims=False),
    "function_gemma": ToolStyle(
        WholeCalls((("<start_function_call>", "<end_function_call>"),), FUNCTION_GEMMA.read, FUNCTION_GEMMA.is_whole),
        trims=False,
    ),
    "pythonic": ToolStyle(WholeCalls((("<|tool_call_start|>", "<|tool_call_end|>"),), read_pythonic)),
    "kimi_k2": ToolStyle(
        HeadedJson(
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            _kimi_name,
        ),
        trims=False,
    ),
    "kimi_k3": ToolStyle(
        WholeCalls(
            (("<|open|>call", "<|close|>call<|sep|>"),),
            read_xtml,
            is_whole_xtml,
            (("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),),
            sectionless=False,
        ),
        trims=False,
        ignored=(
            "<|open|>response<|sep|>",
            "<|close|>response<|sep|>",
            "<|open|>message<|sep|>",
            "<|close|>message<|sep|>",
        ),
    ),
    "deepseek_v3": ToolStyle(
        HeadedJson(
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            _plain_name,
        )
    ),
    "deepseek_v32": ToolStyle(
        WholeCalls(
            (
                ("<｜DSML｜invoke", "</｜DSML｜invoke>"),
                ("<｜DSML｜invoke", "/>"),
                ("<｜DSML｜ invoke", "</｜DSML｜ invoke>"),
                ("<｜DSML｜ invoke", "/>"),
            ),
            read_dsml,
            is_whole_dsml,
            _DSML_SECTIONS,
        )
    ),
}

THINK_STYLES: Mapping[str, ThinkStyle] = {
    "think": ThinkStyle(("<think>",), ("</think>",)),
    "mistral": ThinkStyle(("[THINK]", "<think>"), ("[/THINK]", "</think>")),
    "gemma4": ThinkStyle(("<|channel>thought", "<|channel>"), ("<channel|>",)),
    "kimi_k3": ThinkStyle(
        ("<|open|>think<|sep|>",), ("<|close|>think<|sep|>", "<|open|>response<|sep|>"), "<|open|>response<|sep|>"
    ),
    "longcat": ThinkStyle(("<longcat_think>",), ("</longcat_think>",)),
    "think_blocks": ThinkStyle(("<|think:start|>",), ("<|think:end|>",)),
    "seed": ThinkStyle(("<seed:think>",), ("</seed:think>",)),
}


MARKERS = (
    *(marker for think in THINK_STYLES.values() for marker in (*think.starts, *think.ends)),
    *(marker for style in TOOL_STYLES.values() for marker in (*style.calls.starts, *style.ignored)),
    *("<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"),
    *("</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    *("[ARGS]", "[CALL_ID]", '<|"|>', "<tool_call|>", "<|tool_call_end|>"),
    *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_calls_section_end|>"),
    *("<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "｜DSML｜"),
    *("<|open|>", "<|close|>", "<|sep|>"),
    *("<minimax:tool_call>", "</minimax:tool_call>", "<start_function_call>", "<end_function_call>", "<escape>"),
    *("<longcat_tool_call>", "</longcat_tool_call>", "<longcat_arg_key>", "</longcat_arg_key>"),
    *("<longcat_arg_value>", "</longcat_arg_value>", "<atem:function_calls>", "</atem:function_calls>"),
)
"""What tokens of formats are called: those that must be read although they are no text."""


def output_format(tools: ToolStyle | str | None, think: ThinkStyle | str | None) -> OutputFormat:
    """How a model writes that thinks and calls in these styles, or in those of these names; None for what it does not
    do, or is not wanted apart."""
    if tools == HARMONY or think == HARMONY:
        return HarmonyFormat(apart=tools == HARMONY)
    style = TOOL_STYLES[tools] if isinstance(tools, str) else tools or ToolStyle(NO_CALLS, trims=False)
    thought = THINK_STYLES[think] if isinstance(think, str) else think or ThinkStyle((), ())
    return MarkedFormat(
        think_starts=thought.starts,
        think_ends=thought.ends,
        answer_start=thought.answer_start,
        calls=style.calls,
        ignored=style.ignored,
        trims=style.trims,
        ids=style.ids,
        calls_end_thought=style.calls_end_thought,
    )
