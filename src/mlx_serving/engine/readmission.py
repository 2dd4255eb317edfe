"""A Backend layer that offers a request again when the worker died before it had accepted it.

Nothing was delivered yet, so nobody can tell the difference; the new attempt waits for the next worker and its models.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from mlx_serving.core import retry
from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.core.retry import RetryPolicy
from mlx_serving.errors import WorkerDied


class ReadmissionBackend:
    def __init__(self, inner: Backend, policy: RetryPolicy) -> None:
        self._inner = inner
        self._policy = policy

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`."""
        async with AsyncExitStack() as stack:
            yield await self._enter(stack, request)

    async def _enter(self, stack: AsyncExitStack, request: GenerationRequest) -> AsyncIterator[Delta]:
        attempt = 0
        while True:
            try:
                return await stack.enter_async_context(self._inner.generate(request))
            except WorkerDied as error:
                if not retry.should_retry(error, attempt, self._policy):
                    raise
            await asyncio.sleep(retry.delay(self._policy.backoff, attempt, random.random()))  # noqa: S311  jitter
            attempt += 1
