from typing import Any

import mlx.core as mx
import mlx.nn as nn

class KVCache:
    keys: mx.array
    values: mx.array
    offset: int
    @property
    def nbytes(self) -> int: ...
    @property
    def state(self) -> Any: ...

class QuantizedKVCache:
    keys: tuple[mx.array, mx.array, mx.array] | None
    values: tuple[mx.array, mx.array, mx.array]
    offset: int
    group_size: int
    bits: int
    def __init__(self, group_size: int = 64, bits: int = 8) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def state(self) -> Any: ...

class ConcatenateKVCache:
    keys: mx.array
    values: mx.array
    offset: int

class RotatingKVCache:
    keys: mx.array
    values: mx.array
    offset: int
    def __init__(self, max_size: int, keep: int = 0) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def state(self) -> Any: ...

class ChunkedKVCache:
    keys: mx.array
    values: mx.array
    offset: int
    def __init__(self, chunk_size: int) -> None: ...
    @property
    def nbytes(self) -> int: ...

class CacheList:
    caches: tuple[Any, ...]

def make_prompt_cache(model: nn.Module, max_kv_size: int | None = None) -> list[Any]: ...
def can_trim_prompt_cache(cache: list[Any]) -> bool: ...
def trim_prompt_cache(cache: list[Any], num_tokens: int) -> int: ...
