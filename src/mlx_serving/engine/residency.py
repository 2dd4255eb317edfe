"""A Backend layer that turns the names of served models into loaded models, and holds them while they are used."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from mlx_serving.core.generation import Backend, Delta, GenerationRequest, Speculation
from mlx_serving.engine.model_manager import ModelManager
from mlx_serving.errors import InvalidRequest, ModelError, NotFound


class ResidencyBackend:
    def __init__(self, inner: Backend, models: ModelManager) -> None:
        self._inner = inner
        self._models = models

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `ModelNotFound` and `ModelLoadError`, too."""
        async with AsyncExitStack() as held:
            facts = await held.enter_async_context(self._models.lease(request.model))
            speculation = await self._with_draft(request.speculation, held)
            known = replace(request, model=facts.model_id, speculation=speculation)
            yield await held.enter_async_context(self._inner.generate(known))

    async def _with_draft(self, asked: Speculation, held: AsyncExitStack) -> Speculation:
        """The same with the name that the worker knows the draft model by, which is held as well."""
        if asked.draft_model is None:
            return asked
        try:
            # Who drafts makes a stream faster; no other stream is made to wait for that.
            facts = await held.enter_async_context(self._models.lease(asked.draft_model, modest=True))
        except (ModelError, NotFound, InvalidRequest):
            if not asked.optional:
                raise
            return replace(asked, method="auto", draft_model=None)
        return replace(asked, draft_model=facts.model_id)
