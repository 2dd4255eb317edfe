"""Which tokens of an image see which, while a prompt is computed.

A language model asks its caches for masks. Where the tokens of an image are to see each other, whichever comes first,
it gets caches that answer so: no model is changed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from mlx_serving.wire.methods import ImageAttention
from mlx_serving.worker.vision.pictures import Run


class Attention(Protocol):
    """A way for the tokens of images to see each other."""

    name: ImageAttention
    in_one_piece: bool
    """Whether all tokens of an image must be computed in one chunk."""

    def over(self, caches: Sequence[Any], runs: Sequence[Run], width: int) -> list[Any]:
        """What a model is to be given for these caches with a chunk of `width` tokens, of which those of each of `runs`
        stand for pixels of one image."""
        ...


class Causal:
    """Each sees those before it, as tokens of text do."""

    name: ImageAttention = "causal"
    in_one_piece = False

    def over(self, caches: Sequence[Any], runs: Sequence[Run], width: int) -> list[Any]:
        return list(caches)


class Mutual:
    """All of an image see each other, and what is before it as text does."""

    name: ImageAttention = "mutual"
    in_one_piece = True

    def over(self, caches: Sequence[Any], runs: Sequence[Run], width: int) -> list[Any]:
        if not runs:
            return list(caches)
        seen = np.zeros((width, width), dtype=bool)
        for start, end in runs:
            seen[start:end, start:end] = True
        return [_SeeingCache(cache, mx.array(seen)) for cache in caches]


CAUSAL = Causal()
MUTUAL = Mutual()
ATTENTIONS: Mapping[ImageAttention, Attention] = {one.name: one for one in (CAUSAL, MUTUAL)}


class _SeeingCache:
    """A cache for one chunk, of which `seen` [tokens, tokens] says what is seen besides what came before."""

    def __init__(self, cache: Any, seen: mx.array) -> None:
        self._cache = cache
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def make_mask(self, count: int, *, window_size: int | None = None, return_array: bool = False) -> mx.array:
        """[tokens, tokens in the cache]. It is an array always: what is seen besides cannot be said otherwise."""
        before: mx.array = self._cache.make_mask(count, window_size=window_size, return_array=True)
        return mx.concatenate([before[..., :-count], before[..., -count:] | self._seen], axis=-1)
