"""How much a model that thinks may think, from the words that APIs have for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

_BUDGETS: Mapping[ReasoningEffort, int | None] = {
    "none": None,
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": 32_768,
    "xhigh": None,
    "max": None,
}
# The words that templates of models with an effort know.
_TEMPLATE_EFFORTS: Mapping[ReasoningEffort, str] = {"minimal": "low", "xhigh": "high", "max": "high"}


@dataclass(frozen=True, slots=True)
class Thought:
    """What is asked of a model's thinking: its template's switches, and the most tokens; None is no limit."""

    template_kwargs: Mapping[str, object] = field(default_factory=dict[str, object])
    budget: int | None = None


def thought_of(effort: ReasoningEffort) -> Thought:
    """The switches are those that templates have: `enable_thinking` (Qwen, GLM, …), `thinking` (DeepSeek) and
    `reasoning_effort` (gpt-oss). Templates pass over those that they do not know."""
    if effort == "none":
        return Thought({"enable_thinking": False, "thinking": False})
    word = _TEMPLATE_EFFORTS.get(effort, effort)
    return Thought({"enable_thinking": True, "thinking": True, "reasoning_effort": word}, _BUDGETS[effort])
