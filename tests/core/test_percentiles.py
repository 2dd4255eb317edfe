from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.percentiles import Distribution, describe, percentile

SAMPLES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 10.0), (25, 20.0), (50, 30.0), (90, 46.0), (99, 49.6), (100, 50.0), (12.5, 15.0)]
)
def test_between_two_ranks_it_is_linear(percent: float, value: float) -> None:
    assert percentile([10.0, 20.0, 30.0, 40.0, 50.0], percent) == pytest.approx(value)


def test_one_value_is_all_its_percentiles() -> None:
    assert [percentile([7.0], percent) for percent in (0, 50, 99, 100)] == [7.0] * 4


@pytest.mark.parametrize("percent", [-0.1, 100.1, float("nan")])
def test_a_percentage_out_of_range_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent must be between 0 and 100"):
        percentile([1.0], percent)


def test_nothing_has_no_percentiles() -> None:
    with pytest.raises(ValueError, match="empty"):
        percentile([], 50)
    assert describe([]) is None


def test_a_sample_is_described_in_whatever_order_it_comes() -> None:
    described = describe(float(value) for value in reversed(range(101)))
    assert described == Distribution(
        count=101, mean=50.0, minimum=0.0, p50=50.0, p90=90.0, p95=95.0, p99=99.0, maximum=100.0
    )


@given(SAMPLES)
def test_it_agrees_with_the_standard_library_and_stays_within_the_sample(sample: list[float]) -> None:
    found = describe(sample)
    assert found is not None
    assert found.p50 == pytest.approx(statistics.median(sample), abs=1e-6)
    ascending = [found.minimum, found.p50, found.p90, found.p95, found.p99, found.maximum]
    assert all(low <= high + 1e-6 for low, high in pairwise(ascending))
    if len(sample) > 1:
        cuts = statistics.quantiles(sample, n=100, method="inclusive")
        assert (found.p90, found.p99) == (pytest.approx(cuts[89], abs=1e-6), pytest.approx(cuts[98], abs=1e-6))
