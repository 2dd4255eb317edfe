"""The course of a measurement: warm up, then rounds in which the targets take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlx_serving.bench.figures import Objectives
from mlx_serving.bench.load import Generator
from mlx_serving.bench.prompts import WORDS_PER_TOKEN, make_prompts
from mlx_serving.bench.records import Answer, Record
from mlx_serving.bench.target import Target
from mlx_serving.bench.workload import Closed, Load, Workload, asks_of
from mlx_serving.core.bounds import at_least, greater_than

OnProgress = Callable[[str, int, int], object]
"""Called with what is being measured, and how many of how many requests are over."""

_WARM_UP_CONCURRENCY = 4  # under open load


@dataclass(frozen=True, slots=True)
class Plan:
    """Each of `loads` is applied `rounds` times to each target, after `warmup` requests to it that do not count.

    A request that takes longer than `timeout_s` seconds fails.
    """

    workload: Workload
    loads: tuple[Load, ...]
    rounds: int = 1
    warmup: int = 8
    timeout_s: float = 600.0
    objectives: Objectives = field(default_factory=Objectives)

    def __post_init__(self) -> None:
        if not self.loads:
            raise ValueError("loads must name at least one")
        at_least("rounds", self.rounds, 1)
        at_least("warmup", self.warmup, 0)
        greater_than("timeout_s", self.timeout_s, 0)


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of a plan. `first` is the very first request to each target: a cold one, where nothing warmed it.

    `records[load][target][round]` are those of one round. `exact_prompts`: a tokenizer cut the prompts to length; else
    they have as many words as the first answer said would do.
    """

    first: Sequence[Record]
    records: Sequence[Sequence[Sequence[Sequence[Record]]]]
    exact_prompts: bool


async def measure(
    targets: Sequence[Target], plan: Plan, on_progress: OnProgress = lambda what, done, total: None
) -> Measured:
    return await _Course(targets, plan, on_progress).run()


class _Course:
    def __init__(self, targets: Sequence[Target], plan: Plan, on_progress: OnProgress) -> None:
        self._targets = targets
        self._plan = plan
        self._on_progress = on_progress
        self._what = ""
        self._done = 0
        each = 1 + len(plan.loads) * (plan.warmup + plan.rounds * plan.workload.requests)
        self._total = each * len(targets)
        self._generators = [Generator(one, timeout_s=plan.timeout_s, on_done=self._count) for one in targets]
        self._count_tokens = next((one.count_tokens for one in targets if one.count_tokens is not None), None)
        self._words_per_token = WORDS_PER_TOKEN

    async def run(self) -> Measured:
        first = [await self._first(index) for index in range(len(self._targets))]
        self._calibrate(first[0])
        records = [await self._load(index, load) for index, load in enumerate(self._plan.loads)]
        return Measured(first, records, exact_prompts=self._count_tokens is not None)

    async def _first(self, index: int) -> Record:
        self._tell(index, "first request")
        workload = self._plan.workload
        [ask] = asks_of(workload, await self._prompts(1, "first"))
        return await self._generators[index].send(ask)

    def _calibrate(self, first: Record) -> None:
        if isinstance(first.outcome, Answer) and first.outcome.prompt_tokens:
            words = max(1, round(self._plan.workload.prompt_tokens * WORDS_PER_TOKEN))
            self._words_per_token = words / first.outcome.prompt_tokens

    async def _load(self, number: int, load: Load) -> list[list[list[Record]]]:
        plan = self._plan
        order = list(range(len(self._targets)))
        warm = load if isinstance(load, Closed) else Closed(_WARM_UP_CONCURRENCY)
        if plan.warmup:
            asks = asks_of(plan.workload, await self._prompts(plan.warmup, f"{number}/warm"))
            for index in order:
                self._tell(index, f"warming up, {load}")
                await self._generators[index].run(asks, warm, 0)
        records: list[list[list[Record]]] = [[] for _ in order]
        for turn in range(plan.rounds):
            asks = asks_of(plan.workload, await self._prompts(plan.workload.requests, f"{number}/{turn}"))
            # Who comes first takes turns, too: a machine that grows warm or busy must not favour one of them.
            for index in order if turn % 2 == 0 else reversed(order):
                self._tell(index, f"{load}, round {turn + 1} of {plan.rounds}")
                records[index].append(await self._generators[index].run(asks, load, plan.workload.seed + turn))
        return records

    async def _prompts(self, count: int, part: str) -> list[str]:
        workload = self._plan.workload
        return await make_prompts(
            count,
            workload.prompt_tokens,
            f"{workload.seed}/{part}",
            count_tokens=self._count_tokens,
            words_per_token=self._words_per_token,
        )

    def _tell(self, index: int, what: str) -> None:
        self._what = f"{self._targets[index].about.name}: {what}"
        self._on_progress(self._what, self._done, self._total)

    def _count(self) -> None:
        self._done += 1
        self._on_progress(self._what, self._done, self._total)
