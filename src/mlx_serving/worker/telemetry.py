"""What the worker tells of itself, gathered when it is asked for. Costs nothing in between but two sums a step."""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.core as mx
import psutil

from mlx_serving.core.runtime_telemetry import (
    CacheTelemetry,
    DeviceMemory,
    MetalDevice,
    ProcessTelemetry,
    RuntimeTelemetry,
)
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.prefix.disk import PrefixDisk
from mlx_serving.worker.tokenizer_thread import TokenizerThread


class Telemetry:
    """Belongs to the thread that owns MLX. `cache_limit_bytes` says what MLX was told to keep for reuse at most, which
    it does not tell itself."""

    def __init__(
        self,
        generation: Generation,
        tokenizers: TokenizerThread,
        outbox: Outbox,
        disk: PrefixDisk | None = None,
        *,
        cache_limit_bytes: Callable[[], int],
    ) -> None:
        self._generation = generation
        self._tokenizers = tokenizers
        self._outbox = outbox
        self._disk = disk
        self._cache_limit_bytes = cache_limit_bytes
        self._started_at = time.monotonic()
        self._process = psutil.Process()

    def read(self, *, opening: int) -> RuntimeTelemetry:
        """`opening` streams are known to nobody here yet."""
        load = self._generation.load()
        caches = self._generation.models.cache_bytes()
        outcomes = self._generation.outcomes
        return RuntimeTelemetry(
            uptime_s=time.monotonic() - self._started_at,
            opening=opening,
            scheduler=load,
            generation=outcomes.generation(load.done.prefill_s + load.done.decode_s),
            tokenization=self._tokenizers.telemetry(),
            errors=outcomes.errors(),
            caches=CacheTelemetry(
                sum(caches.values()),
                caches,
                self._generation.prefix_telemetry(),
                None if self._disk is None else self._disk.telemetry(),
            ),
            memory=self._memory(),
            metal=_metal_device(),
            process=self._process_telemetry(),
            speculation=self._generation.models.speculation(),
        )

    def _memory(self) -> DeviceMemory:
        return DeviceMemory(
            active_bytes=mx.get_active_memory(),
            cache_bytes=mx.get_cache_memory(),
            peak_bytes=mx.get_peak_memory(),
            limit_bytes=mx.get_memory_limit(),
            cache_limit_bytes=self._cache_limit_bytes(),
        )

    def _process_telemetry(self) -> ProcessTelemetry:
        with self._process.oneshot():
            memory = self._process.memory_info()
            return ProcessTelemetry(
                pid=self._process.pid,
                rss_bytes=memory.rss,
                vms_bytes=memory.vms,
                handles=self._process.num_fds(),
                threads=self._process.num_threads(),
                outbox_bytes=self._outbox.backlog_bytes,
            )


def _metal_device() -> MetalDevice | None:
    if not mx.metal.is_available():
        return None
    info = mx.device_info()
    return MetalDevice(
        name=str(info["device_name"]),
        memory_bytes=int(info["memory_size"]),
        working_set_bytes=int(info["max_recommended_working_set_size"]),
        max_buffer_bytes=int(info["max_buffer_length"]),
        resource_limit=int(info["resource_limit"]),
    )
