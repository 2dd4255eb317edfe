"""KV caches that are packed into fewer bits, as three plain caches beside each other.

mlx-lm's attention takes packed keys and values as triples: the numbers, their scales and their biases, each with a row
a token. So whatever is done with plain caches (slots of a batch, pieces that are kept, copies) is done with each of the
three, and only what the model itself gets and gives is a triple.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from mlx_serving.core.kv_form import KvForm
from mlx_serving.worker.kv_cache import RowLengths, SlotKVCache

PARTS = 3

Triple: TypeAlias = tuple[mx.array, mx.array, mx.array]
"""Numbers, scales and biases, each [rows, heads, tokens, …]."""


def make_caches(model: nn.Module, form: KvForm | None) -> list[Any]:
    """Empty caches of a sequence, a layer each. With a `form` all must be plain ones, see `is_packable`."""
    caches: list[Any] = make_prompt_cache(model)
    return caches if form is None else [QuantizedKVCache(form.group_size, form.bits) for _ in caches]


def is_packable(caches: Sequence[Any]) -> bool:
    """Whether all are plain key-value caches."""
    return all(type(cache) is KVCache for cache in caches)


def parts_of(cache: QuantizedKVCache) -> list[KVCache]:
    """Views of what it holds, as plain caches."""
    parts = [KVCache() for _ in range(PARTS)]
    if cache.keys is not None:
        for part, keys, values in zip(parts, cache.keys, cache.values, strict=True):
            part.keys, part.values, part.offset = keys, values, cache.offset
    return parts


def pack(parts: Sequence[KVCache], form: KvForm) -> QuantizedKVCache:
    """The cache that has these parts."""
    cache = QuantizedKVCache(form.group_size, form.bits)
    if parts[0].offset:
        numbers, scales, biases = parts
        cache.keys = (numbers.keys, scales.keys, biases.keys)
        cache.values = (numbers.values, scales.values, biases.values)
        cache.offset = numbers.offset
    return cache


def form_of(cache: QuantizedKVCache) -> KvForm:
    return KvForm(cache.bits, cache.group_size)


def unpacked(caches: Iterable[Any]) -> list[Any]:
    """The same with its parts in the place of each packed cache."""
    return [part for cache in caches for part in (parts_of(cache) if type(cache) is QuantizedKVCache else [cache])]


def repacked(caches: Sequence[KVCache], form: KvForm | None) -> list[Any]:
    """The caches of which `unpacked` has made these."""
    if form is None:
        return list(caches)
    return [pack(caches[first : first + PARTS], form) for first in range(0, len(caches), PARTS)]


class PackedSlotKVCache:
    """A layer of a decode batch whose sequences have packed caches. See `SlotKVCache`."""

    def __init__(self, rows: RowLengths, form: KvForm) -> None:
        self._form = form
        self._parts = [SlotKVCache(rows) for _ in range(PARTS)]

    @property
    def cache(self) -> PackedSlotKVCache:
        """What the model is given."""
        return self

    def put(self, index: int, row: QuantizedKVCache) -> None:
        """A sequence takes the place of another one, or the next one."""
        for part, of_row in zip(self._parts, parts_of(row), strict=True):
            part.put(index, of_row)

    def arrange(self, order: Sequence[int]) -> None:
        """Keep the rows with these indices, in this order."""
        for part in self._parts:
            part.arrange(order)

    def extract(self, index: int) -> QuantizedKVCache:
        """A copy of one row, as a cache of its own."""
        return pack([part.extract(index) for part in self._parts], self._form)

    def peek(self, index: int) -> QuantizedKVCache:
        """A view of one row."""
        return pack([part.peek(index) for part in self._parts], self._form)

    def shrink(self) -> None:
        """Give back what no row needs for its next token."""
        for part in self._parts:
            part.shrink()

    # -- what a model's attention calls

    @property
    def bits(self) -> int:
        """By which attention knows that it gets triples."""
        return self._form.bits

    @property
    def group_size(self) -> int:
        return self._form.group_size

    @property
    def offset(self) -> int | mx.array:
        return self._parts[0].offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Triple, Triple]:
        """Append tokens to each row: [rows, heads, width, head_dim]. Returns views up to the longest row's end."""
        fetched = [
            part.update_and_fetch(of_keys, of_values)
            for part, of_keys, of_values in zip(self._parts, self._packed(keys), self._packed(values), strict=True)
        ]
        all_keys, all_values = zip(*fetched, strict=True)
        return cast(Triple, all_keys), cast(Triple, all_values)

    def _packed(self, numbers: mx.array) -> Sequence[mx.array]:
        return cast("Sequence[mx.array]", mx.quantize(numbers, group_size=self.group_size, bits=self.bits))

    def make_mask(
        self, tokens: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        return self._parts[0].make_mask(tokens, return_array, window_size)

    @property
    def state(self) -> list[tuple[mx.array | None, mx.array | None]]:
        return [part.state for part in self._parts]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts)
