"""How several workers share the devices of one machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

_CUDA_BUILDS = ("mlx-cuda-12", "mlx-cuda-13", "mlx-cuda")
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """What one worker gets: a device that `sharers` workers use, told by variables of its `environment`."""

    sharers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


def shares(workers: int) -> list[DeviceShare]:
    """A share for each of so many workers on this machine: each its own GPU as far as there are several."""
    return split(workers, cuda_devices(), os.cpu_count() or 1, os.environ)


def split(workers: int, gpus: Sequence[str], cpus: int, environment: Mapping[str, str]) -> list[DeviceShare]:
    """The same for a machine with these CUDA devices and processors. A worker alone gets everything, as it is."""
    if workers == 1:
        return [DeviceShare()]
    if not gpus:
        # What multiplies matrices starts a thread for each processor, in each worker.
        threads = {} if _BLAS_THREADS in environment else {_BLAS_THREADS: str(max(1, cpus // workers))}
        return [DeviceShare(workers, threads)] * workers
    return [
        DeviceShare(len(range(number % len(gpus), workers, len(gpus))), {_VISIBLE: gpus[number % len(gpus)]})
        for number in range(workers)
    ]


def cuda_devices() -> list[str]:
    """The CUDA devices that workers may use, as `CUDA_VISIBLE_DEVICES` names them; none without MLX's CUDA build."""
    if not any(_is_installed(name) for name in _CUDA_BUILDS):
        return []
    chosen = os.environ.get(_VISIBLE)
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(_NVIDIA_GPUS.glob("*"))]


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
