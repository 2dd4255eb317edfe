"""From records to figures. Times are in seconds, rates a second; what could not be measured is None."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mlx_serving.bench.records import Failure, Record, answers, first_token_s, gaps_s, per_output_token_s
from mlx_serving.core.bounds import greater_than
from mlx_serving.core.percentiles import Distribution, describe

_TICK_S = 1e-9  # where everything failed at once, a rate is still a number


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a good answer keeps: time to the first token, mean time of each later token, time of the whole answer.

    None is no objective. The defaults are those of MLPerf Inference's server scenario for a large chat model.
    """

    ttft_s: float | None = 2.0
    tpot_s: float | None = 0.2
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            value: float | None = getattr(self, name)
            if value is not None:
                greater_than(name, value, 0)

    def met(self, record: Record) -> bool:
        """A failed request meets none, and what has no such time meets its objective."""
        answer = record.outcome
        if isinstance(answer, Failure):
            return False
        measured = (first_token_s(record.due_s, answer), per_output_token_s(answer), answer.ended_s - record.due_s)
        limits = (self.ttft_s, self.tpot_s, self.e2e_s)
        return all(
            limit is None or value is None or value <= limit for value, limit in zip(measured, limits, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """`ttft_s`: to the first text; `itl_s`: between two arrivals of text; `tpot_s`: mean of a token after the first,
    one an answer; `e2e_s`: to the end of the answer. All from when a request was due."""

    ttft_s: Distribution | None
    itl_s: Distribution | None
    tpot_s: Distribution | None
    e2e_s: Distribution | None


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round of one target. `failed` counts by code, `good` the answers that met the objectives."""

    duration_s: float
    answered: int
    good: int
    failed: Mapping[str, int]
    prompt_tokens: int
    output_tokens: int
    latency: Latency

    @property
    def requests_per_s(self) -> float:
        return self.answered / self.duration_s

    @property
    def goodput_per_s(self) -> float:
        """Answers that met the objectives, a second (Zhong et al., "DistServe", OSDI 2024)."""
        return self.good / self.duration_s

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.duration_s

    @property
    def total_tokens_per_s(self) -> float:
        return (self.prompt_tokens + self.output_tokens) / self.duration_s


@dataclass(frozen=True, slots=True)
class Series:
    """All rounds of one target under one load. `latency` is over the requests of all rounds; rates are medians of the
    rounds. `prompt_tokens` as the target counts them; `counted` says that it did, `late_s` how late we sent. Of all
    tokens `accepted_tokens` were drafted before, out of `drafted_tokens`."""

    rounds: Sequence[RoundFigures]
    latency: Latency
    prompt_tokens: Distribution | None
    output_tokens: Distribution | None
    tokens_per_arrival: float | None
    late_s: float
    counted: bool
    failed: Mapping[str, int] = field(default_factory=dict[str, int])
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def requests_per_s(self) -> float:
        return statistics.median(one.requests_per_s for one in self.rounds)

    @property
    def goodput_per_s(self) -> float:
        return statistics.median(one.goodput_per_s for one in self.rounds)

    @property
    def output_tokens_per_s(self) -> float:
        return statistics.median(one.output_tokens_per_s for one in self.rounds)

    @property
    def total_tokens_per_s(self) -> float:
        return statistics.median(one.total_tokens_per_s for one in self.rounds)


def figures_of(rounds: Sequence[Sequence[Record]], objectives: Objectives) -> Series:
    """The records of each round -> figures."""
    everything = [record for records in rounds for record in records]
    answered = [answer for _, answer in answers(everything)]
    arrivals = sum(len(answer.arrivals_s) for answer in answered)
    output = [answer.output_tokens for answer in answered]
    return Series(
        rounds=tuple(_round(records, objectives) for records in rounds),
        latency=_latency(everything),
        prompt_tokens=describe(answer.prompt_tokens for answer in answered if answer.prompt_tokens is not None),
        output_tokens=describe(output),
        tokens_per_arrival=sum(output) / arrivals if arrivals else None,
        late_s=max(record.sent_s - record.due_s for record in everything),
        counted=all(answer.counted for answer in answered),
        failed=_failures(everything),
        drafted_tokens=sum(answer.drafted_tokens for answer in answered),
        accepted_tokens=sum(answer.accepted_tokens for answer in answered),
    )


def _round(records: Sequence[Record], objectives: Objectives) -> RoundFigures:
    answered = [answer for _, answer in answers(records)]
    return RoundFigures(
        duration_s=max(max(one.ended_s for one in records) - min(one.due_s for one in records), _TICK_S),
        answered=len(answered),
        good=sum(objectives.met(record) for record in records),
        failed=_failures(records),
        prompt_tokens=sum(answer.prompt_tokens or 0 for answer in answered),
        output_tokens=sum(answer.output_tokens for answer in answered),
        latency=_latency(records),
    )


def _latency(records: Sequence[Record]) -> Latency:
    pairs = answers(records)
    return Latency(
        ttft_s=describe(_known(first_token_s(record.due_s, answer) for record, answer in pairs)),
        itl_s=describe(gap for _, answer in pairs for gap in gaps_s(answer)),
        tpot_s=describe(_known(per_output_token_s(answer) for _, answer in pairs)),
        e2e_s=describe(answer.ended_s - record.due_s for record, answer in pairs),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _failures(records: Sequence[Record]) -> Mapping[str, int]:
    counted = Counter(record.outcome.code for record in records if isinstance(record.outcome, Failure))
    return dict(counted.most_common())
