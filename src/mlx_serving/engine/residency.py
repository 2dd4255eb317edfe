"""A Backend layer that turns the names of served models into loaded models, and holds them while they are used.

A request that the worker refuses for want of memory for its KV cache is tried again when models that nobody uses have
gone for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.engine.model_manager import ModelManager
from mlx_serving.errors import ContextLengthExceeded, InvalidRequest, ModelError, NotFound, Overloaded


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
            while True:
                try:
                    deltas = await held.enter_async_context(self._inner.generate(known))
                    break
                except (Overloaded, ContextLengthExceeded) as error:
                    if not await self._models.make_room_for(request.model, error):
                        raise
            yield deltas

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
            return asked.without_model()
        return replace(asked, draft_model=facts.model_id)
