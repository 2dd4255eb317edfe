"""Streams that end when somebody sets an `asyncio.Event`, as the ancestor's ended with an AbortSignal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from mlx_serving.core.generation import Delta
from mlx_serving.errors import Aborted


@asynccontextmanager
async def until_set(
    signal: asyncio.Event | None, entering: AbstractAsyncContextManager[AsyncIterator[Delta]]
) -> AsyncGenerator[AsyncIterator[Delta]]:
    """What `entering` gives; once `signal` is set, entering and every next delta raise `Aborted`, however long they
    would have taken. One task watches the signal, none is made for a delta."""
    if signal is None:
        async with entering as deltas:
            yield deltas
        return
    watcher = _Watcher(signal)
    try:
        async with AsyncExitStack() as stack:
            async with watcher.attention():
                deltas = await stack.enter_async_context(entering)
            yield _watched(deltas, watcher)
    finally:
        watcher.stop()


async def _watched(deltas: AsyncIterator[Delta], watcher: _Watcher) -> AsyncIterator[Delta]:
    while True:
        try:
            async with watcher.attention():
                delta = await anext(deltas)
        except StopAsyncIteration:
            return
        yield delta


class _Watcher:
    def __init__(self, signal: asyncio.Event) -> None:
        self._signal = signal
        self._scope: asyncio.Timeout | None = None
        self._task = asyncio.create_task(self._watch(), name="signal")

    @asynccontextmanager
    async def attention(self) -> AsyncGenerator[None]:
        """Raises `Aborted` when the signal is set before the block begins or while it waits."""
        if self._signal.is_set():
            raise _cancelled()
        try:
            async with asyncio.timeout(None) as self._scope:
                yield
        except TimeoutError:
            raise _cancelled() from None
        finally:
            self._scope = None

    def stop(self) -> None:
        self._task.cancel()

    async def _watch(self) -> None:
        await self._signal.wait()
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())


def _cancelled() -> Aborted:
    return Aborted("The stream was cancelled by its signal")
