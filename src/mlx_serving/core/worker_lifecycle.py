"""The life of the worker process, as the supervisor sees it.

    Stopped ────────── start ────────────────────────▶ Starting
    Starting ───────── handshake ────────────────────▶ Ready
    Starting, Ready ── exit ─────────────────────────▶ BackingOff, or GaveUp
    Starting ───────── stop, start-up overdue ───────▶ Draining
    Ready ──────────── stop, restart, hang ──────────▶ Draining
    Draining ───────── exit ─────────────────────────▶ Stopped, Starting, BackingOff or GaveUp, by what it drained for
    BackingOff ─────── the wait is over, restart ────▶ Starting
    GaveUp ─────────── start after a pause, restart ─▶ Starting
    BackingOff, GaveUp ── stop ──────────────────────▶ Stopped

Starting has a deadline; a child that misses it is killed. Ready dies by its own exit, or is killed when no heartbeat
comes (the process is stopped or its interpreter is stuck) or when heartbeats come but work makes no progress (the
device is stuck). A tick that comes late means that this process itself slept, so nobody is accused of silence.
Draining asks the child to shut down, then terminates it, then kills it, each after its time. A planned restart spawns
at once; after a death the restart waits, longer each time; a worker that stayed up for a whole window starts from
scratch, and so does one that served anybody, for it was good for something. Too many deaths within the window end in
GaveUp with the reason; if the last one came from outside, four times as many are allowed. A start that is asked for
after a pause heals it, and so does a restart at any time, which skips the wait of BackingOff too. Every child that is
spawned is seen to exit exactly once, and a new one is spawned only after that. What a child was doing is declared lost
exactly once, when it exits unasked or is told to go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from mlx_serving.core.bounds import at_least, greater_than
from mlx_serving.core.inquest import LOSS
from mlx_serving.core.retry import BackoffPolicy, delay
from mlx_serving.core.worker_states import (
    AskShutdown,
    BackingOff,
    Beat,
    Cause,
    Deaths,
    Draining,
    DrainStage,
    GaveUp,
    HandshakeDone,
    Kill,
    ProcessExited,
    Ready,
    RestartRequested,
    Spawn,
    Starting,
    StartRequested,
    Step,
    Stopped,
    StopRequested,
    Terminate,
    Tick,
    WorkerEvent,
    WorkerLost,
    WorkerState,
)


@dataclass(frozen=True, slots=True)
class WorkerPolicy:
    """Times in seconds. `max_restarts` deaths within `restart_window_s` are restarted, one more gives up."""

    startup_timeout_s: float = 120.0
    shutdown_timeout_s: float = 5.0
    terminate_timeout_s: float = 2.0
    heartbeat_interval_s: float = 1.0
    heartbeat_timeout_s: float = 10.0
    stall_timeout_s: float = 300.0
    max_restarts: int = 5
    restart_window_s: float = 300.0
    give_up_pause_s: float = 30.0
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)

    def __post_init__(self) -> None:
        for name in (
            "startup_timeout_s",
            "shutdown_timeout_s",
            "terminate_timeout_s",
            "heartbeat_interval_s",
            "heartbeat_timeout_s",
            "stall_timeout_s",
            "restart_window_s",
            "give_up_pause_s",
        ):
            greater_than(name, getattr(self, name), 0)
        if self.heartbeat_timeout_s < 2 * self.heartbeat_interval_s:
            raise ValueError(
                "heartbeat_timeout_s must be at least twice heartbeat_interval_s "
                f"({self.heartbeat_interval_s}), got {self.heartbeat_timeout_s}"
            )
        at_least("max_restarts", self.max_restarts, 0)


def wake_at(state: WorkerState, policy: WorkerPolicy) -> float | None:
    """When the shell must send the next `Tick`, if nothing else happens before."""
    match state:
        case Starting() | Draining():
            return state.deadline
        case Ready():
            silence = state.last_beat + policy.heartbeat_timeout_s
            return min(silence, state.last_progress + policy.stall_timeout_s) if state.busy else silence
        case BackingOff():
            return state.until
        case Stopped() | GaveUp():
            return None
        case _:
            assert_never(state)


def step(state: WorkerState, event: WorkerEvent, now: float, policy: WorkerPolicy) -> Step:
    """The next state, and what the shell must do, in order."""
    match state:
        case Stopped():
            return _spawn((), now, policy) if isinstance(event, StartRequested) else (state, ())
        case Starting():
            return _starting(state, event, now, policy)
        case Ready():
            return _ready(state, event, now, policy)
        case Draining():
            return _draining(state, event, now, policy)
        case BackingOff():
            return _backing_off(state, event, now, policy)
        case GaveUp():
            return _gave_up(state, event, now, policy)
        case _:
            assert_never(state)


def _spawn(deaths: Deaths, now: float, policy: WorkerPolicy) -> Step:
    return Starting(now + policy.startup_timeout_s, deaths), (Spawn(),)


def _kill(cause: Cause, deaths: Deaths, now: float, policy: WorkerPolicy) -> Step:
    killed = Draining(DrainStage.KILLED, now + policy.terminate_timeout_s, cause, restart=True, deaths=deaths)
    return killed, (WorkerLost(cause), Kill())


def _died(deaths: Deaths, cause: Cause, end: ProcessExited, now: float, policy: WorkerPolicy) -> WorkerState:
    recent = (now,) if end.served else (*(at for at in deaths if now - at < policy.restart_window_s), now)
    if len(recent) * LOSS[end.origin] > policy.max_restarts:
        return GaveUp(now, len(recent), cause)
    return BackingOff(now + delay(policy.backoff, len(recent) - 1, end.uniform), recent)


def _drain(deaths: Deaths, now: float, policy: WorkerPolicy, *, restart: bool) -> Step:
    cause = Cause.RESTART if restart else Cause.STOP
    draining = Draining(DrainStage.ASKED, now + policy.shutdown_timeout_s, cause, restart, deaths)
    return draining, (WorkerLost(cause), AskShutdown())


def _starting(state: Starting, event: WorkerEvent, now: float, policy: WorkerPolicy) -> Step:
    match event:
        case HandshakeDone():
            return Ready(since=now, last_beat=now, last_progress=now, deaths=state.deaths), ()
        case ProcessExited():
            return _died(state.deaths, Cause.EXITED, event, now, policy), (WorkerLost(Cause.EXITED),)
        case Tick():
            if now < state.deadline:
                return state, ()
            if _overslept(state.deadline, now, policy):
                return Starting(now + policy.startup_timeout_s, state.deaths), ()
            return _kill(Cause.STARTUP_TIMEOUT, state.deaths, now, policy)
        case StopRequested():
            return _drain(state.deaths, now, policy, restart=False)
        case StartRequested() | RestartRequested() | Beat():
            return state, ()
        case _:
            assert_never(event)


def _ready(state: Ready, event: WorkerEvent, now: float, policy: WorkerPolicy) -> Step:
    match event:
        case Beat():
            # A beat after its time was not missed by anybody who was awake: what is old in it says nothing.
            awoken = now >= state.last_beat + policy.heartbeat_timeout_s
            moved = event.progress != state.progress or not event.busy or not state.busy or awoken
            return (
                Ready(
                    since=state.since,
                    last_beat=now,
                    last_progress=now if moved else state.last_progress,
                    progress=event.progress,
                    busy=event.busy,
                    deaths=state.deaths,
                ),
                (),
            )
        case Tick():
            return _check_pulse(state, now, policy)
        case ProcessExited():
            return _died(state.deaths, Cause.EXITED, event, now, policy), (WorkerLost(Cause.EXITED),)
        case StopRequested():
            return _drain(state.deaths, now, policy, restart=False)
        case RestartRequested():
            return _drain(state.deaths, now, policy, restart=True)
        case StartRequested() | HandshakeDone():
            return state, ()
        case _:
            assert_never(event)


def _overslept(due: float, now: float, policy: WorkerPolicy) -> bool:
    """Whether a tick for `due` shows that we were asleep ourselves (a suspended laptop, a stopped terminal).

    In more than a heartbeat's interval a healthy child speaks; that may lie unread in the pipe, or it slept as well.
    """
    return now - due > policy.heartbeat_interval_s


def _check_pulse(state: Ready, now: float, policy: WorkerPolicy) -> Step:
    silence_due = state.last_beat + policy.heartbeat_timeout_s
    due = min(silence_due, state.last_progress + policy.stall_timeout_s) if state.busy else silence_due
    if now < due:
        return state, ()
    if _overslept(due, now, policy):
        return Ready(state.since, now, now, state.progress, state.busy, state.deaths), ()
    cause = Cause.NO_HEARTBEAT if now >= silence_due else Cause.NO_PROGRESS
    return _kill(cause, state.deaths, now, policy)


def _draining(state: Draining, event: WorkerEvent, now: float, policy: WorkerPolicy) -> Step:
    match event:
        case ProcessExited():
            if not state.restart:
                return Stopped(), ()
            if state.cause in (Cause.RESTART, Cause.STOP):  # a start was asked for while it stopped
                return _spawn(state.deaths, now, policy)
            return _died(state.deaths, state.cause, event, now, policy), ()
        case Tick():
            return _press_on(state, now, policy)
        case StopRequested():
            return Draining(state.stage, state.deadline, state.cause, restart=False, deaths=state.deaths), ()
        case StartRequested():
            return Draining(state.stage, state.deadline, state.cause, restart=True, deaths=state.deaths), ()
        case HandshakeDone() | Beat() | RestartRequested():
            return state, ()
        case _:
            assert_never(event)


def _press_on(state: Draining, now: float, policy: WorkerPolicy) -> Step:
    if now < state.deadline:
        return state, ()
    deadline = now + policy.terminate_timeout_s
    match state.stage:
        case DrainStage.ASKED:
            stage, effect = DrainStage.TERMINATED, Terminate()
        case DrainStage.TERMINATED | DrainStage.KILLED:
            stage, effect = DrainStage.KILLED, Kill()
        case _:
            assert_never(state.stage)
    return Draining(stage, deadline, state.cause, state.restart, state.deaths), (effect,)


def _backing_off(state: BackingOff, event: WorkerEvent, now: float, policy: WorkerPolicy) -> Step:
    match event:
        case Tick():
            return _spawn(state.deaths, now, policy) if now >= state.until else (state, ())
        case RestartRequested():
            return _spawn(state.deaths, now, policy)
        case StopRequested():
            return Stopped(), ()
        case StartRequested() | HandshakeDone() | Beat() | ProcessExited():
            return state, ()
        case _:
            assert_never(event)


def _gave_up(state: GaveUp, event: WorkerEvent, now: float, policy: WorkerPolicy) -> Step:
    match event:
        case StartRequested():
            return _spawn((), now, policy) if now - state.since >= policy.give_up_pause_s else (state, ())
        case RestartRequested():
            return _spawn((), now, policy)
        case StopRequested():
            return Stopped(), ()
        case HandshakeDone() | Beat() | Tick() | ProcessExited():
            return state, ()
        case _:
            assert_never(event)
