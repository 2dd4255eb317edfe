"""What a worker tells of itself: the result of `runtime/telemetry`. Names are the ancestor's where it had them.

Counts are since the worker's start, latencies those of late. Sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_serving.core.latency import Latency
from mlx_serving.core.schedule.scheduling import SchedulerLoad
from mlx_serving.core.speculation.policy import SpeculationCounts


@dataclass(frozen=True, slots=True)
class GenerationTelemetry:
    """`calls` are generations that ended, however they did; `total_tokens` were delivered, by those that go on too.
    `tokens_per_second` is over the time in which the device worked; averages and latencies are of those that
    completed."""

    calls: int
    aborted: int
    total_tokens: int
    avg_tokens_per_call: float
    tokens_per_second: float
    latency_ms: Latency | None
    time_to_first_token_ms: Latency | None


@dataclass(frozen=True, slots=True)
class TokenizationTelemetry:
    """What the tokenizer thread has done (`calls`) and has yet to do (`pending`): prompts, and calls about tokens."""

    calls: int
    pending: int
    latency_ms: Latency | None


@dataclass(frozen=True, slots=True)
class ErrorTelemetry:
    """Generations that failed; `timeouts` are those whose time was over. `error_rate` is their share of all calls."""

    total: int
    timeouts: int
    error_rate: float


@dataclass(frozen=True, slots=True)
class PrefixTelemetry:
    """The prefix cache: what it keeps (`bytes`, in so many `entries`), what it may keep (None: no bound is known yet),
    and what sequences found that began: `hits` found anything, together `hit_tokens`; `missed_tokens` were not found.
    `miss_reasons` counts why no more was found (see `core.prefix.index`)."""

    bytes: int
    limit_bytes: int | None
    entries: int
    hits: int
    misses: int
    hit_tokens: int
    missed_tokens: int
    evictions: int
    miss_reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class PrefixDiskTelemetry:
    """The folder of the prefix cache as this worker knows it: `bytes` are those of all `records` and of the `pending`
    ones, which are yet to be written. Since the start, so many records were `read` (`read_tokens` of them were used),
    `written`, `given_up` before they were written, `deleted` for want of room or for their age, and found `damaged`."""

    path: str
    bytes: int
    limit_bytes: int
    records: int
    pending: int
    read: int
    read_tokens: int
    written: int
    given_up: int
    deleted: int
    damaged: int


@dataclass(frozen=True, slots=True)
class CacheTelemetry:
    """`kv_bytes` are what the caches of all sequences take, their room to grow included. `prefix_disk` is None where
    nothing is kept on disk."""

    kv_bytes: int
    kv_bytes_by_model: dict[str, int]
    prefixes: PrefixTelemetry
    prefix_disk: PrefixDiskTelemetry | None = None


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """MLX's allocator: in use, kept for reuse, and the most that was in use; and what bounds them."""

    active_bytes: int
    cache_bytes: int
    peak_bytes: int
    limit_bytes: int
    cache_limit_bytes: int


@dataclass(frozen=True, slots=True)
class MetalDevice:
    """What Metal says of the device. It recommends to stay under `working_set_bytes`; at `resource_limit` buffers,
    however small, an allocation fails."""

    name: str
    memory_bytes: int
    working_set_bytes: int
    max_buffer_bytes: int
    resource_limit: int


@dataclass(frozen=True, slots=True)
class ProcessTelemetry:
    """`handles` are open file descriptors, `outbox_bytes` what the parent has not read yet."""

    pid: int
    rss_bytes: int
    vms_bytes: int
    handles: int
    threads: int
    outbox_bytes: int


@dataclass(frozen=True, slots=True)
class RuntimeTelemetry:
    """`opening` streams wait for their prompt to be tokenized; the scheduler does not know them yet. `metal` is None on
    other devices."""

    uptime_s: float
    opening: int
    scheduler: SchedulerLoad
    generation: GenerationTelemetry
    tokenization: TokenizationTelemetry
    errors: ErrorTelemetry
    caches: CacheTelemetry
    memory: DeviceMemory
    metal: MetalDevice | None
    process: ProcessTelemetry
    speculation: SpeculationCounts = field(default_factory=SpeculationCounts)
