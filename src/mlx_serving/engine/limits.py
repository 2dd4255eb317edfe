"""A Backend layer that refuses what the operator does not allow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.errors import InvalidRequest


class LimitsBackend:
    def __init__(self, inner: Backend, max_tokens_limit: int) -> None:
        self._inner = inner
        self._max_tokens_limit = max_tokens_limit

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `InvalidRequest` for a `max_tokens` or `min_tokens` above the limit."""
        if request.cut_to_fit and (request.sampling.max_tokens or 0) > self._max_tokens_limit:
            request = replace(request, sampling=replace(request.sampling, max_tokens=self._max_tokens_limit))
        for name, asked in (("max_tokens", request.sampling.max_tokens), ("min_tokens", request.sampling.min_tokens)):
            if asked is not None and asked > self._max_tokens_limit:
                raise InvalidRequest(
                    f"{name} must be at most {self._max_tokens_limit} here, got {asked}",
                    field=name,
                    limit=self._max_tokens_limit,
                    given=asked,
                )
        async with self._inner.generate(request) as deltas:
            yield deltas
