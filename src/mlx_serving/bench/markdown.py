"""A report as a Markdown document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from mlx_serving.bench.records import Answer, Record, first_token_s
from mlx_serving.bench.report import Report, prompts_label, warmth
from mlx_serving.bench.table import (
    HEADER,
    Row,
    comparison_header,
    comparison_rows,
    draft_lines,
    objectives_text,
    result_rows,
)


def as_markdown(report: Report, now: datetime | None = None) -> str:
    """`now` dates the report: the present where it is not given."""
    return "\n".join(_lines(report, now or datetime.now(UTC)))


def _lines(report: Report, now: datetime) -> Iterator[str]:
    yield from (f"# mlx-serving bench {report.kind}", "")
    yield from _table(("", ""), _labels(report, now))
    yield from ("", "## Targets", "")
    header = ("target", "model", "runs on", "first request: TTFT, E2E")
    yield from _table(header, _targets(report))
    yield from ("", "## Figures", "")
    yield from _table(HEADER, result_rows(report))
    yield from ("", *_LEGEND, "")
    if lines := [f"- {line}" for line in draft_lines(report)]:
        yield from (*lines, "")
    if report.comparisons:
        first, second = (target.name for target in report.targets)
        yield from (f"## {first} / {second}", "", "Median of the ratios within the rounds, and their range.", "")
        yield from _table(comparison_header(report), comparison_rows(report))
        yield ""


_LEGEND = (
    "Rates are medians of the rounds, times are over the requests of all rounds. TTFT: from when a request was due to",
    "its first text. ITL: between two arrivals of text. TPOT: mean time of a token after the first. E2E: to the end of",
    "the answer. Good requests met the objectives.",
)


def _labels(report: Report, now: datetime) -> Iterator[Row]:
    plan, workload = report.plan, report.plan.workload
    yield "date", f"{now:%Y-%m-%d %H:%M} UTC"
    yield "load", "; ".join(map(str, plan.loads))
    yield "state", warmth(plan)
    yield "rounds", f"{plan.rounds} of {workload.requests} requests" + _turns(report)
    yield "prompts", f"{workload.prompt_tokens} tokens wanted; {prompts_label(report.measured)}"
    yield "answers", f"at most {workload.output_tokens} tokens, {workload.sampling}, {workload.endpoint}"
    yield "objectives", objectives_text(plan.objectives)
    yield "seed", str(workload.seed)
    yield from report.machine.items()


def _turns(report: Report) -> str:
    return ", the targets in turns" if len(report.targets) > 1 else ""


def _targets(report: Report) -> Iterator[Row]:
    for target, first in zip(report.targets, report.measured.first, strict=True):
        facts = ", ".join(f"{name} {value}" for name, value in target.facts.items())
        yield target.name, target.model, facts or "not known", _first(first)


def _first(record: Record) -> str:
    answer = record.outcome
    if not isinstance(answer, Answer):
        return f"failed: {answer.code}"
    ttft = first_token_s(record.due_s, answer)
    shown = "no text" if ttft is None else f"{ttft * 1000:.0f} ms"
    return f"{shown}, {(record.ended_s - record.due_s) * 1000:.0f} ms"


def _table(header: Row, rows: Iterable[Row]) -> Iterator[str]:
    for number, row in enumerate((header, *rows)):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        if number == 0:
            yield "|" + "---|" * len(header)
