from __future__ import annotations

import pytest

from mlx_serving.core.embedding.pace import Pace, seconds_beside


@pytest.mark.parametrize(("step_s", "pass_s"), [(0.0, 0.08), (0.01, 0.07), (0.06, 0.06), (0.5, 0.08)])
def test_a_pass_fills_the_gap_and_is_no_longer_than_a_step_or_the_target(step_s: float, pass_s: float) -> None:
    assert seconds_beside(0.08, step_s) == pytest.approx(pass_s)


def test_nothing_is_known_at_first() -> None:
    assert Pace().tokens_within(0.001) == Pace().tokens_within(10) == 128


def test_tokens_are_as_many_as_the_time_allows() -> None:
    pace = Pace()
    pace.note(1000, 1.016)
    assert pace.tokens_within(0.1) == pytest.approx(100)
    pace.note(1000, 2.032)
    assert pace.tokens_within(0.125) == pytest.approx(100)


def test_no_pass_is_much_larger_than_those_before() -> None:
    pace = Pace()
    pace.note(100, 0.001)
    assert pace.tokens_within(10) == 200
    for _ in range(20):
        pace.note(int(pace.tokens_within(10)), 0.001)
    assert pace.tokens_within(10) == 32_768
