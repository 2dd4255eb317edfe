"""A Backend that does what a test says, for the layers above the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mlx_serving.core.generation import Delta, FinishReason, GenerationRequest, SamplingParams, TextPrompt

from ..event_log import until

WHOLE = (Delta("a", (1,)), Delta("b", (2,)), Delta("", (), FinishReason.STOP))


@dataclass(slots=True)
class Script:
    """One call: `at_entry` or `after` may raise; a gate holds it until a test opens it, and then comes `last`."""

    at_entry: BaseException | None = None
    deltas: Sequence[Delta] = WHOLE
    after: BaseException | None = None
    entry_gate: asyncio.Event | None = None
    delta_gate: asyncio.Event | None = None
    last: Delta | None = None


@dataclass(slots=True)
class ScriptedBackend:
    """Plays `scripts` in order, the last one again and again."""

    scripts: list[Script] = field(default_factory=lambda: [Script()])
    requests: list[GenerationRequest] = field(default_factory=list[GenerationRequest])
    open: int = 0
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.requests.append(request)
        self.open += 1
        try:
            if script.entry_gate is not None:
                await script.entry_gate.wait()
            if script.at_entry is not None:
                raise script.at_entry
            self.entered.set()
            yield self._deltas(script)
        finally:
            self.open -= 1

    async def asked(self, count: int) -> None:
        """Until so many requests have come."""

        async def enough() -> bool:
            return len(self.requests) >= count

        await until(enough)

    async def _deltas(self, script: Script) -> AsyncIterator[Delta]:
        for delta in script.deltas:
            yield delta
        if script.delta_gate is not None:
            await script.delta_gate.wait()
        if script.after is not None:
            raise script.after
        if script.last is not None:
            yield script.last


def request(*, max_tokens: int | None = None, timeout_s: float | None = None) -> GenerationRequest:
    return GenerationRequest("r", "m", TextPrompt("Hi"), SamplingParams(max_tokens=max_tokens), timeout_s=timeout_s)
