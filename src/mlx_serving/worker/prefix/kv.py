"""What is kept of KV caches for others, as copies that hold no more memory than they need.

Of plain key-value caches pieces are cut, which are put together again for a sequence that begins with them; of packed
ones as well, which are three plain ones a layer. Caches of other kinds are copied whole.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import mlx.core as mx
from mlx_lm.models.cache import CacheList, KVCache, QuantizedKVCache

from mlx_serving.core.kv_form import KvForm
from mlx_serving.worker.kv_cache import GROWTH_TOKENS
from mlx_serving.worker.packed_kv import form_of, pack, parts_of, repacked, unpacked


@dataclass(frozen=True, slots=True)
class KvBlock:
    """Keys and values of each layer, [1, heads, tokens, head_dim]; of packed ones three pairs a layer."""

    layers: list[tuple[mx.array, mx.array]]

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    @property
    def tokens(self) -> int:
        return self.layers[0][0].shape[2]


@dataclass(frozen=True, slots=True)
class CacheState:
    """A sequence's caches. They are nobody's: `begin` makes those with which a sequence goes on."""

    caches: list[Any]

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)

    def begin(self) -> list[Any]:
        return copy.deepcopy(self.caches)  # MLX shares the memory until one of them writes


Kept: TypeAlias = KvBlock | CacheState


def is_plain(caches: Sequence[Any]) -> bool:
    """Whether pieces of them can be cut."""
    return all(type(cache) in (KVCache, QuantizedKVCache) for cache in caches)


def token_bytes(caches: Sequence[Any]) -> int:
    """What a token takes in all layers."""
    return sum(array.nbytes // array.shape[2] for cache in unpacked(caches) for array in (cache.keys, cache.values))


def cut(caches: Sequence[Any], start: int, end: int) -> KvBlock:
    """A copy of the tokens [start, end)."""
    return KvBlock(
        [(_copied(cache.keys[:, :, start:end]), _copied(cache.values[:, :, start:end])) for cache in unpacked(caches)]
    )


def piece(blocks: Sequence[KvBlock], start: int, end: int) -> KvBlock:
    """A copy of the tokens [start, end) of these blocks."""
    layers = zip(*(block.layers for block in blocks), strict=True)
    return KvBlock(
        [
            (_slice([keys for keys, _ in pieces], start, end), _slice([values for _, values in pieces], start, end))
            for pieces in layers
        ]
    )


def within(block: KvBlock, start: int, end: int) -> KvBlock:
    """The tokens [start, end) of a block: itself if that is all of it, or a copy."""
    return block if (start, end) == (0, block.tokens) else piece([block], start, end)


class Cutter:
    """Cuts blocks anew that lie one behind the other, the first one behind `begin` tokens. What is to be cut as it is
    is not copied. Each cut begins behind the one before."""

    def __init__(self, blocks: Sequence[KvBlock], begin: int) -> None:
        self._blocks = deque(blocks)
        self._begin = begin

    def cut(self, start: int, end: int) -> KvBlock:
        while self._begin + self._blocks[0].tokens <= start:
            self._begin += self._blocks.popleft().tokens
        needed: list[KvBlock] = []
        reached = self._begin
        for block in self._blocks:
            needed.append(block)
            reached += block.tokens
            if reached >= end:
                break
        if len(needed) == 1:
            return within(needed[0], start - self._begin, end - self._begin)
        return piece(needed, start - self._begin, end - self._begin)


def _slice(pieces: Sequence[mx.array], start: int, end: int) -> mx.array:
    whole = pieces[0] if len(pieces) == 1 else mx.concatenate(list(pieces), axis=2)
    return _copied(whole[:, :, start:end])


def join(blocks: Sequence[KvBlock], tokens: int, room: int, form: KvForm | None = None) -> list[Any]:
    """Caches in that form that hold the first `tokens` tokens of these blocks, with room for `room` tokens in all."""
    capacity = -(-max(room, tokens) // GROWTH_TOKENS) * GROWTH_TOKENS
    joined = [
        _joined([block.layers[layer] for block in blocks], tokens, capacity) for layer in range(len(blocks[0].layers))
    ]
    return repacked(joined, form)


def _joined(pieces: Sequence[tuple[mx.array, mx.array]], tokens: int, capacity: int) -> KVCache:
    cache = KVCache()
    cache.keys = _row([keys for keys, _ in pieces], tokens, capacity)
    cache.values = _row([values for _, values in pieces], tokens, capacity)
    cache.offset = tokens
    return cache


def _row(pieces: Sequence[mx.array], tokens: int, capacity: int) -> mx.array:
    surplus = sum(piece.shape[2] for piece in pieces) - tokens
    last = pieces[-1]
    if surplus:
        last = last[:, :, : last.shape[2] - surplus]
    batch, heads, _, width = last.shape
    spare = mx.zeros((batch, heads, capacity - tokens, width), last.dtype)
    return mx.concatenate([*pieces[:-1], last, spare], axis=2)


def state_of(caches: Sequence[Any]) -> CacheState:
    """A copy of all that they hold."""
    return CacheState([_clone(cache) for cache in caches])


def compute(kept: Sequence[Kept]) -> None:
    """Order the copies: as long as they are not computed, they hold what they are copied from."""
    arrays: list[Any] = []
    for each in kept:
        if isinstance(each, KvBlock):
            arrays += each.layers
        else:
            arrays += [cache.state for cache in each.caches]
    mx.async_eval(arrays)  # pyright: ignore[reportUnknownMemberType]  MLX's stub leaves its arguments untyped


def _clone(cache: Any) -> Any:
    if isinstance(cache, CacheList):
        return CacheList(*(_clone(part) for part in cache.caches))
    if type(cache) is QuantizedKVCache:
        return pack([_clone(part) for part in parts_of(cache)], form_of(cache))
    if type(cache) is KVCache:
        fresh = KVCache()
        fresh.keys = _copied(cache.keys[:, :, : cache.offset])
        fresh.values = _copied(cache.values[:, :, : cache.offset])
        fresh.offset = cache.offset
        return fresh
    fresh = copy.copy(cache)
    for name, value in cast("dict[str, Any]", vars(cache)).items():
        if isinstance(value, mx.array):
            setattr(fresh, name, _copied(value))
        elif isinstance(value, list):
            parts = cast("list[Any]", value)
            setattr(fresh, name, [_copied(part) if isinstance(part, mx.array) else part for part in parts])
    return fresh


def _copied(array: mx.array) -> mx.array:
    # A slice, contiguous or not, may stay a view that holds all of what it was cut from. A product never is.
    return array * 1
