"""When requests arrive that nobody coordinates: a Poisson process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import log1p

from mlx_serving.core.bounds import between, greater_than


def poisson_times(uniforms: Iterable[float], rate: float) -> Iterator[float]:
    """Arrival times in seconds from 0, ascending, at `rate` arrivals a second on average: one for each uniform number.

    Gaps are exponential, by inversion: -ln(1 - u) / rate. The same numbers give the same times. Raises ValueError for a
    rate that is not above 0 and for a number outside of [0, 1).
    """
    greater_than("rate", rate, 0)
    now = 0.0
    for uniform in uniforms:
        if uniform == 1:
            raise ValueError("a uniform number must be below 1, got 1")
        between("a uniform number", uniform, 0, 1)
        now -= log1p(-uniform) / rate
        yield now
