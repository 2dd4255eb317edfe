"""A report as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_serving.bench.figures import Series
from mlx_serving.bench.records import Record, answers, first_token_s, gaps_s
from mlx_serving.bench.report import Report
from mlx_serving.bench.workload import Closed
from mlx_serving.errors import InvalidRequest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_INCHES = (11.0, 4.5)
_DOTS_PER_INCH = 120


def require_matplotlib() -> None:
    """Raises `InvalidRequest` that names the extra, before anything is measured in vain."""
    if find_spec("matplotlib") is None:
        raise InvalidRequest(
            "--plot needs matplotlib, which is not installed: pip install 'mlx-serving[bench]'", field="plot"
        )


def write_plot(report: Report, path: Path) -> None:
    """Write a PNG: rates and times over the load where there are several loads, else how the times are distributed.

    Raises OSError when it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    left, right = figure.subplots(1, 2)
    title = f"mlx-serving bench {report.kind}"
    [load, *others] = report.plan.loads
    if others:
        _over_load(report, left, "output tokens/s", {"": lambda one: one.output_tokens_per_s})
        _over_load(report, right, "time to the first token (ms)", {"p50": _first_p50, "p99": _first_p99})
    else:
        title += f", {load}"
        _distribution(report, left, "time to the first token (ms)", _first_times)
        _distribution(report, right, "time between arrivals of text (ms)", _gaps)
    figure.suptitle(title)
    figure.savefig(path, format="png", dpi=_DOTS_PER_INCH)


def _over_load(report: Report, axes: Axes, label: str, curves: dict[str, Callable[[Series], float]]) -> None:
    loads = [load.concurrency if isinstance(load, Closed) else load.rate for load in report.plan.loads]
    for index, target in enumerate(report.targets):
        for name, figure in curves.items():
            values = [figure(per_target[index]) for per_target in report.series]
            style = "--" if name == "p99" else "-"
            axes.plot(loads, values, style, marker="o", color=f"C{index}", label=f"{target.name} {name}".strip())
    axes.set(xlabel="concurrent requests" if report.kind == "throughput" else "requests/s", ylabel=label)
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(visible=True, alpha=0.3)


def _distribution(
    report: Report, axes: Axes, label: str, sample: Callable[[Sequence[Record]], Iterator[float]]
) -> None:
    """Which share of the sample is at most so large. Without a sample there is no curve."""
    for target, rounds in zip(report.targets, report.measured.records[0], strict=True):
        milliseconds = [value * 1000 for records in rounds for value in sample(records)]
        if milliseconds:
            axes.ecdf(milliseconds, label=target.name)
    axes.set(xlabel=label, ylabel="share of the sample")
    if axes.lines:
        axes.set_xscale("log")  # one long gap would squeeze all others into a line
        axes.legend(loc="lower right")
    axes.grid(visible=True, alpha=0.3)


def _first_times(records: Sequence[Record]) -> Iterator[float]:
    for record, answer in answers(records):
        first = first_token_s(record.due_s, answer)
        if first is not None:
            yield first


def _gaps(records: Sequence[Record]) -> Iterator[float]:
    for _, answer in answers(records):
        yield from gaps_s(answer)


def _first_p50(one: Series) -> float:
    return float("nan") if one.latency.ttft_s is None else one.latency.ttft_s.p50 * 1000


def _first_p99(one: Series) -> float:
    return float("nan") if one.latency.ttft_s is None else one.latency.ttft_s.p99 * 1000
