"""A Backend layer that turns the name of a served model into a loaded model, and holds it while it is used."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.engine.model_manager import ModelManager


class ResidencyBackend:
    def __init__(self, inner: Backend, models: ModelManager) -> None:
        self._inner = inner
        self._models = models

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `ModelNotFound` and `ModelLoadError`, too."""
        async with (
            self._models.lease(request.model) as facts,
            self._inner.generate(replace(request, model=facts.model_id)) as deltas,
        ):
            yield deltas
