"""How long a model may be idle, as people say it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.idle_time import FOR_EVER, idle_time
from mlx_serving.errors import InvalidRequest


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (300, 300.0), (0, 0.0), (2.5, 2.5), ("300", 300.0), ("0", 0.0), ("90s", 90.0), ("5m", 300.0),
        (" 1h30m ", 5400.0),
        ("1.5h", 5400.0), ("500ms", 0.5), ("2d", 172_800.0), (-1, FOR_EVER), (-0.5, FOR_EVER), ("-1", FOR_EVER),
        ("-5m", FOR_EVER),
    ],
)  # fmt: skip
def test_times_are_told_in_seconds_or_as_a_text(told: object, seconds: float) -> None:
    assert idle_time(told) == seconds


@pytest.mark.parametrize("told", ["", "soon", "5x", "m", "5 m", "1h 30", True, None, [5], "nan", "inf", float("nan")])
def test_anything_else_is_refused_with_what_was_given(told: object) -> None:
    with pytest.raises(InvalidRequest, match="my_field must be a number of seconds or a text like 30s") as refused:
        idle_time(told, "my_field")
    assert refused.value.details["field"] == "my_field"
    assert repr(told) in refused.value.message


@given(st.floats(0, 1e9, allow_nan=False))
def test_seconds_are_themselves_in_either_form(seconds: float) -> None:
    assert idle_time(seconds) == idle_time(repr(seconds)) == seconds
