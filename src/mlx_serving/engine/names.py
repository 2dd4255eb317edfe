"""A Backend layer that turns the name in a request into a model and what holds under that name.

It does so once, when the request comes: whatever the name means later, the request stays with that model.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.engine.aliases import Aliases


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
        model, profile = self._aliases.resolve(request.model)
        asked = replace(profile.applied_to(request, self._default_max_tokens), model=model)
        if (draft := asked.speculation.draft_model) is not None:
            meant = self._aliases.draft_model(draft)
            asked = replace(asked, speculation=replace(asked.speculation, draft_model=meant))
            self._used(meant)
        self._used(model)
        async with self._inner.generate(asked) as deltas:
            yield deltas
