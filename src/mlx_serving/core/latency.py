"""How long things took of late, in the figures that people compare."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil, fsum

WINDOW = 1024


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds. Percentiles are nearest-rank: values that were measured, not between two of them."""

    mean: float
    min: float
    max: float
    p50: float
    p95: float
    p99: float


class LatencyWindow:
    """The last `WINDOW` measurements."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=WINDOW)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def read(self) -> Latency | None:
        """None before the first measurement."""
        values = sorted(seconds * 1000 for seconds in self._seconds)
        if not values:
            return None
        return Latency(
            mean=fsum(values) / len(values),
            min=values[0],
            max=values[-1],
            p50=_percentile(values, 0.50),
            p95=_percentile(values, 0.95),
            p99=_percentile(values, 0.99),
        )


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[ceil(share * len(ordered)) - 1]
