"""How large a model on this machine is: from its config.json and the headers of its weights, which are not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from mlx_serving.catalog.safetensors import read_header
from mlx_serving.core.recommendations import ModelSize, size_from_config
from mlx_serving.errors import ModelLoadError

_FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def measure(name: str, directory: Path) -> ModelSize:
    """Raises `ModelLoadError` for a directory whose files are damaged."""
    sizes: dict[str, int] = {}
    try:
        config = msgspec.json.decode((directory / "config.json").read_bytes(), type=dict[str, Any])
        for file in directory.glob("*.safetensors"):
            for tensor in read_header(file).values():
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
    )
