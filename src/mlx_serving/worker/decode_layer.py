"""Which cache a layer of a decode batch has."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_serving.worker.kv_cache import MergedCache, RowLengths, SlotKVCache, SoloCache
from mlx_serving.worker.packed_kv import PackedSlotKVCache, form_of

DecodeLayer: TypeAlias = SlotKVCache | PackedSlotKVCache | MergedCache | SoloCache


def decode_layer(cache: Any, rows: RowLengths, spare_tokens: float = math.inf) -> DecodeLayer:
    """The layer of a shared batch for sequences whose own caches are like `cache`."""
    if type(cache) is KVCache:
        return SlotKVCache(rows, spare_tokens)
    if type(cache) is QuantizedKVCache:
        return PackedSlotKVCache(rows, form_of(cache), spare_tokens)
    return MergedCache()
