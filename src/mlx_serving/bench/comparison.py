"""Two targets under the same load in the same run, as ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlx_serving.bench.figures import RoundFigures, Series
from mlx_serving.core.percentiles import Distribution

_Figure = Callable[[RoundFigures], float | None]


def _of(latency: Callable[[RoundFigures], Distribution | None], value: Callable[[Distribution], float]) -> _Figure:
    def figure(one: RoundFigures) -> float | None:
        distribution = latency(one)
        return None if distribution is None else value(distribution)

    return figure


_COMPARED: Mapping[str, _Figure] = {
    "output_tokens_per_s": lambda one: one.output_tokens_per_s,
    "requests_per_s": lambda one: one.requests_per_s,
    "goodput_per_s": lambda one: one.goodput_per_s,
    "ttft_p50": _of(lambda one: one.latency.ttft_s, lambda found: found.p50),
    "ttft_p99": _of(lambda one: one.latency.ttft_s, lambda found: found.p99),
    "itl_p50": _of(lambda one: one.latency.itl_s, lambda found: found.p50),
    "itl_p99": _of(lambda one: one.latency.itl_s, lambda found: found.p99),
    "e2e_p50": _of(lambda one: one.latency.e2e_s, lambda found: found.p50),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """One target's figure over another's: within each round, and their median."""

    median: float
    rounds: tuple[float, ...]


def compare(first: Series, second: Series) -> Mapping[str, Ratio]:
    """The ratio first / second of each figure that both have in some round. Above 1 is more: better for rates, worse
    for times."""
    ratios: dict[str, Ratio] = {}
    for name, figure in _COMPARED.items():
        pairs = [(figure(one), figure(other)) for one, other in zip(first.rounds, second.rounds, strict=True)]
        rounds = tuple(one / other for one, other in pairs if one is not None and other)
        if rounds:
            ratios[name] = Ratio(statistics.median(rounds), rounds)
    return ratios
