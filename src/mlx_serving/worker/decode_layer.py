"""Which cache a layer of a decode batch has: a plain key-value cache is ours, others (rotating, recurrent) are in
mlx-lm's own batch classes, and those that cannot be merged stay as they are, and their sequences alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_serving.worker.kv_cache import RowLengths, SlotKVCache
from mlx_serving.worker.packed_kv import PackedSlotKVCache, form_of


class MergedCache:
    """A layer whose cache is not a plain one, in mlx-lm's own batch class."""

    def __init__(self) -> None:
        self.cache: Any = None
        self._count = 0

    def put(self, index: int, row: Any) -> None:
        merged = row.merge([row])
        if self.cache is None:
            self.cache = merged
        else:
            self.cache.extend(merged)
        self._count += 1
        if index < self._count - 1:
            self.arrange([*range(index), self._count - 1, *range(index + 1, self._count - 1)])

    def extract(self, index: int) -> Any:
        return self.cache.extract(index)

    def peek(self, index: int) -> Any:
        return self.cache.extract(index)

    def arrange(self, order: Sequence[int]) -> None:
        self.cache.filter(list(order))
        self._count = len(order)

    def shrink(self) -> None:
        """It is as large as its rows."""

    @property
    def nbytes(self) -> int:
        return 0 if self.cache is None else self.cache.nbytes


class SoloCache:
    """A layer of a batch of one: the sequence's own cache, whatever its kind."""

    def __init__(self) -> None:
        self.cache: Any = None

    def put(self, index: int, row: Any) -> None:
        assert index == 0, "a model that cannot be batched has one sequence a batch"
        self.cache = row

    def extract(self, index: int) -> Any:
        assert index == 0
        return self.cache

    def peek(self, index: int) -> Any:
        return self.extract(index)

    def arrange(self, order: Sequence[int]) -> None:
        assert list(order) == [0]

    def shrink(self) -> None:
        """It grows as a prompt's does."""

    @property
    def nbytes(self) -> int:
        return 0 if self.cache is None else self.cache.nbytes


DecodeLayer: TypeAlias = SlotKVCache | PackedSlotKVCache | MergedCache | SoloCache


def decode_layer(cache: Any, rows: RowLengths) -> DecodeLayer:
    """The layer of a shared batch for sequences whose own caches are like `cache`."""
    if type(cache) is KVCache:
        return SlotKVCache(rows)
    if type(cache) is QuantizedKVCache:
        return PackedSlotKVCache(rows, form_of(cache))
    return MergedCache()
