"""The policies of `core` as people configure them: the same records with a description and limits for every field.

Each class is the policy it extends, so it is handed to the code that obeys that policy as it is. Limits stand here a
second time because only a limit on the field itself lets every wrong field be reported at once and at its own path;
defaults are taken from the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from mlx_serving.core.batch_queue import BatchQueuePolicy
from mlx_serving.core.circuit_breaker import CircuitBreakerPolicy
from mlx_serving.core.memory_budget import MemoryPolicy
from mlx_serving.core.retry import BackoffPolicy, RetryPolicy
from mlx_serving.core.worker_lifecycle import WorkerPolicy

_BACKOFF = BackoffPolicy()
_BATCH_QUEUE = BatchQueuePolicy()
_BREAKER = CircuitBreakerPolicy()
_MEMORY = MemoryPolicy()
_RETRY = RetryPolicy()
_WORKER = WorkerPolicy()

MIN_MESSAGE_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 1024**3

MaxDelay = Annotated[float, Field(ge=0, description="Longest wait, in seconds; at least `initial_delay_s`.")]


@dataclass(frozen=True, slots=True)
class BackoffConfig(BackoffPolicy):
    """Exponential back-off."""

    initial_delay_s: Annotated[float, Field(ge=0, description="Wait before the first new attempt, in seconds.")] = (
        _BACKOFF.initial_delay_s
    )
    multiplier: Annotated[float, Field(ge=1, description="Each wait is this many times the one before.")] = (
        _BACKOFF.multiplier
    )
    max_delay_s: MaxDelay = _BACKOFF.max_delay_s
    jitter: Annotated[
        float, Field(ge=0, le=1, description="Each wait is moved at random by up to this fraction of itself.")
    ] = _BACKOFF.jitter


@dataclass(frozen=True, slots=True)
class RetryBackoffConfig(BackoffConfig):
    """Exponential back-off between attempts."""

    # Somebody is waiting for a retried call, so its longest wait is shorter.
    initial_delay_s: Annotated[float, Field(ge=0, description="Wait before the first retry, in seconds.")] = (
        _RETRY.backoff.initial_delay_s
    )
    max_delay_s: MaxDelay = _RETRY.backoff.max_delay_s


@dataclass(frozen=True, slots=True)
class RetryConfig(RetryPolicy):
    """How calls that can be repeated safely are repeated."""

    max_attempts: Annotated[
        int, Field(ge=1, description="Attempts in all, the first one included; 1 never retries.")
    ] = _RETRY.max_attempts
    backoff: RetryBackoffConfig = RetryBackoffConfig()


@dataclass(frozen=True, slots=True)
class CircuitBreakerConfig(CircuitBreakerPolicy):
    """When calls to a failing worker are answered at once with an error."""

    failure_threshold: Annotated[
        int, Field(ge=1, description="Failures within `failure_window_s` that open the breaker.")
    ] = _BREAKER.failure_threshold
    failure_window_s: Annotated[float, Field(gt=0, description="How long a failure counts, in seconds.")] = (
        _BREAKER.failure_window_s
    )
    recovery_timeout_s: Annotated[
        float, Field(gt=0, description="How long an open breaker rejects calls before it tries one, in seconds.")
    ] = _BREAKER.recovery_timeout_s
    half_open_max_calls: Annotated[
        int, Field(ge=1, description="Trial calls under way at the same time while the breaker is half open.")
    ] = _BREAKER.half_open_max_calls
    half_open_success_threshold: Annotated[
        int, Field(ge=1, description="Trial calls that must succeed before the breaker closes.")
    ] = _BREAKER.half_open_success_threshold


@dataclass(frozen=True, slots=True)
class BatchQueueConfig(BatchQueuePolicy):
    """How small calls, such as counting tokens, share messages to the worker."""

    max_batch_size: Annotated[
        int, Field(ge=1, le=10_000, description="Calls in one message at most; 1 sends every call alone.")
    ] = _BATCH_QUEUE.max_batch_size
    max_text_chars: Annotated[
        int, Field(ge=0, description="A longer text goes alone and at once, so that others need not wait for it.")
    ] = _BATCH_QUEUE.max_text_chars


@dataclass(frozen=True, slots=True)
class MemoryConfig(MemoryPolicy):
    """How much memory the worker plans with."""

    share: Annotated[
        float,
        Field(
            ge=0.1,
            le=1,
            description="Part that is planned with of what the machine, its GPU, a cgroup or a resource limit allows; "
            "the rest is for what nobody foresees.",
        ),
    ] = _MEMORY.share
    limit_bytes: Annotated[
        int | None,
        Field(ge=1, description="Memory for weights, caches and steps together at most, in bytes; null: see `share`."),
    ] = _MEMORY.limit_bytes
    kv_cache_bytes: Annotated[
        int | None,
        Field(ge=1, description="Memory for the KV caches of all requests at most, in bytes; null: what is left."),
    ] = _MEMORY.kv_cache_bytes
    buffer_cache_bytes: Annotated[
        int | None,
        Field(
            ge=0,
            description="Memory of freed buffers that MLX keeps for reuse at most, in bytes; null is a sixteenth of "
            "all, but no more than 2 GiB.",
        ),
    ] = _MEMORY.buffer_cache_bytes
    prefill_bytes: Annotated[
        int | None,
        Field(
            ge=1,
            description="Memory that computing prompts may take besides their KV caches, in bytes; they are computed "
            "in smaller pieces if need be. Null is a sixteenth of all, but no more than 1 GiB.",
        ),
    ] = _MEMORY.prefill_bytes


@dataclass(frozen=True, slots=True)
class WorkerConfig(WorkerPolicy):
    """The worker process and how it is kept alive."""

    startup_timeout_s: Annotated[
        float, Field(gt=0, description="Time a new worker has to answer the handshake, in seconds.")
    ] = _WORKER.startup_timeout_s
    shutdown_timeout_s: Annotated[
        float, Field(gt=0, description="Time a worker has to end after it was asked to, in seconds; then SIGTERM.")
    ] = _WORKER.shutdown_timeout_s
    terminate_timeout_s: Annotated[
        float, Field(gt=0, description="Time a worker has to end after SIGTERM, in seconds; then SIGKILL.")
    ] = _WORKER.terminate_timeout_s
    heartbeat_interval_s: Annotated[
        float, Field(gt=0, description="Time between two heartbeats of the worker, in seconds.")
    ] = _WORKER.heartbeat_interval_s
    heartbeat_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="A worker that is silent for so long is killed and restarted, in seconds; "
            "at least twice `heartbeat_interval_s`.",
        ),
    ] = _WORKER.heartbeat_timeout_s
    stall_timeout_s: Annotated[
        float,
        Field(gt=0, description="A worker that has work but finishes no step for so long is restarted, in seconds."),
    ] = _WORKER.stall_timeout_s
    max_restarts: Annotated[
        int, Field(ge=0, description="Deaths within `restart_window_s` that are followed by a restart.")
    ] = _WORKER.max_restarts
    restart_window_s: Annotated[float, Field(gt=0, description="How long a death counts, in seconds.")] = (
        _WORKER.restart_window_s
    )
    give_up_pause_s: Annotated[
        float,
        Field(gt=0, description="After too many deaths: time before a request may start a worker again, in seconds."),
    ] = _WORKER.give_up_pause_s
    backoff: BackoffConfig = field(default_factory=BackoffConfig)
    blas: Annotated[
        str,
        Field(
            min_length=1,
            description="BLAS library preloaded into the worker (Linux): `auto` finds the fastest installed one, "
            "`none` preloads nothing, anything else is the path of a shared library.",
        ),
    ] = "auto"
    max_message_bytes: Annotated[
        int,
        Field(
            ge=MIN_MESSAGE_BYTES,
            le=MAX_MESSAGE_BYTES,
            description="Largest message between the two processes, in bytes; pictures are in it as base64.",
        ),
    ] = 64 * 1024**2
    python: Annotated[
        str | None,
        Field(min_length=1, description="Python interpreter of the worker; null means the one that runs the server."),
    ] = None
