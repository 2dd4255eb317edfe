"""A scheduler that tests drive by hand."""

from typing import Any

from mlx_serving.core.schedule.scheduling import SchedulerPolicy, Step
from mlx_serving.core.scheduler import Scheduler


class Bench:
    """A scheduler whose every step takes `step_s` (10 ms)."""

    def __init__(self, policy: SchedulerPolicy | None = None, *, batchable: bool = True, kv: int = 1) -> None:
        self.scheduler = Scheduler(policy or SchedulerPolicy())
        self.scheduler.add_model("m", kv_bytes_per_token=kv, batchable=batchable)
        self.now = 100.0
        self.step_s = 0.01

    def add(self, name: str, prompt: int = 10, max_tokens: int = 100, *, model: str = "m", **how: Any) -> None:
        self.scheduler.add(name, model, prompt_tokens=prompt, max_tokens=max_tokens, now=self.now, **how)

    def step(self, *finished: str) -> Step:
        step = self.scheduler.schedule(self.now)
        assert step is not None
        self.now += self.step_s
        self.scheduler.update(step, self.step_s, finished)
        return step

    def steps(self, count: int) -> list[Step]:
        return [self.step() for _ in range(count)]


def only(**policy: Any) -> Bench:
    return Bench(SchedulerPolicy(**policy))
