"""What is known of the workers that died: reports for `health`, and errors for those who lost something."""

from __future__ import annotations

import time
from collections import deque
from typing import assert_never

from mlx_serving.core.crash_finding import Finding, diagnose
from mlx_serving.core.serving import CrashReport
from mlx_serving.core.worker_lifecycle import Cause, GaveUp, WorkerPolicy
from mlx_serving.engine.worker_process import Exit
from mlx_serving.errors import DeathOrigin, WorkerDied, WorkerGaveUp, WorkerHung
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.supervisor")
_KEPT = 10

_OWN_SIGNALS = frozenset({"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP", "SIGXCPU"})
"""Signals that a process brings upon itself; any other is somebody's."""


class CrashHistory:
    def __init__(self, policy: WorkerPolicy) -> None:
        self.policy = policy
        self._reports: deque[CrashReport] = deque(maxlen=_KEPT)

    @property
    def last(self) -> CrashReport | None:
        return self._reports[-1] if self._reports else None

    def record(self, end: Exit, cause: Cause, fault: str | None, *, killed_for_memory: bool) -> Finding | None:
        """Keep and log how a worker ended; returns what it means. `fault` is what we know beyond that: why it was of no
        use to us. `killed_for_memory`: the system counted such a kill while the worker lived."""
        by_itself = cause is Cause.EXITED and fault is None  # else the signal was ours and tells nothing
        finding = diagnose(
            end.stderr_tail,
            end.exit_code,
            end.signal if by_itself else None,
            killed_for_memory=killed_for_memory,
        )
        report = CrashReport(
            at=time.time(),
            cause=fault if fault is not None else str(cause),
            exit_code=end.exit_code,
            signal=end.signal_name,
            finding=finding.explanation if finding is not None else None,
            advice=finding.advice if finding is not None else None,
            stderr_tail=end.stderr_tail,
        )
        self._reports.append(report)
        _log.error(
            "worker died",
            pid=end.pid,
            cause=report.cause,
            exit_code=report.exit_code,
            signal=report.signal,
            finding=report.finding,
        )
        return finding

    def loss(self, cause: Cause) -> WorkerDied:
        """The error for what was under way in a worker that had to go for `cause`, or that exited just now."""
        match cause:
            case Cause.NO_HEARTBEAT:
                limit = self.policy.heartbeat_timeout_s
                return WorkerHung(
                    f"The worker gave no sign of life for {limit:g} s and was replaced",
                    origin=self.origin(cause),
                    cause=str(cause),
                )
            case Cause.NO_PROGRESS:
                limit = self.policy.stall_timeout_s
                return WorkerHung(f"The worker made no progress for {limit:g} s and was replaced", cause=str(cause))
            case Cause.STARTUP_TIMEOUT:
                limit = self.policy.startup_timeout_s
                return WorkerHung(f"The worker was not ready after {limit:g} s and was replaced", cause=str(cause))
            case Cause.STOP | Cause.RESTART:
                return WorkerDied(f"The worker is being ended: {cause}", origin=self.origin(cause), cause=str(cause))
            case Cause.EXITED:
                assert self.last is not None  # an exit is recorded before its loss is told
                return _death(self.last, self.origin(cause))
            case _:
                assert_never(cause)

    def origin(self, cause: Cause) -> DeathOrigin:
        """Who ended a worker that had to go for `cause`, or that exited just now."""
        match cause:
            case Cause.STOP | Cause.RESTART:
                return DeathOrigin.PLANNED
            case Cause.NO_HEARTBEAT:
                return DeathOrigin.OUTSIDE  # it was stopped: what computes too long still beats
            case Cause.NO_PROGRESS | Cause.STARTUP_TIMEOUT:
                return DeathOrigin.INSIDE
            case Cause.EXITED:
                assert self.last is not None  # an exit is recorded before anybody asks
                signalled = self.last.cause == Cause.EXITED and self.last.signal is not None
                outside = signalled and self.last.signal not in _OWN_SIGNALS
                return DeathOrigin.OUTSIDE if outside else DeathOrigin.INSIDE
            case _:
                assert_never(cause)

    def gave_up(self, state: GaveUp, now: float) -> WorkerGaveUp:
        """The error for who asks for a worker that is not restarted; `now` is monotonic, like the state's times."""
        assert self.last is not None  # it is the last of too many deaths
        wait = max(0.0, state.since + self.policy.give_up_pause_s - now)
        return WorkerGaveUp(
            f"The worker died {state.deaths} times in a row and restarting it was given up; "
            f"the next attempt is possible in {wait:.0f} s. Last death: {_how(self.last)}",
            retry_after=round(wait, 3),
            finding=self.last.finding,
            advice=self.last.advice,
            stderr_tail=self.last.stderr_tail or None,
        )


def _death(report: CrashReport, origin: DeathOrigin) -> WorkerDied:
    return WorkerDied(
        f"The worker process was lost: {_how(report)}",
        origin=origin,
        exit_code=report.exit_code,
        signal=report.signal,
        finding=report.finding,
        advice=report.advice,
        stderr_tail=report.stderr_tail or None,
    )


def _how(report: CrashReport) -> str:
    if report.cause != Cause.EXITED:
        return report.cause
    how = f"it ended by {report.signal}" if report.signal is not None else f"it ended with exit code {report.exit_code}"
    return f"{how}. {report.finding}" if report.finding else how
