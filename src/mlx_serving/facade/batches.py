"""Many requests in one call: results in order, and each failure beside the request that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, assert_never

from mlx_serving.core.generation import FinishReason
from mlx_serving.errors import EngineError
from mlx_serving.facade.shapes import (
    ErrorChunk,
    GenerationStats,
    GeneratorChunk,
    MetadataChunk,
    Shape,
    TokenChunk,
    ToolCall,
)

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
    """One whole answer. `reasoning` is what the model thought before, `tool_calls` what it called, if it did."""

    stream_id: str
    text: str
    finish_reason: FinishReason
    stats: GenerationStats
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None

    @property
    def message(self) -> dict[str, object]:
        """The answer as a message, to go on from. A `tool` message for each call follows it."""
        message: dict[str, object] = {"role": "assistant", "content": self.text}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls is not None:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message


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
    reasoning: list[str] = []
    calls: dict[int, ToolCall] = {}
    async for chunk in chunks:
        match chunk:
            case TokenChunk():
                text.append(chunk.token)
                reasoning.append(chunk.reasoning or "")
                for piece in chunk.tool_calls or ():
                    call = calls.get(piece.index) or ToolCall(piece.id or "", piece.name or "", "")
                    calls[piece.index] = replace(call, arguments=call.arguments + piece.arguments)
            case MetadataChunk():
                return GenerationResult(
                    stream_id,
                    "".join(text),
                    chunk.finish_reason,
                    chunk.stats,
                    "".join(reasoning) or None,
                    tuple(calls[index] for index in sorted(calls)) or None,
                )
            case ErrorChunk():
                raise chunk.error
            case _:
                assert_never(chunk)
    raise AssertionError("a stream ends with metadata or with an error")
