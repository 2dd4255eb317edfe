"""What MLX computes on, in a person's words."""

from __future__ import annotations


def device_name(device: str, *, metal: bool) -> str:
    """`CPU`, `GPU (Metal)` or `GPU (CUDA)`, for MLX's own `Device(gpu, 0)`."""
    if "gpu" not in device:
        return "CPU"
    return "GPU (Metal)" if metal else "GPU (CUDA)"
