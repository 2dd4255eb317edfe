"""From arrays of MLX to bytes in the machine's memory and back, and from mlx-lm's caches to trees of arrays and back.

A tree consists of lists, of arrays and of what JSON can say; written down, an array is its number among the tensors.
Classes are found by name among those of mlx-lm's caches: what is in a file is never code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import mlx.core as mx
import mlx_lm.models.cache as mlx_lm_caches
import numpy as np

from mlx_serving.catalog.prefix_records import Content, Tensor, UnusableRecord
from mlx_serving.core.prefix.record import RecordKind

Tree: TypeAlias = Any
"""Arrays, None, numbers, texts, and lists and tuples of trees."""

_MAX_DEPTH = 8
_NAMES: Mapping[mx.Dtype, str] = {
    mx.bool_: "BOOL", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16", mx.int16: "I16", mx.float16: "F16",
    mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32", mx.float32: "F32", mx.uint64: "U64", mx.int64: "I64",
    mx.complex64: "C64",
}  # fmt: skip
_KINDS: Mapping[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "F16": np.float16,
    "BF16": np.uint16, "U32": np.uint32, "I32": np.int32, "F32": np.float32, "U64": np.uint64, "I64": np.int64,
    "C64": np.complex64,
}  # fmt: skip
_CLASSES: Mapping[str, type[Any]] = {
    name: found
    for name in ("ArraysCache", "CacheList", "ChunkedKVCache", "KVCache", "QuantizedKVCache", "RotatingKVCache")
    if (found := getattr(mlx_lm_caches, name, None)) is not None
}


def to_content(kind: RecordKind, tree: Tree) -> Content:
    """The bytes of a tree. Waits until its arrays are computed; they are copied."""
    arrays: list[mx.array] = []
    layout = json.dumps(_numbered(tree, arrays))
    mx.eval(arrays)  # pyright: ignore[reportUnknownMemberType]  MLX's stub leaves its arguments untyped
    return Content(kind, layout, [_to_tensor(array) for array in arrays])


def from_content(content: Content) -> Tree:
    """The tree that `to_content` was given, with lists for tuples. Raises `UnusableRecord`."""
    arrays = [_from_tensor(tensor) for tensor in content.tensors]
    try:
        return _restored(json.loads(content.layout), arrays, _MAX_DEPTH)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UnusableRecord(f"its layout cannot be read: {error}") from error


def tree_of(caches: Sequence[Any]) -> Tree | None:
    """All that caches hold; None when there are some among them of a class that is not mlx-lm's own."""
    if any(_CLASSES.get(type(cache).__name__) is not type(cache) for cache in _flat(caches)):
        return None
    return [[type(cache).__name__, cache.state] for cache in caches]


def caches_of(tree: Tree) -> list[Any]:
    """The caches that `tree_of` was given. Raises `UnusableRecord`."""
    try:
        return [_CLASSES[name].from_state(state) for name, state in tree]
    except Exception as error:
        raise UnusableRecord(f"it holds no caches: {type(error).__name__}: {error}") from error


def _flat(caches: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for cache in caches:
        flat.append(cache)
        if isinstance(cache, mlx_lm_caches.CacheList):
            flat += _flat(cast("Sequence[Any]", cache.caches))
    return flat


def _numbered(tree: Tree, arrays: list[mx.array]) -> Any:
    if isinstance(tree, mx.array):
        arrays.append(tree)
        return {"tensor": len(arrays) - 1}
    if isinstance(tree, list | tuple):
        return [_numbered(part, arrays) for part in cast("Sequence[Tree]", tree)]
    return tree


def _restored(noted: Any, arrays: Sequence[mx.array], depth: int) -> Tree:
    if depth < 0:
        raise ValueError("it is too deep")
    if isinstance(noted, dict):
        return arrays[cast("dict[str, int]", noted)["tensor"]]
    if isinstance(noted, list):
        return [_restored(part, arrays, depth - 1) for part in cast("list[Any]", noted)]
    return noted


def _to_tensor(array: mx.array) -> Tensor:
    # Python has no name for 16-bit floats of this kind; their bytes are all that is wanted.
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 and array.size else array
    return Tensor(_NAMES[array.dtype], tuple(array.shape), bytes(memoryview(cast(Any, plain))))


def _from_tensor(tensor: Tensor) -> mx.array:
    kind = _KINDS.get(tensor.dtype)
    if kind is None:
        raise UnusableRecord(f"it has a tensor of {tensor.dtype}")
    # Copied once, into an array that needs no computation; but for these, of which numpy has no name.
    array = mx.array(np.frombuffer(tensor.data, kind, tensor.size // np.dtype(kind).itemsize).reshape(tensor.shape))
    return array.view(mx.bfloat16) if tensor.dtype == "BF16" else array
