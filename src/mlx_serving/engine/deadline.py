"""A Backend layer that ends a request when its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.errors import DeadlineExceeded


class DeadlineBackend:
    """`default_timeout_s` holds for requests that bring no `timeout_s`; None is no limit."""

    def __init__(self, inner: Backend, default_timeout_s: float | None) -> None:
        self._inner = inner
        self._default_timeout_s = default_timeout_s

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`. Raises `DeadlineExceeded`, at entry or while iterating."""
        timeout_s = request.timeout_s if request.timeout_s is not None else self._default_timeout_s
        # Told on, because nobody here looks at the time while the consumer does not ask for the next delta.
        bounded = replace(request, timeout_s=timeout_s)
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(deadline):
                    deltas = await stack.enter_async_context(self._inner.generate(bounded))
            except TimeoutError:
                raise _exceeded(timeout_s) from None
            yield _until(deltas, deadline, timeout_s)


async def _until(deltas: AsyncIterator[Delta], deadline: float | None, timeout_s: float | None) -> AsyncIterator[Delta]:
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                delta = await anext(deltas)
        except TimeoutError:
            raise _exceeded(timeout_s) from None
        except StopAsyncIteration:
            return
        yield delta


def _exceeded(timeout_s: float | None) -> DeadlineExceeded:
    return DeadlineExceeded(f"The request took longer than {timeout_s:g} s", timeout_s=timeout_s)
