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

class RotatingKVCache:
    keys: mx.array
    values: mx.array
    offset: int
    def __init__(self, max_size: int, keep: int = 0) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def state(self) -> Any: ...

def make_prompt_cache(model: nn.Module, max_kv_size: int | None = None) -> list[Any]: ...
