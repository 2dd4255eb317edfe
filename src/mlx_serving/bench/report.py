"""All that is known after a measurement, as one value, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, assert_never

from mlx_serving.bench.comparison import Ratio, compare
from mlx_serving.bench.experiment import Measured, Plan
from mlx_serving.bench.figures import RoundFigures, Series, figures_of
from mlx_serving.bench.records import Answer, Failure, Record, first_token_s
from mlx_serving.bench.target import TargetFacts
from mlx_serving.bench.workload import Closed, Load, Open

Kind: TypeAlias = Literal["throughput", "latency"]


@dataclass(frozen=True, slots=True)
class Report:
    """`series[load][target]`; `comparisons[load]` are the ratios of the first target to the second, if there is one."""

    kind: Kind
    machine: Mapping[str, str]
    plan: Plan
    targets: Sequence[TargetFacts]
    measured: Measured
    series: Sequence[Sequence[Series]]
    comparisons: Sequence[Mapping[str, Ratio]]

    def failures(self) -> Mapping[str, Mapping[str, int]]:
        """By target, and by code: of all requests but those that warmed up. Empty when all was answered."""
        counted: dict[str, dict[str, int]] = {}
        for index, target in enumerate(self.targets):
            first = self.measured.first[index].outcome
            codes = {first.code: 1} if isinstance(first, Failure) else {}
            for series in self.series:
                for code, count in series[index].failed.items():
                    codes[code] = codes.get(code, 0) + count
            if codes:
                counted[target.name] = codes
        return counted

    def failure_examples(self) -> Mapping[str, str]:
        """For each code of a failure what the first one said."""
        records = (record for load in self.measured.records for rounds in load for one in rounds for record in one)
        examples: dict[str, str] = {}
        for record in (*self.measured.first, *records):
            if isinstance(record.outcome, Failure):
                examples.setdefault(record.outcome.code, record.outcome.message)
        return examples


def report_of(
    kind: Kind, machine: Mapping[str, str], targets: Sequence[TargetFacts], plan: Plan, measured: Measured
) -> Report:
    series = [[figures_of(rounds, plan.objectives) for rounds in per_target] for per_target in measured.records]
    comparisons = [compare(each[0], each[1]) for each in series if len(each) == 2]
    return Report(kind, machine, plan, targets, measured, series, comparisons)


def warmth(plan: Plan) -> str:
    """The label that says what the figures were preceded by."""
    return f"warm ({plan.warmup} requests before, not counted)" if plan.warmup else "cold (nothing warmed it up)"


def prompts_label(measured: Measured) -> str:
    if measured.exact_prompts:
        return "random words, cut to length by the engine's tokenizer, no prompt twice"
    return "random words, about as many as make the length, no prompt twice"


def as_json(report: Report) -> dict[str, object]:
    """Ready for `json`; names of times end in `_s` (seconds), of rates in `_per_s`."""
    plan = report.plan
    return {
        "benchmark": report.kind,
        "machine": dict(report.machine),
        "workload": asdict(plan.workload),
        "prompts": prompts_label(report.measured),
        "state": warmth(plan),
        "rounds": plan.rounds,
        "timeout_s": plan.timeout_s,
        "objectives": asdict(plan.objectives),
        "targets": [
            {"name": one.name, "model": one.model, "facts": dict(one.facts), "first_request": _first(first)}
            for one, first in zip(report.targets, report.measured.first, strict=True)
        ],
        "results": [
            {"target": target.name, "load": _load(load), **_series(series)}
            for load, per_target in zip(plan.loads, report.series, strict=True)
            for target, series in zip(report.targets, per_target, strict=True)
        ],
        "comparisons": [
            {
                "load": _load(load),
                "ratio_of": [target.name for target in report.targets],
                "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
            }
            for load, ratios in zip(plan.loads, report.comparisons, strict=False)  # there are none without a second
        ],
        "failures": {name: dict(codes) for name, codes in report.failures().items()},
    }


def _load(load: Load) -> dict[str, object]:
    match load:
        case Closed():
            return {"kind": "closed loop", "concurrency": load.concurrency}
        case Open():
            return {"kind": "open loop, Poisson arrivals", "requests_per_s": load.rate}
        case _:
            assert_never(load)


def _first(record: Record) -> dict[str, object]:
    match record.outcome:
        case Answer():
            return {
                "ttft_s": first_token_s(record.due_s, record.outcome),
                "e2e_s": record.ended_s - record.due_s,
                "prompt_tokens": record.outcome.prompt_tokens,
                "output_tokens": record.outcome.output_tokens,
            }
        case Failure():
            return {"failed": record.outcome.code, "message": record.outcome.message}
        case _:
            assert_never(record.outcome)


def _series(series: Series) -> dict[str, object]:
    return {
        **_rates(series),
        **asdict(series.latency),
        "prompt_tokens": None if series.prompt_tokens is None else asdict(series.prompt_tokens),
        "output_tokens": None if series.output_tokens is None else asdict(series.output_tokens),
        "tokens_counted_by": "the target" if series.counted else "pieces of text",
        "tokens_per_arrival": series.tokens_per_arrival,
        "drafted_tokens": series.drafted_tokens,
        "accepted_tokens": series.accepted_tokens,
        "sent_late_by_at_most_s": series.late_s,
        "failed": dict(series.failed),
        "rounds": [
            {
                "duration_s": one.duration_s,
                "answered": one.answered,
                "met_objectives": one.good,
                "failed": dict(one.failed),
                **_rates(one),
                **asdict(one.latency),
            }
            for one in series.rounds
        ],
    }


def _rates(one: Series | RoundFigures) -> dict[str, object]:
    return {
        "output_tokens_per_s": one.output_tokens_per_s,
        "total_tokens_per_s": one.total_tokens_per_s,
        "requests_per_s": one.requests_per_s,
        "goodput_per_s": one.goodput_per_s,
    }
