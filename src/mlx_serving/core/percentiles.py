"""Exact percentiles: of the sample itself, without sketches or bins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor

from mlx_serving.core.bounds import between


@dataclass(frozen=True, slots=True)
class Distribution:
    """A sample in a few numbers, all but `count` in the unit of the sample."""

    count: int
    mean: float
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` (0 to 100) of an ascending sample lies, linear between the two nearest ranks.

    Definition 7 of Hyndman and Fan, "Sample quantiles in statistical packages" (1996), which numpy uses by default.
    Raises ValueError for an empty sample and for a percentage out of range.
    """
    between("percent", percent, 0, 100)
    if not ordered:
        raise ValueError("an empty sample has no percentiles")
    rank = (len(ordered) - 1) * percent / 100
    below = floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def describe(sample: Iterable[float]) -> Distribution | None:
    """None for an empty sample."""
    ordered = sorted(sample)
    if not ordered:
        return None
    return Distribution(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        minimum=ordered[0],
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        maximum=ordered[-1],
    )
