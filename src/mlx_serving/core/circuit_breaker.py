"""A circuit breaker: it spares a worker that keeps failing, and its callers the wait for another failure.

    Closed ──failure_threshold failures within failure_window_s──▶ Open
    Open ──first call after recovery_timeout_s──▶ HalfOpen
    HalfOpen ──half_open_success_threshold successes──▶ Closed
    HalfOpen ──one failure──▶ Open

Closed admits every call. Failures older than the window are forgotten. The failure that reaches the threshold opens
the breaker. Open rejects every call and says how long it will stay open. The first call after that time makes it
HalfOpen and is admitted as a probe. HalfOpen rejects calls while `half_open_max_calls` probes are under way. A probe
that succeeds frees its place. Enough successes close the breaker with a clean record. One failed probe opens it for
another `recovery_timeout_s`. A call that its caller abandoned counts as neither, but frees its probe's place. Each
transition starts a new epoch: a result counts only in the epoch that admitted its call.

The shell reports exactly one result for each call that was admitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias, assert_never

from mlx_serving.core.bounds import at_least, greater_than
from mlx_serving.errors import GenerationError, ProtocolError, WorkerDied


@dataclass(frozen=True, slots=True)
class CircuitBreakerPolicy:
    """Times in seconds."""

    failure_threshold: int = 5
    failure_window_s: float = 60.0
    recovery_timeout_s: float = 10.0
    half_open_max_calls: int = 1
    half_open_success_threshold: int = 2

    def __post_init__(self) -> None:
        at_least("failure_threshold", self.failure_threshold, 1)
        greater_than("failure_window_s", self.failure_window_s, 0)
        greater_than("recovery_timeout_s", self.recovery_timeout_s, 0)
        at_least("half_open_max_calls", self.half_open_max_calls, 1)
        at_least("half_open_success_threshold", self.half_open_success_threshold, 1)


@dataclass(frozen=True, slots=True)
class Closed:
    """`failures`: when calls failed, oldest first, as far as the window reached at the last failure."""

    failures: tuple[float, ...] = ()
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Open:
    until: float
    epoch: int


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """`in_flight` probes have no result yet, `successes` had a good one."""

    in_flight: int
    successes: int
    epoch: int


CircuitState: TypeAlias = Closed | Open | HalfOpen


@dataclass(frozen=True, slots=True)
class CallRequested:
    pass


@dataclass(frozen=True, slots=True)
class CallSucceeded:
    epoch: int


@dataclass(frozen=True, slots=True)
class CallFailed:
    epoch: int


@dataclass(frozen=True, slots=True)
class CallAbandoned:
    """The call ended without telling anything about the worker: its caller left, or its request was bad."""

    epoch: int


CallResult: TypeAlias = CallSucceeded | CallFailed | CallAbandoned
CircuitEvent: TypeAlias = CallRequested | CallResult


class Reason(StrEnum):
    FAILURE_THRESHOLD_EXCEEDED = "failure threshold exceeded"
    RECOVERY_TIMEOUT_EXPIRED = "recovery timeout expired"
    HALF_OPEN_FAILURE = "half-open failure"
    HALF_OPEN_SUCCESS = "half-open success"


@dataclass(frozen=True, slots=True)
class Admit:
    """Let the call through; its result carries `epoch` back."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse the call; another may be admitted in about `retry_after` seconds."""

    retry_after: float


@dataclass(frozen=True, slots=True)
class Transition:
    """For events, logs and metrics."""

    previous: CircuitState
    current: CircuitState
    reason: Reason


CircuitEffect: TypeAlias = Admit | Reject | Transition
Step: TypeAlias = tuple[CircuitState, tuple[CircuitEffect, ...]]


def result_of(error: BaseException | None, epoch: int) -> CallResult:
    """What the end of a call tells about the worker. None is success.

    Its death, a broken protocol and a failed generation count as failures. Other errors (a bad request, a full queue,
    a caller's deadline or departure) are no fault of the worker.
    """
    match error:
        case None:
            return CallSucceeded(epoch)
        case WorkerDied() | ProtocolError() | GenerationError():
            return CallFailed(epoch)
        case _:
            return CallAbandoned(epoch)


def step(state: CircuitState, event: CircuitEvent, now: float, policy: CircuitBreakerPolicy) -> Step:
    """The next state, and what the shell must do, in order."""
    match state:
        case Closed():
            return _closed(state, event, now, policy)
        case Open():
            return _open(state, event, now)
        case HalfOpen():
            return _half_open(state, event, now, policy)
        case _:
            assert_never(state)


def _move(previous: CircuitState, current: CircuitState, reason: Reason, *effects: CircuitEffect) -> Step:
    return current, (Transition(previous, current, reason), *effects)


def _closed(state: Closed, event: CircuitEvent, now: float, policy: CircuitBreakerPolicy) -> Step:
    match event:
        case CallRequested():
            return state, (Admit(state.epoch),)
        case CallFailed():
            if event.epoch != state.epoch:
                return state, ()
            failures = (*(at for at in state.failures if now - at < policy.failure_window_s), now)
            if len(failures) < policy.failure_threshold:
                return Closed(failures, state.epoch), ()
            opened = Open(now + policy.recovery_timeout_s, state.epoch + 1)
            return _move(state, opened, Reason.FAILURE_THRESHOLD_EXCEEDED)
        case CallSucceeded() | CallAbandoned():
            return state, ()
        case _:
            assert_never(event)


def _open(state: Open, event: CircuitEvent, now: float) -> Step:
    match event:
        case CallRequested():
            if now < state.until:
                return state, (Reject(state.until - now),)
            epoch = state.epoch + 1
            probing = HalfOpen(in_flight=1, successes=0, epoch=epoch)
            return _move(state, probing, Reason.RECOVERY_TIMEOUT_EXPIRED, Admit(epoch))
        case CallSucceeded() | CallFailed() | CallAbandoned():
            return state, ()
        case _:
            assert_never(event)


def _half_open(state: HalfOpen, event: CircuitEvent, now: float, policy: CircuitBreakerPolicy) -> Step:
    match event:
        case CallRequested():
            if state.in_flight < policy.half_open_max_calls:
                return HalfOpen(state.in_flight + 1, state.successes, state.epoch), (Admit(state.epoch),)
            # Nobody knows when a probe ends; if it ends badly, this is how long the breaker stays open.
            return state, (Reject(policy.recovery_timeout_s),)
        case CallSucceeded():
            if event.epoch != state.epoch:
                return state, ()
            if state.successes + 1 < policy.half_open_success_threshold:
                return HalfOpen(state.in_flight - 1, state.successes + 1, state.epoch), ()
            return _move(state, Closed((), state.epoch + 1), Reason.HALF_OPEN_SUCCESS)
        case CallFailed():
            if event.epoch != state.epoch:
                return state, ()
            opened = Open(now + policy.recovery_timeout_s, state.epoch + 1)
            return _move(state, opened, Reason.HALF_OPEN_FAILURE)
        case CallAbandoned():
            if event.epoch != state.epoch:
                return state, ()
            return HalfOpen(state.in_flight - 1, state.successes, state.epoch), ()
        case _:
            assert_never(event)
