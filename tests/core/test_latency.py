"""Figures of how long things took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.latency import WINDOW, Latency, LatencyWindow


def of(*seconds: float) -> Latency:
    window = LatencyWindow()
    for value in seconds:
        window.add(value)
    latency = window.read()
    assert latency is not None
    return latency


def test_there_are_no_figures_before_the_first_measurement() -> None:
    assert LatencyWindow().read() is None


def test_one_measurement_is_every_figure() -> None:
    assert of(0.25) == Latency(250.0, 250.0, 250.0, 250.0, 250.0, 250.0)


def test_percentiles_are_values_that_were_measured() -> None:
    latency = of(*(number / 1000 for number in range(100, 0, -1)))
    assert (latency.min, latency.max, latency.mean) == pytest.approx((1, 100, 50.5))
    assert (latency.p50, latency.p95, latency.p99) == pytest.approx((50, 95, 99))


def test_what_is_long_ago_is_forgotten() -> None:
    assert of(1000.0, *[0.001] * WINDOW).max == pytest.approx(1.0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=2 * WINDOW))
def test_the_figures_are_in_order(seconds: list[float]) -> None:
    latency = of(*seconds)
    ordered = [latency.min, latency.p50, latency.p95, latency.p99, latency.max]
    assert ordered == sorted(ordered)
    assert latency.min <= latency.mean * (1 + 1e-9) <= latency.max * (1 + 1e-8)
