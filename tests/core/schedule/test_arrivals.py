from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.schedule.arrivals import poisson_times


def test_gaps_are_the_inverse_of_the_exponential_distribution() -> None:
    times = list(poisson_times([0.0, 0.5, 1 - math.exp(-1)], rate=2.0))
    assert times == pytest.approx([0.0, math.log(2) / 2, math.log(2) / 2 + 0.5])


def test_the_mean_and_the_spread_of_the_gaps_are_those_of_the_rate() -> None:
    random = Random(1)
    times = list(poisson_times((random.random() for _ in range(20_000)), rate=5.0))
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(0.2, rel=0.03)
    assert spread == pytest.approx(0.2, rel=0.03)


@given(st.lists(st.floats(0, 1, exclude_max=True)), st.floats(0.001, 1000))
def test_times_ascend_one_for_each_number(uniforms: list[float], rate: float) -> None:
    times = list(poisson_times(uniforms, rate))
    assert len(times) == len(uniforms)
    assert times == sorted(times)
    assert all(math.isfinite(time) for time in times)
    assert times == list(poisson_times(uniforms, rate))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_must_be_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be (a finite number )?greater than 0"):
        list(poisson_times([0.5], rate))


@pytest.mark.parametrize("uniform", [1.0, 1.5, -0.1])
def test_a_number_outside_of_the_unit_interval_is_refused(uniform: float) -> None:
    with pytest.raises(ValueError, match="a uniform number must be"):
        list(poisson_times([uniform], 1.0))
