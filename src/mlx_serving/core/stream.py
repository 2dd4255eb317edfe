"""The life of one stream in one worker, as the parent delivers it.

    Opening ──accepted──▶ Streaming ──completed──▶ Finished
       │                      │ failed, worker lost
       └──────────────────────┴──────────────────▶ Failed
    Opening, Streaming ──abort──▶ Aborting ──the worker confirms──▶ Finished

Opening becomes Streaming when the worker accepts the request; a delta or an end that overtakes the acceptance implies
it. Deltas are delivered in order. A completion ends the stream with its reason and stats. An error of the worker ends
the stream with that error, and so does losing the worker: going on in the next one is `core.recovery`'s. An abort is
sent to the worker, whose confirmation ends the stream with reason abort; what arrives meanwhile is not delivered.
Losing the worker while aborting is a confirmation too. Exactly one ending is emitted for each stream, followed by
Release; whatever arrives after it is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from mlx_serving.core.generation import Delta, FinishReason, GenerationStats
from mlx_serving.errors import EngineError, WorkerDied


@dataclass(frozen=True, slots=True)
class Opening:
    """Submitted, not yet accepted."""


@dataclass(frozen=True, slots=True)
class Streaming:
    pass


@dataclass(frozen=True, slots=True)
class Aborting:
    """The abort was sent, the worker has not confirmed it."""


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Failed:
    error: EngineError


StreamState: TypeAlias = Opening | Streaming | Aborting | Finished | Failed


@dataclass(frozen=True, slots=True)
class Accepted:
    pass


@dataclass(frozen=True, slots=True)
class Delivered:
    """A delta of the worker, without an end: ends are events of their own."""

    delta: Delta


@dataclass(frozen=True, slots=True)
class Completed:
    """`stop` is the stop string that ended it, if one did."""

    reason: FinishReason
    stats: GenerationStats
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Errored:
    error: EngineError


@dataclass(frozen=True, slots=True)
class AbortRequested:
    pass


@dataclass(frozen=True, slots=True)
class WorkerLost:
    error: WorkerDied


StreamEvent: TypeAlias = Accepted | Delivered | Completed | Errored | AbortRequested | WorkerLost


@dataclass(frozen=True, slots=True)
class Opened:
    """The request was accepted: its caller may enter. Comes once, or not at all when the stream ends before."""


@dataclass(frozen=True, slots=True)
class Deliver:
    delta: Delta


@dataclass(frozen=True, slots=True)
class SendAbort:
    pass


@dataclass(frozen=True, slots=True)
class EndWith:
    """The good ending: what the last delta says; without stats when a lost worker was the confirmation."""

    reason: FinishReason
    stats: GenerationStats | None = None
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Raise:
    """The bad ending."""

    error: EngineError


@dataclass(frozen=True, slots=True)
class Release:
    """Free what is held for the stream: its id, its place in queues, its use of the model."""


StreamEffect: TypeAlias = Opened | Deliver | SendAbort | EndWith | Raise | Release
Step: TypeAlias = tuple[StreamState, tuple[StreamEffect, ...]]

_STREAMING = Streaming()


def step(state: StreamState, event: StreamEvent) -> Step:
    """The next state, and what the shell must do, in order."""
    match state:
        case Opening():
            return _opening(state, event)
        case Streaming():
            return _streaming(state, event)
        case Aborting():
            return _aborting(state, event)
        case Finished() | Failed():
            return state, ()
        case _:
            assert_never(state)


def _opening(state: Opening, event: StreamEvent) -> Step:
    match event:
        case Accepted():
            return _STREAMING, (Opened(),)
        case Delivered():
            return _STREAMING, (Opened(), Deliver(event.delta))
        case Completed():
            return _complete(event, Opened())
        case Errored() | WorkerLost():
            return _fail(event.error)
        case AbortRequested():
            return Aborting(), (SendAbort(),)
        case _:
            assert_never(event)


def _streaming(state: Streaming, event: StreamEvent) -> Step:
    match event:
        case Delivered():
            return state, (Deliver(event.delta),)
        case Completed():
            return _complete(event)
        case Errored() | WorkerLost():
            return _fail(event.error)
        case AbortRequested():
            return Aborting(), (SendAbort(),)
        case Accepted():
            return state, ()
        case _:
            assert_never(event)


def _aborting(state: Aborting, event: StreamEvent) -> Step:
    match event:
        case Completed():
            return _finish(FinishReason.ABORT, event.stats)
        case Errored() | WorkerLost():
            return _finish(FinishReason.ABORT, None)
        case Accepted() | Delivered() | AbortRequested():
            return state, ()
        case _:
            assert_never(event)


def _complete(event: Completed, *before: StreamEffect) -> Step:
    return Finished(event.reason), (*before, EndWith(event.reason, event.stats, event.stop), Release())


def _finish(reason: FinishReason, stats: GenerationStats | None) -> Step:
    return Finished(reason), (EndWith(reason, stats), Release())


def _fail(error: EngineError) -> Step:
    return Failed(error), (Raise(error), Release())
