"""A Backend layer under which requests that have the same answer are computed once while they are in flight.

    request ──deterministic, same fingerprint in flight──▶ joins: gets the stream from its start
            ├──deterministic, first of its kind──────────▶ begins a computation that others may join
            └──left to chance, or incomparable───────────▶ passes through

A computation belongs to all who read it: it goes on when the one who began it leaves, and is aborted when the last one
does. It has no deadline of its own, because those who join later have theirs; each reader's is kept outside of this.
What it fails with, they all get.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from mlx_serving.core.fingerprint import fingerprint, is_deterministic
from mlx_serving.core.generation import Backend, CacheOutcome, Delta, GenerationRequest, Served
from mlx_serving.core.shared_stream import SharedStream
from mlx_serving.errors import Aborted

_AHEAD = 16  # deltas: enough that readers need not wait for each other's turns of the loop


class SharingBackend:
    """`version_of` says which version of a model its name means now, in words that another version does not have."""

    def __init__(self, inner: Backend, version_of: Callable[[str], str]) -> None:
        self.inner = inner
        self._version_of = version_of
        self._running: dict[str, _Computation] = {}
        self._ids: set[str] = set()
        self._shared = 0

    @property
    def shared(self) -> int:
        """Requests so far that joined the computation of another one."""
        return self._shared

    @property
    def running(self) -> int:
        """Computations that others may join now."""
        return len(self._running)

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`."""
        key = fingerprint(request, self._version_of(request.model)) if is_deterministic(request) else None
        if key is None:
            _note(request, "miss")
            async with self.inner.generate(request) as deltas:
                yield deltas
            return
        computation = self._running.get(key)
        if computation is None:
            _note(request, "miss")
            computation = self._begin(key, request)
        else:
            _note(request, "shared")
            self._shared += 1
        reader = computation.stream.join()
        try:
            await computation.wait_accepted()
            if request.served is not None:
                request.served.prompt_tokens = computation.served.prompt_tokens
            yield computation.deltas(reader)
        finally:
            if computation.stream.leave(reader):
                self._forget(key, computation)
                await computation.abort()
            else:
                computation.look_again()

    def _begin(self, key: str, request: GenerationRequest) -> _Computation:
        # Whoever began it may have left, and may come again under the same id.
        stream_id = request.request_id
        while stream_id in self._ids:
            stream_id += "+"
        self._ids.add(stream_id)

        def ended() -> None:
            self._ids.discard(stream_id)
            self._forget(key, computation)

        asked = replace(request, request_id=stream_id, timeout_s=None)
        computation = _Computation(self.inner, asked, ended)
        self._running[key] = computation
        return computation

    def _forget(self, key: str, computation: _Computation) -> None:
        if self._running.get(key) is computation:
            del self._running[key]


class _Computation:
    """A task that reads the stream for all its readers, because what enters a stream must leave it."""

    def __init__(self, inner: Backend, request: GenerationRequest, ended: Callable[[], None]) -> None:
        self.stream = SharedStream(_AHEAD)
        self.served = Served()
        self._inner = inner
        self._request = replace(request, served=self.served)
        self._ended = ended
        self._accepted = False
        self._over = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"shared {request.request_id}")

    async def wait_accepted(self) -> None:
        """Raises what the request is refused with."""
        while not (self._accepted or self._over):
            await self._changed.wait()
        if not self._accepted and self._error is not None:
            raise self._error

    async def deltas(self, reader: int) -> AsyncIterator[Delta]:
        while True:
            wanted_more = self.stream.wants_more
            delta = self.stream.next(reader)
            if delta is not None:
                if self.stream.wants_more and not wanted_more:
                    self.look_again()
                yield delta
            elif self._over:
                if self._error is not None:
                    raise self._error
                return
            else:
                await self._changed.wait()

    def look_again(self) -> None:
        """Something has changed that readers or the source may wait for."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def abort(self) -> None:
        """Returns when the stream below has been left."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            async with self._inner.generate(self._request) as deltas:
                self._accepted = True
                self.look_again()
                last = await self._read(deltas)
            # Only now: who sees it leaves, which may cancel this, and a stream that ended well shall end well.
            if last is not None:
                self.stream.append(last)
        except asyncio.CancelledError:
            self._error = Aborted("The computation that this request shared was ended")
            raise
        except Exception as error:  # noqa: BLE001  its readers raise it
            self._error = error
        finally:
            self._over = True
            self._ended()
            self.look_again()

    async def _read(self, deltas: AsyncIterator[Delta]) -> Delta | None:
        """Returns the last delta, which the readers do not have yet."""
        async for delta in deltas:
            if delta.finish_reason is not None:
                return delta
            self.stream.append(delta)
            self.look_again()
            while not self.stream.wants_more:
                await self._changed.wait()
        return None


def _note(request: GenerationRequest, outcome: CacheOutcome) -> None:
    if request.served is not None:
        request.served.note(outcome)
