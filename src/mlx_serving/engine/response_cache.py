"""A Backend layer that gives an answer again which was computed before: the shell around `core.response_index`.

    request ──fingerprint is kept──▶ hit: its deltas are replayed, and nothing below is asked
            ├──is not───────────────▶ miss: computed; kept when it has ended well under the same version of the model
            └──left to chance, model not loaded, incomparable ──▶ miss, and not kept

The version of the model is part of the fingerprint, so what a replaced model has said is never found again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol, Self

import msgspec

from mlx_serving.core.fingerprint import fingerprint, is_deterministic
from mlx_serving.core.generation import (
    Backend,
    CacheOutcome,
    Delta,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    Served,
)
from mlx_serving.core.response_index import Kept, ResponseCachePolicy, ResponseCacheStats, ResponseIndex

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Delta, ...]).decode
_REPLAYED_AT_ONCE = 32  # deltas: then others have their turn of the loop


class ResponseBodies(Protocol):
    """Where the answers themselves are. None of these raises: what cannot be kept is not there."""

    async def open(self) -> list[tuple[str, Kept]]:
        """What is there from an earlier run, least recently used first."""
        ...

    async def read(self, key: str) -> bytes | None: ...

    async def write(self, key: str, kept: Kept, body: bytes, gone: list[str]) -> None:
        """Keep one, drop those that are `gone`."""
        ...

    async def drop(self, keys: list[str] | None) -> None:
        """None: all of them."""
        ...

    async def close(self) -> None: ...


class MemoryBodies:
    """In this process, and gone with it."""

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}

    async def open(self) -> list[tuple[str, Kept]]:
        return []

    async def read(self, key: str) -> bytes | None:
        return self._bodies.get(key)

    async def write(self, key: str, kept: Kept, body: bytes, gone: list[str]) -> None:
        self._bodies[key] = body
        await self.drop(gone)

    async def drop(self, keys: list[str] | None) -> None:
        if keys is None:
            self._bodies.clear()
        for key in keys or ():
            self._bodies.pop(key, None)

    async def close(self) -> None:
        self._bodies.clear()


class ResponseCacheBackend:
    """`version_of` says which version of a model its name means now, in words that another version does not have; None
    while that is not known, because it is not loaded."""

    def __init__(
        self,
        inner: Backend,
        policy: ResponseCachePolicy,
        bodies: ResponseBodies,
        version_of: Callable[[str], str | None],
    ) -> None:
        self.inner = inner
        self._policy = policy
        self._bodies = bodies
        self._version_of = version_of
        self._index = ResponseIndex(policy)
        self._opening: asyncio.Task[None] | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._unwritten: dict[str, bytes] = {}

    @property
    def stats(self) -> ResponseCacheStats:
        return self._index.stats

    async def clear(self) -> int:
        """Forget all answers; returns how many there were."""
        await self._opened()
        count = self._index.clear()
        await self._settled()
        await self._bodies.drop(None)
        return count

    async def close(self) -> None:
        """What was to be written is written when this returns."""
        await self._settled()
        await self._bodies.close()

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        """See `core.generation.Backend`."""
        await self._opened()
        key = self._key(request)
        deltas = None if key is None else await self._find(key)
        if deltas is not None:
            _note(request, "hit", None if deltas[-1].stats is None else deltas[-1].stats.prompt_tokens)
            yield _replayed(deltas)
            return
        below = Served()
        async with self.inner.generate(replace(request, served=below)) as computed:
            _note(request, below.cache or "miss", below.prompt_tokens)
            if key is None:
                yield computed
            else:
                yield _Recording(computed, self._policy, lambda deltas: self._keep(key, request, deltas))

    def _key(self, request: GenerationRequest) -> str | None:
        version = self._version_of(request.model)
        if version is None or not (self._policy.unseeded or is_deterministic(request)):
            return None
        return fingerprint(request, version, request.caller if self._policy.per_caller else "")

    async def _find(self, key: str) -> tuple[Delta, ...] | None:
        known = key in self._index
        if not self._index.find(key, time.time()):
            if known:  # it is too old
                self._spawn(self._bodies.drop([key]))
            return None
        body = self._unwritten.get(key) or await self._bodies.read(key)
        try:
            if body is not None:
                return _decode(body)
        except msgspec.MsgspecError:
            pass  # somebody else has written it
        self._index.unusable(key)
        self._spawn(self._bodies.drop([key]))
        return None

    def _keep(self, key: str, request: GenerationRequest, deltas: list[Delta]) -> None:
        if self._key(request) != key:  # the model was replaced meanwhile
            return
        body = _encode(deltas)
        kept = Kept(sum(len(delta.token_ids) for delta in deltas), len(body), time.time())
        gone = self._index.store(key, kept)
        if gone is not None:
            self._unwritten[key] = body
            self._spawn(self._write(key, kept, body, gone))

    async def _write(self, key: str, kept: Kept, body: bytes, gone: list[str]) -> None:
        await self._bodies.write(key, kept, body, gone)
        if self._unwritten.get(key) is body:
            del self._unwritten[key]

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name="response cache")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _opened(self) -> None:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="open the response cache")
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        await self._bodies.drop(self._index.restore(await self._bodies.open(), time.time()))

    async def _settled(self) -> None:
        while self._writing:
            await asyncio.wait(self._writing)


class _Recording:
    """Deltas on their way to a reader, remembered. `keep` gets them all when the last one comes."""

    def __init__(
        self, deltas: AsyncIterator[Delta], policy: ResponseCachePolicy, keep: Callable[[list[Delta]], None]
    ) -> None:
        self._deltas = deltas
        self._tokens_left = policy.max_tokens
        self._keep = keep
        self._seen: list[Delta] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        delta = await anext(self._deltas)
        self._tokens_left -= len(delta.token_ids)
        if self._tokens_left < 0:
            self._seen.clear()
        else:
            self._seen.append(delta)
            if delta.finish_reason not in (None, FinishReason.ABORT):
                self._keep(self._seen)
        return delta


async def _replayed(deltas: tuple[Delta, ...]) -> AsyncIterator[Delta]:
    for number, delta in enumerate(deltas, 1):
        if delta.stats is None:
            yield delta
        else:  # the counts are the answer's, the times are this one's
            told = delta.stats
            stats = GenerationStats(told.prompt_tokens, told.tokens_generated, 0.0, 0.0, 0.0)
            yield replace(delta, stats=stats)
        if number % _REPLAYED_AT_ONCE == 0:
            await asyncio.sleep(0)


def _note(request: GenerationRequest, outcome: CacheOutcome, prompt_tokens: int | None) -> None:
    if request.served is not None:
        request.served.note(outcome)
        request.served.prompt_tokens = prompt_tokens
