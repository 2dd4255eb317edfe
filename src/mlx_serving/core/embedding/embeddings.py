"""Vectors of one request, put back into the order of its inputs."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mlx_serving.core.generation import Delta


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input, as little-endian 32-bit floats; `prompt_tokens` of all inputs together."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int


async def gather(deltas: AsyncIterator[Delta], count: int) -> Embeddings:
    """Read a stream of vectors of `count` inputs to its end. Raises what the stream raises."""
    vectors = [b""] * count
    tokens = 0
    async for delta in deltas:
        for each in delta.embeddings:
            vectors[each.place] = each.values
            tokens += each.tokens
    return Embeddings(tuple(vectors), tokens)


def floats(vector: bytes) -> list[float]:
    """The numbers of a vector."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
