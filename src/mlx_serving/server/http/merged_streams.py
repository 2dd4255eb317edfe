"""The streams of several requests as one: all of them are accepted or none, and the first to fail ends them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from mlx_serving.core.generation import Backend, Delta, GenerationRequest
from mlx_serving.errors import ProtocolError

NumberedDelta: TypeAlias = tuple[int, Delta]


@asynccontextmanager
async def merged_streams(
    backend: Backend, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[AsyncIterator[NumberedDelta]]:
    """Open a stream for each request.

    Entering waits until all are accepted. Iterating yields each delta with the number of its request, as they come,
    until every stream has ended with a finish_reason. Leaving the block aborts at once what is not finished.

    Raises what the first stream to be refused or to fail raises, and `ProtocolError` for one that ends without saying
    why.
    """
    if len(requests) == 1:
        async with backend.generate(requests[0]) as deltas:
            yield _numbered(deltas)
        return
    merged = _Merged(backend, requests)
    try:
        await merged.enter()
        yield merged.deltas()
    finally:
        await merged.leave()


async def _numbered(deltas: AsyncIterator[Delta]) -> AsyncIterator[NumberedDelta]:
    async for delta in deltas:
        yield 0, delta
        if delta.finish_reason is not None:
            return
    raise _unfinished()


class _Merged:
    """A task for each stream, because what enters a stream must leave it. Their queue is short: a consumer that falls
    behind holds up all of them, and so the worker learns of it."""

    def __init__(self, backend: Backend, requests: Sequence[GenerationRequest]) -> None:
        self._backend = backend
        self._requests = requests
        self._tasks: list[asyncio.Task[None]] = []
        # None: a stream was accepted. While they enter, each puts one thing into the queue.
        self._queue: asyncio.Queue[NumberedDelta | Exception | None] = asyncio.Queue(len(requests))
        self._all_accepted = asyncio.Event()

    async def enter(self) -> None:
        """Returns when all are accepted."""
        # They begin in this order, and none waits for another: so a fork comes right behind the one it forks.
        self._tasks += [asyncio.create_task(self._run(number, each)) for number, each in enumerate(self._requests)]
        for _ in self._tasks:
            refusal = await self._queue.get()
            if isinstance(refusal, Exception):
                raise refusal
        self._all_accepted.set()

    async def deltas(self) -> AsyncIterator[NumberedDelta]:
        running = len(self._requests)
        while running:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            assert item is not None  # all were accepted before
            running -= item[1].finish_reason is not None
            yield item

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _run(self, number: int, request: GenerationRequest) -> None:
        try:
            async with self._backend.generate(request) as deltas:
                self._queue.put_nowait(None)
                await self._all_accepted.wait()
                last = await self._forward(number, deltas)
            # Only now: whoever sees the last end leaves, which cancels, and a stream that ended well shall end well.
            await self._queue.put((number, last))
        except Exception as error:  # noqa: BLE001  whoever reads the queue raises it
            await self._queue.put(error)

    async def _forward(self, number: int, deltas: AsyncIterator[Delta]) -> Delta:
        async for delta in deltas:
            if delta.finish_reason is not None:
                return delta
            await self._queue.put((number, delta))
        raise _unfinished()


def _unfinished() -> ProtocolError:
    return ProtocolError("The engine ended a stream without saying why")
