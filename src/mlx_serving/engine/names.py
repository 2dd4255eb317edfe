"""A Backend layer that turns the name in a request into a model and what holds under that name.

It does so once, when the request comes: whatever the name means later, the request stays with that model. Unless that
model cannot be had because the name was moved to it too early, and is moved back: then the request was never with it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.engine.aliases import Aliases
from mlx_serving.errors import InvalidRequest, MemoryInUse, ModelLoadError, ModelNotFound


class NamesBackend:
    """`default_max_tokens` is what a request gets of which nobody says anything; `used` hears which models are."""

    def __init__(self, inner: Backend, aliases: Aliases, default_max_tokens: int, used: Callable[[str], None]) -> None:
        self._used = used
        self._inner = inner
        self._aliases = aliases
        self._default_max_tokens = default_max_tokens

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `InvalidRequest` for what the name does not allow."""
        async with AsyncExitStack() as stack:
            while True:
                asked = self._resolved(request)
                try:
                    deltas = await stack.enter_async_context(self._inner.generate(asked))
                    break
                except (ModelLoadError, ModelNotFound, MemoryInUse):
                    await self._aliases.until_settled(request.model)
                    if self._aliases.resolve(request.model)[0] == asked.model:
                        raise
            yield deltas

    def _resolved(self, request: GenerationRequest) -> GenerationRequest:
        model, profile = self._aliases.resolve(request.model)
        asked = replace(profile.applied_to(request, self._default_max_tokens), model=model)
        speculation = self._with_model(asked.speculation)
        if speculation.draft_model is not None:
            self._used(speculation.draft_model)
        self._used(model)
        return replace(asked, speculation=speculation)

    def _with_model(self, asked: Speculation) -> Speculation:
        """The same with what the name of the draft model means; without one that is not served and that nobody insists
        on."""
        if asked.draft_model is None:
            return asked
        try:
            return replace(asked, draft_model=self._aliases.draft_model(asked.draft_model))
        except InvalidRequest:
            if not asked.optional:
                raise
            return asked.without_model()
