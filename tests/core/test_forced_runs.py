from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.forced_runs import PATIENCE, width


def test_a_row_alone_takes_all_it_knows() -> None:
    assert width([1], 24) == 1
    assert width([6], 0.5) == 6


def test_others_are_padded_as_long_as_that_costs_less_than_it_saves() -> None:
    assert width([5, 1, 1], 24) == 5
    assert width([5, *[1] * 15], 24) == 1
    assert width([5, *[1] * 15], 400) == 5


def test_a_long_run_is_cut_where_it_alone_would_have_the_others_padded() -> None:
    assert width([9, *[3] * 7], 24) == 3


def test_rows_that_follow_no_grammar_hardly_wait_for_others() -> None:
    assert width([5, 1, 1], 24, bystanders=True) == 1
    assert width([5, 1, 1], 600, bystanders=True) == 5
    assert width([9, 1], 300, bystanders=True) == 1 + int(PATIENCE * 302 / 2)


@given(runs=st.lists(st.integers(1, 9), min_size=1, max_size=8), pass_tokens=st.integers(0, 100))
def test_no_other_width_saves_more(runs: list[int], pass_tokens: int) -> None:
    def cost(columns: int) -> float:
        """Of all steps until every row has taken what it knows, by the passes that a row has a part in."""
        rows = len(runs)
        taken = sum(min(run, columns) for run in runs)
        return pass_tokens + rows * columns - taken * (pass_tokens + rows) / rows

    chosen = width(runs, pass_tokens)
    assert all(cost(chosen) <= cost(other) + 1e-9 for other in range(1, 12))
