from __future__ import annotations

from typing import get_args

import pytest

from mlx_serving.core.reasoning_effort import ReasoningEffort, thought_of

EFFORTS: tuple[ReasoningEffort, ...] = get_args(ReasoningEffort)


def test_no_effort_switches_thinking_off() -> None:
    assert thought_of("none").template_kwargs == {"enable_thinking": False, "thinking": False}
    assert thought_of("none").budget is None


@pytest.mark.parametrize("effort", EFFORTS[1:])
def test_any_other_effort_switches_it_on_with_a_word_that_templates_know(effort: ReasoningEffort) -> None:
    thought = thought_of(effort)
    assert thought.template_kwargs["enable_thinking"] is True
    assert thought.template_kwargs["reasoning_effort"] in {"low", "medium", "high"}


def test_more_effort_is_a_larger_budget_and_the_most_is_none() -> None:
    limited = [thought_of(effort).budget for effort in ("minimal", "low", "medium", "high")]
    assert limited == sorted(budget for budget in limited if budget is not None)
    assert thought_of("xhigh").budget is thought_of("max").budget is None
