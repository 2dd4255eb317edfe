"""A report as rows of text, for a terminal and for Markdown. Every column names its unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mlx_serving.bench.figures import Objectives, Series
from mlx_serving.bench.report import Report
from mlx_serving.core.percentiles import Distribution

Row = Sequence[str]

_RATES = ("output tokens/s", "requests/s", "good requests/s")
_TIMES = ("TTFT", "ITL", "TPOT", "E2E")
HEADER: Row = ("target", "load", *_RATES, *(f"{name} ms p50/p90/p95/p99" for name in _TIMES), "failed")

_UNKNOWN = "-"
_NAMES: Mapping[str, str] = {
    "output_tokens_per_s": "output tokens/s",
    "requests_per_s": "requests/s",
    "goodput_per_s": "good requests/s",
    "ttft_p50": "TTFT p50",
    "ttft_p99": "TTFT p99",
    "itl_p50": "ITL p50",
    "itl_p99": "ITL p99",
    "e2e_p50": "E2E p50",
}


def result_rows(report: Report) -> Iterator[Row]:
    """One for each load and target, under `HEADER`."""
    for load, per_target in zip(report.plan.loads, report.series, strict=True):
        for target, series in zip(report.targets, per_target, strict=True):
            yield (target.name, str(load), *_cells(series))


def draft_lines(report: Report) -> Iterator[str]:
    """What became of drafted tokens, for each load and target that tells of any."""
    for load, per_target in zip(report.plan.loads, report.series, strict=True):
        for target, series in zip(report.targets, per_target, strict=True):
            if series.drafted_tokens:
                accepted, drafted = series.accepted_tokens, series.drafted_tokens
                part = f"{accepted} of {drafted} drafted tokens were right ({accepted / drafted:.0%})"
                yield f"{target.name} at {load}: {part}"


def comparison_header(report: Report) -> Row:
    return ("figure", *(f"at {load}" for load in report.plan.loads))


def comparison_rows(report: Report) -> Iterator[Row]:
    """One for each figure: the ratio of the first target to the second, and its range over the rounds."""
    for name, shown in _NAMES.items():
        cells: list[str] = []
        for ratios in report.comparisons:
            ratio = ratios.get(name)
            spread = "" if ratio is None else f" ({min(ratio.rounds):.2f} to {max(ratio.rounds):.2f})"
            cells.append(_UNKNOWN if ratio is None else f"{ratio.median:.2f}{spread}")
        yield (shown, *cells)


def objectives_text(objectives: Objectives) -> str:
    limits = {"TTFT": objectives.ttft_s, "TPOT": objectives.tpot_s, "E2E": objectives.e2e_s}
    kept = [f"{name} at most {limit * 1000:g} ms" for name, limit in limits.items() if limit is not None]
    return " and ".join(kept) or "none: every answer is good"


def _cells(series: Series) -> Row:
    rates = (series.output_tokens_per_s, series.requests_per_s, series.goodput_per_s)
    latency = series.latency
    times = (latency.ttft_s, latency.itl_s, latency.tpot_s, latency.e2e_s)
    failed = ", ".join(f"{count} {code}" for code, count in series.failed.items())
    return (*map(_number, rates), *map(_milliseconds, times), failed or "0")


def _milliseconds(found: Distribution | None) -> str:
    if found is None:
        return _UNKNOWN
    return " / ".join(_number(value * 1000) for value in (found.p50, found.p90, found.p95, found.p99))


def _number(value: float) -> str:
    """Three digits that say something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
