from __future__ import annotations

import struct
from collections.abc import AsyncIterator

from mlx_serving.core.embedding.embeddings import Embeddings, floats, gather
from mlx_serving.core.generation import Delta, Embedding, FinishReason


async def _deltas() -> AsyncIterator[Delta]:
    yield Delta("", embeddings=(Embedding(2, b"c", 3), Embedding(0, b"a", 1)))
    yield Delta("", embeddings=(Embedding(1, b"b", 2),))
    yield Delta("", finish_reason=FinishReason.STOP)


async def test_vectors_stand_in_the_order_of_the_inputs() -> None:
    assert await gather(_deltas(), 3) == Embeddings((b"a", b"b", b"c"), 6)


def test_a_vector_is_numbers() -> None:
    assert floats(struct.pack("<3f", 1.0, -0.5, 0.25)) == [1.0, -0.5, 0.25]
