"""Many requests in one call: results in order, and each failure beside the request that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar, assert_never

from mlx_serving.core.generation import FinishReason
from mlx_serving.errors import EngineError
from mlx_serving.facade.shapes import ErrorChunk, GenerationStats, GeneratorChunk, MetadataChunk, Shape, TokenChunk

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchEntry(Shape, Generic[T]):
    """What became of one request: `result` if it was a success, else `error`."""

    success: bool
    result: T | None = None
    error: EngineError | None = None

    def unwrap(self) -> T:
        """The result. Raises the error."""
        if self.error is not None:
            raise self.error
        assert self.result is not None  # a success has one
        return self.result


@dataclass(frozen=True, slots=True)
class GenerationResult(Shape):
    """One whole answer."""

    stream_id: str
    text: str
    finish_reason: FinishReason
    stats: GenerationStats


async def each_of(jobs: Iterable[Callable[[], Awaitable[T]]], width: int) -> list[BatchEntry[T]]:
    """Do all jobs, `width` of them at the same time at most. Cancelling this cancels them."""
    gate = asyncio.Semaphore(width)

    async def one(job: Callable[[], Awaitable[T]]) -> BatchEntry[T]:
        async with gate:
            try:
                return BatchEntry(success=True, result=await job())
            except EngineError as error:
                return BatchEntry(success=False, error=error)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(job)) for job in jobs]
    return [task.result() for task in tasks]


async def whole_answer(stream_id: str, chunks: AsyncIterator[GeneratorChunk]) -> GenerationResult:
    """The answer that a stream's chunks make up. Raises the error of an error chunk."""
    text: list[str] = []
    async for chunk in chunks:
        match chunk:
            case TokenChunk():
                text.append(chunk.token)
            case MetadataChunk():
                return GenerationResult(stream_id, "".join(text), chunk.finish_reason, chunk.stats)
            case ErrorChunk():
                raise chunk.error
            case _:
                assert_never(chunk)
    raise AssertionError("a stream ends with metadata or with an error")
