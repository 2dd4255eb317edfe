"""Targets that answer as a test says, and records without a target."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from mlx_serving.bench.records import Answer, Failure, Record
from mlx_serving.bench.target import Count, RequestFailed, TargetFacts
from mlx_serving.bench.workload import Ask


def answered(
    due_s: float, arrivals_s: Sequence[float], *, tokens: int | None = None, ended_s: float | None = None
) -> Record:
    """A request that was sent when it was due. Without `tokens` each arrival is one."""
    ended = ended_s if ended_s is not None else arrivals_s[-1] if arrivals_s else due_s
    output = len(arrivals_s) if tokens is None else tokens
    return Record(due_s, due_s, Answer(tuple(arrivals_s), ended, output, prompt_tokens=10))


def failed(due_s: float, code: str, ended_s: float) -> Record:
    return Record(due_s, due_s, Failure(code, f"it was {code}", ended_s))


class ScriptedTarget:
    """Answers with one word a token; `fails` says which prompts do not. `most` is how many were under way at once."""

    def __init__(
        self,
        name: str = "scripted",
        *,
        count_tokens: Count | None = None,
        fails: Callable[[Ask], bool] = lambda _: False,
        log: list[str] | None = None,
    ) -> None:
        self.about = TargetFacts(name, "a-model", {"device": "none"})
        self.count_tokens = count_tokens
        self._fails = fails
        self._log = log if log is not None else []
        self.asked: list[Ask] = []
        self._running = 0
        self.most = 0

    async def send(self, ask: Ask) -> Answer:
        self.asked.append(ask)
        self._log.append(self.about.name)
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            await asyncio.sleep(0)
        finally:
            self._running -= 1
        if self._fails(ask):
            raise RequestFailed("refused", "this prompt is refused")
        began = asyncio.get_running_loop().time()
        words = len(ask.prompt.split())
        return Answer((began, began + 0.001), began + 0.002, ask.max_tokens, prompt_tokens=2 * words)
