"""When to try again, and how long to wait before it.

The wait before retry n (from 0) is `initial_delay_s * multiplier ** n`, moved at random by up to `jitter` of itself
either way, so that callers that failed together do not return together. It never exceeds `max_delay_s`.
Only an error that says of itself that it is retryable is retried, and only until `max_attempts` attempts were made. An
attempt that a worker's death ended counts as much as that death says about it: see `core.inquest`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_serving.core.bounds import at_least, between
from mlx_serving.core.inquest import LOSS
from mlx_serving.errors import EngineError, WorkerDied


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """Exponential back-off; times in seconds, `jitter` a fraction of the delay."""

    initial_delay_s: float = 0.1
    multiplier: float = 2.0
    max_delay_s: float = 30.0
    jitter: float = 0.25

    def __post_init__(self) -> None:
        at_least("initial_delay_s", self.initial_delay_s, 0)
        at_least("multiplier", self.multiplier, 1)
        at_least("max_delay_s", self.max_delay_s, 0)
        if self.max_delay_s < self.initial_delay_s:
            raise ValueError(
                f"max_delay_s must be at least initial_delay_s ({self.initial_delay_s}), got {self.max_delay_s}"
            )
        between("jitter", self.jitter, 0, 1)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`max_attempts` counts the first one: 1 never retries."""

    max_attempts: int = 3
    backoff: BackoffPolicy = BackoffPolicy(initial_delay_s=0.1, max_delay_s=5.0)

    def __post_init__(self) -> None:
        at_least("max_attempts", self.max_attempts, 1)


def delay(policy: BackoffPolicy, attempt: float, uniform: float) -> float:
    """Seconds to wait before retry `attempt`, counted from 0. `uniform` in [0, 1) decides the jitter."""
    try:
        base = min(policy.max_delay_s, policy.initial_delay_s * policy.multiplier**attempt)
    except OverflowError:
        base = policy.max_delay_s if policy.initial_delay_s > 0 else 0.0
    return min(policy.max_delay_s, base * (1 + policy.jitter * (2 * uniform - 1)))


def should_retry(error: BaseException, attempt: float, policy: RetryPolicy) -> bool:
    """Whether to try again after attempt number `attempt` (from 0) ended in `error`."""
    return isinstance(error, EngineError) and error.retryable and attempt + 1 < policy.max_attempts


def spent(error: EngineError) -> float:
    """By how much an attempt that ended in `error` raises their number."""
    return LOSS[error.origin] if isinstance(error, WorkerDied) else 1
