"""What a server says about what it serves: models, health and load, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mlx_serving.core.batch_queue import BatchQueueStats
from mlx_serving.core.response_index import ResponseCacheStats
from mlx_serving.core.runtime_telemetry import RuntimeTelemetry

ServedModelState: TypeAlias = Literal["absent", "loading", "ready", "draining", "failed"]
HealthStatus: TypeAlias = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far the load of a model is: `done` of `total` of its `stage`; bytes while its weights are read and loaded."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model that clients may name.

    `reference` is where it comes from (hub id, directory, GGUF path or alias), `created` Unix seconds,
    `context_length` tokens and `abilities`, what it can be asked for, are known once it was loaded; `error` tells why
    it is `failed`.
    At most one served model is the `default`, which answers requests that name none.

    `pinned` and `keep_alive_s` say how it stays in memory, of which its weights take `memory_bytes`; its KV caches have
    `kv_bits` a number, None as they are computed. `in_use` is how many use it now, `progress` how far its load is.
    `profile` is what holds under the name where a request is silent; an alias is the model `alias_of` under another
    name.
    """

    name: str
    reference: str
    created: int
    state: ServedModelState
    context_length: int | None = None
    error: str | None = None
    default: bool = False
    abilities: tuple[str, ...] | None = None
    revision: str | None = None
    pinned: bool = False
    keep_alive_s: float | None = None
    memory_bytes: int | None = None
    kv_bits: int | None = None
    in_use: int = 0
    progress: LoadProgress | None = None
    profile: Mapping[str, object] = field(default_factory=dict[str, object])
    alias_of: str | None = None


@dataclass(frozen=True, slots=True)
class CrashReport:
    """How a worker process ended. `at` is Unix seconds; exactly one of `exit_code` and `signal` is usually known.

    `finding` says what a known crash text means and `advice` what to do about it; `stderr_tail` is its last output.
    """

    at: float
    cause: str
    exit_code: int | None = None
    signal: str | None = None
    finding: str | None = None
    advice: str | None = None
    stderr_tail: str = ""


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """The worker process: the name of its lifecycle state, since when (Unix seconds), and what it went through.
    `kv_share` below 1 is the part of its memory for KV caches that it uses, after others died for want of memory.
    `models` are the names of those that it has."""

    state: str
    since: float
    pid: int | None = None
    restarts: int = 0
    last_crash: CrashReport | None = None
    kv_share: float = 1.0
    models: tuple[str, ...] = ()
    active_streams: int = 0


@dataclass(frozen=True, slots=True)
class HealthReport:
    """`unhealthy` needs a person; `degraded` mends itself or concerns one model; `reasons` say why."""

    status: HealthStatus
    uptime_s: float
    active_streams: int
    loaded_models: tuple[str, ...]
    workers: tuple[WorkerHealth, ...]
    reasons: tuple[str, ...] = ()

    @property
    def worker(self) -> WorkerHealth:
        """The first one, which is the only one where there are not several."""
        return self.workers[0]


@dataclass(frozen=True, slots=True)
class ReuseStats:
    """What was computed once for several. `shared` requests joined the computation of another one, `running` may be
    joined now; None where nothing is shared. `response_cache` is None where no answers are kept."""

    shared: int | None
    running: int | None
    response_cache: ResponseCacheStats | None


@dataclass(frozen=True, slots=True)
class WorkerTelemetry:
    """One worker: the name of its lifecycle state, how many there were before it, streams that it serves, and in
    `runtime` what it tells itself, counted since its start: None while it does not answer."""

    state: str
    restarts: int
    active_streams: int
    runtime: RuntimeTelemetry | None


@dataclass(frozen=True, slots=True)
class EngineTelemetry:
    """What the engine counts itself, and what its `workers` tell. `worker_state`, `worker_restarts` and `runtime` are
    those of the first, which is the only one where there are not several."""

    uptime_s: float
    active_streams: int
    worker_state: str
    worker_restarts: int
    batch_queue: BatchQueueStats
    runtime: RuntimeTelemetry | None
    workers: tuple[WorkerTelemetry, ...]
