"""A Backend layer that ends a request when its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Self

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
        if timeout_s is None:
            async with self._inner.generate(bounded) as deltas:
                yield deltas
            return
        deadline = asyncio.get_running_loop().time() + timeout_s
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(deadline):
                    deltas = await stack.enter_async_context(self._inner.generate(bounded))
            except TimeoutError:
                raise _exceeded(timeout_s) from None
            until = _Until(deltas, deadline, timeout_s)
            stack.callback(until.close)
            yield until


class _Until:
    """What `asyncio.timeout_at` around every delta would do, with one timer for all of them."""

    def __init__(self, deltas: AsyncIterator[Delta], deadline: float, timeout_s: float) -> None:
        self._deltas = deltas
        self._timeout_s = timeout_s
        self._over = False
        self._waiting: asyncio.Task[object] | None = None
        self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def close(self) -> None:
        self._timer.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        if self._over:  # what is there already is still handed out
            asyncio.get_running_loop().call_soon(self._expire)
        self._waiting = task
        try:
            return await anext(self._deltas)
        except asyncio.CancelledError:
            # Somebody else may have cancelled the task as well: that one's cancellation goes on.
            if self._over and task.uncancel() <= cancelling:
                raise _exceeded(self._timeout_s) from None
            raise
        finally:
            self._waiting = None

    def _expire(self) -> None:
        self._over = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()


def _exceeded(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"The request took longer than {timeout_s:g} s", timeout_s=timeout_s)
