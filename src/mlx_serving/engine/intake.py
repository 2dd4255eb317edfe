"""A Backend layer that refuses what is more than may be under way: the shell around `core.intake`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.core.intake import Intake


class IntakeBackend:
    def __init__(self, inner: Backend, intake: Intake) -> None:
        self._inner = inner
        self._intake = intake

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `Overloaded` at once, before anything is asked of others."""
        self._intake.enter(request.priority, time.monotonic())
        try:
            async with self._inner.generate(request) as deltas:
                yield deltas
        finally:
            self._intake.leave(time.monotonic())
