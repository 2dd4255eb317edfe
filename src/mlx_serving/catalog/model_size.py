"""How large a model on this machine is: from its config.json and the headers of its weights, which are not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mlx_serving.catalog.safetensors import Tensor, read_header, weight_files
from mlx_serving.core.quantization import Matrix
from mlx_serving.core.recommendations import ModelSize, size_from_config
from mlx_serving.errors import ModelLoadError

_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def measure(name: str, directory: Path) -> ModelSize:
    """Raises `ModelLoadError` for a directory whose files are damaged."""
    sizes: dict[str, int] = {}
    try:
        config = msgspec.json.decode((directory / "config.json").read_bytes(), type=dict[str, Any])
        tensors = tensors_of(directory)
        for tensor in tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ModelLoadError(f"{name} is damaged: {error}", model=name, path=str(directory)) from error
    total = sum(sizes.values())
    floats = {dtype: size for dtype, size in sizes.items() if dtype in _FLOAT_BYTES}
    item_bytes = _FLOAT_BYTES[max(floats, key=lambda dtype: floats[dtype])] if floats else 2
    return size_from_config(
        name,
        config,
        weights=total // item_bytes,
        weights_bytes=total,
        item_bytes=item_bytes,
        kv_item_bytes=item_bytes,  # what a model computes in is what its unpacked weights or their scales are in
        matrices=matrices_of(tensors)[0],
    )


def matrices_of(tensors: Mapping[str, Tensor]) -> tuple[list[Matrix], int]:
    """Of the tensors of a model, by their names: the weights that can be packed, and the bytes of all others."""
    matrices: list[Matrix] = []
    other_bytes = 0
    for name, tensor in tensors.items():
        item_bytes = _FLOAT_BYTES.get(tensor.dtype)
        if item_bytes is None or len(tensor.shape) < 2 or not name.endswith("weight"):
            other_bytes += tensor.size_bytes
        else:
            matrices.append(Matrix(name, tensor.shape[-1], tensor.size_bytes // item_bytes, item_bytes))
    return matrices, other_bytes


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """What the headers of a model's files say, by the names of tensors. Raises as `read_header`."""
    return {name: tensor for file in weight_files(directory) for name, tensor in read_header(file).items()}
