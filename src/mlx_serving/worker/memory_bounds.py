"""What ends this process, or the machine, if models take more: read from the machine each time it is asked for."""

from __future__ import annotations

import resource
import sys
from typing import cast

import mlx.core as mx
import psutil

from mlx_serving.core.memory_budget import Bound
from mlx_serving.machine.cgroup import memory_groups


class MemoryBounds:
    """Make it before any model is loaded: what the process takes then is not the models'. `sharers` workers, this one
    included, use the device."""

    def __init__(self, sharers: int) -> None:
        self._sharers = sharers
        _set_up_blas()
        self._process = psutil.Process()
        self._base = self._process.memory_info()
        self._groups = memory_groups()
        self._working_set = working_set_bytes()
        self._is_gpu = mx.default_device() == mx.Device(mx.gpu)
        self._device_limit = mx.get_memory_limit()

    def read(self) -> list[Bound]:
        """At least one; all that hold for the memory that this machine's device uses."""
        if self._is_gpu and self._working_set is None:
            # It has memory of its own: the machine's is not what runs out.
            return [self._shared("the GPU's memory", self._device_limit)]
        bounds = [] if self._working_set is None else [self._shared("Metal's working set", self._working_set)]
        ours = self._ours()
        ram = psutil.virtual_memory()
        bounds.append(self._shared("RAM", ram.total, ram.total - ram.available - ours, self._base.rss))
        if sys.platform == "linux":
            for group in self._groups:
                if (found := group.read()) is not None:
                    bounds.append(self._shared("a cgroup's limit", found.limit, found.used - ours, self._base.rss))
            for name, kind, base in (
                ("RLIMIT_AS", resource.RLIMIT_AS, self._base.vms),
                ("RLIMIT_DATA", resource.RLIMIT_DATA, self._base.data),
            ):
                limit = resource.getrlimit(kind)[0]
                if limit != resource.RLIM_INFINITY:
                    bounds.append(Bound(name, limit, 0, base))
        return bounds

    def _shared(self, name: str, limit: int, others: int = 0, base: int = 0) -> Bound:
        return Bound(name, limit, max(0, others), base, self._sharers)

    def _ours(self) -> int:
        """Bytes of RAM that this process takes. Metal's buffers may not be counted among its resident ones."""
        resident = self._process.memory_info().rss
        if self._working_set is None:
            return resident
        return max(resident, self._base.rss + mx.get_active_memory() + mx.get_cache_memory())


def _set_up_blas() -> None:
    """It takes its buffers with the first product, and they are not the models'."""
    square = mx.ones((256, 256))
    mx.eval(square @ square)  # pyright: ignore[reportUnknownMemberType]  MLX's stub leaves its arguments untyped


def working_set_bytes() -> int | None:
    """What Metal recommends to stay below; None without Metal."""
    if not mx.metal.is_available():
        return None
    return cast("int", mx.device_info()["max_recommended_working_set_size"])
