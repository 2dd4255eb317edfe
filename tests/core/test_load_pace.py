from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.load_pace import LoadPace


def test_slices_take_as_long_as_they_may() -> None:
    pace = LoadPace(0.05)
    first = pace.slice_bytes
    assert first == 4 << 20
    pace.note(first, first / 1e9)  # a gigabyte a second
    assert pace.slice_bytes == pytest.approx(50e6, rel=0.01)


def test_a_slow_slice_makes_the_next_one_smaller() -> None:
    pace = LoadPace(0.05)
    pace.note(1000, 0.001)
    before = pace.slice_bytes
    pace.note(1000, 0.1)
    assert pace.slice_bytes < before / 10


def test_a_slice_of_no_bytes_says_nothing() -> None:
    pace = LoadPace(0.05)
    pace.note(0, 1.0)
    assert pace.slice_bytes == 4 << 20


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="budget_s must be greater than 0"):
        LoadPace(0)


@given(slices=st.lists(st.tuples(st.integers(0, 1 << 40), st.floats(0, 1e6))))
def test_there_is_always_a_next_slice(slices: list[tuple[int, float]]) -> None:
    pace = LoadPace(0.05)
    for size, seconds in slices:
        pace.note(size, seconds)
        assert pace.slice_bytes >= 1
