"""The life of one stream, as the parent delivers it.

    Opening ──accepted──▶ Streaming ──completed──▶ Finished
       │                   │  ▲   │ failed
       │       worker lost │  │   └──────────────▶ Failed
       └──────────────────▶▼  │ readmitted
                        Recovering
    Opening, Streaming ──abort──▶ Aborting ──the worker confirms──▶ Finished

Opening becomes Streaming when the worker accepts the request; a delta or an end that overtakes the acceptance implies
it. Deltas are delivered in order and their tokens counted. A completion ends the stream with its reason and stats. An
error of the worker ends the stream with that error. An abort is sent to the worker, whose confirmation ends the stream
with reason abort; what arrives meanwhile is not delivered. Losing the worker while aborting is a confirmation too.
Without recovery, losing the worker ends the stream with the typed error. With recovery, the stream waits in Recovering
and asks to be submitted again after the tokens that were delivered. When the new worker readmits it, it goes on where
it was. A stream that was in flight in `max_worker_losses` losses is the likely cause and fails alone, with an error
that says so. Aborting a stream that is recovering ends it at once. The stats of a recovered stream span all of it.
Exactly one ending is emitted for each stream, followed by Release; whatever arrives after it is ignored.

The state counts the delivered tokens; the shell keeps the tokens themselves in a list that grows, because a record in
the state would be copied with every delta. After `WorkerLost` the shell sends no event of the worker that was lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from mlx_serving.core.bounds import at_least
from mlx_serving.core.generation import Delta, FinishReason, GenerationStats
from mlx_serving.errors import EngineError, WorkerDied


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """`recover`: streams survive their worker. `max_worker_losses` counts the loss that a stream does not survive."""

    recover: bool = False
    max_worker_losses: int = 2

    def __post_init__(self) -> None:
        at_least("max_worker_losses", self.max_worker_losses, 1)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stream is. Times are monotonic seconds; `losses` counts the workers it lost."""

    opened_at: float
    prompt_tokens: int | None = None
    delivered: int = 0
    first_token_at: float | None = None
    losses: int = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """Submitted, not yet accepted."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Streaming:
    progress: Progress


@dataclass(frozen=True, slots=True)
class Recovering:
    """The worker is gone since `since`; `accepted` says whether it had accepted the request."""

    progress: Progress
    accepted: bool
    since: float


@dataclass(frozen=True, slots=True)
class Aborting:
    """The abort was sent, the worker has not confirmed it."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Failed:
    error: EngineError


StreamState: TypeAlias = Opening | Streaming | Recovering | Aborting | Finished | Failed


@dataclass(frozen=True, slots=True)
class Accepted:
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """A delta of the worker, without an end: ends are events of their own."""

    delta: Delta


@dataclass(frozen=True, slots=True)
class Completed:
    reason: FinishReason
    stats: GenerationStats | None = None


@dataclass(frozen=True, slots=True)
class Errored:
    error: EngineError


@dataclass(frozen=True, slots=True)
class AbortRequested:
    pass


@dataclass(frozen=True, slots=True)
class WorkerLost:
    error: WorkerDied


@dataclass(frozen=True, slots=True)
class Readmitted:
    """`prompt_tokens` without those that were delivered before."""

    prompt_tokens: int


StreamEvent: TypeAlias = Accepted | Delivered | Completed | Errored | AbortRequested | WorkerLost | Readmitted


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
class Resubmit:
    """Submit the request again when a worker is there, continuing after its first `delivered` tokens."""

    delivered: int


@dataclass(frozen=True, slots=True)
class EndWith:
    """The good ending: the last delta's reason and stats."""

    reason: FinishReason
    stats: GenerationStats | None = None


@dataclass(frozen=True, slots=True)
class Raise:
    """The bad ending."""

    error: EngineError


@dataclass(frozen=True, slots=True)
class Release:
    """Free what is held for the stream: its id, its place in queues, its use of the model."""


StreamEffect: TypeAlias = Opened | Deliver | SendAbort | Resubmit | EndWith | Raise | Release
Step: TypeAlias = tuple[StreamState, tuple[StreamEffect, ...]]


def start(now: float) -> Opening:
    """The state of a stream whose request has just been submitted."""
    return Opening(Progress(opened_at=now))


def step(state: StreamState, event: StreamEvent, now: float, policy: StreamPolicy) -> Step:
    """The next state, and what the shell must do, in order."""
    match state:
        case Opening():
            return _opening(state, event, now, policy)
        case Streaming():
            return _streaming(state, event, now, policy)
        case Recovering():
            return _recovering(state, event, now, policy)
        case Aborting():
            return _aborting(state, event, now)
        case Finished() | Failed():
            return state, ()
        case _:
            assert_never(state)


def _opening(state: Opening, event: StreamEvent, now: float, policy: StreamPolicy) -> Step:
    match event:
        case Accepted():
            return Streaming(_with_prompt(state.progress, event.prompt_tokens)), (Opened(),)
        case Delivered():
            return Streaming(_advance(state.progress, event.delta, now)), (Opened(), Deliver(event.delta))
        case Completed():
            return _finish(event.reason, _stats(state.progress, event.stats, now), Opened())
        case Errored():
            return _fail(event.error)
        case AbortRequested():
            return Aborting(state.progress), (SendAbort(),)
        case WorkerLost():
            return _lose(state.progress, event.error, now, policy, accepted=False)
        case Readmitted():
            return state, ()
        case _:
            assert_never(event)


def _streaming(state: Streaming, event: StreamEvent, now: float, policy: StreamPolicy) -> Step:
    match event:
        case Delivered():
            return Streaming(_advance(state.progress, event.delta, now)), (Deliver(event.delta),)
        case Completed():
            return _finish(event.reason, _stats(state.progress, event.stats, now))
        case Errored():
            return _fail(event.error)
        case AbortRequested():
            return Aborting(state.progress), (SendAbort(),)
        case WorkerLost():
            return _lose(state.progress, event.error, now, policy, accepted=True)
        case Accepted() | Readmitted():
            return Streaming(_with_prompt(state.progress, event.prompt_tokens)), ()
        case _:
            assert_never(event)


def _recovering(state: Recovering, event: StreamEvent, now: float, policy: StreamPolicy) -> Step:
    opened = () if state.accepted else (Opened(),)
    match event:
        case Readmitted() | Accepted():
            return Streaming(_with_prompt(state.progress, event.prompt_tokens)), opened
        case Delivered():
            return Streaming(_advance(state.progress, event.delta, now)), (*opened, Deliver(event.delta))
        case Completed():
            return _finish(event.reason, _stats(state.progress, event.stats, now), *opened)
        case Errored():
            return _fail(event.error)
        case AbortRequested():
            # Nobody knows whether the resubmission has reached a worker: tell it, but do not wait for its answer.
            return _finish(FinishReason.ABORT, _stats(state.progress, None, now), SendAbort())
        case WorkerLost():
            return _lose(state.progress, event.error, now, policy, accepted=state.accepted)
        case _:
            assert_never(event)


def _aborting(state: Aborting, event: StreamEvent, now: float) -> Step:
    match event:
        case Completed():
            return _finish(FinishReason.ABORT, _stats(state.progress, event.stats, now))
        case Errored() | WorkerLost():
            return _finish(FinishReason.ABORT, None)
        case Accepted() | Delivered() | AbortRequested() | Readmitted():
            return state, ()
        case _:
            assert_never(event)


def _finish(reason: FinishReason, stats: GenerationStats | None, *before: StreamEffect) -> Step:
    return Finished(reason), (*before, EndWith(reason, stats), Release())


def _fail(error: EngineError) -> Step:
    return Failed(error), (Raise(error), Release())


def _lose(progress: Progress, error: WorkerDied, now: float, policy: StreamPolicy, *, accepted: bool) -> Step:
    if not policy.recover:
        return _fail(error)
    losses = progress.losses + 1
    if losses >= policy.max_worker_losses:
        return _fail(_likely_cause(error, losses))
    kept = Progress(progress.opened_at, progress.prompt_tokens, progress.delivered, progress.first_token_at, losses)
    return Recovering(kept, accepted, now), (Resubmit(progress.delivered),)


def _likely_cause(error: WorkerDied, losses: int) -> WorkerDied:
    times = "once" if losses == 1 else f"{losses} times"
    message = f"The worker was lost {times} while it served this request, which is the likely cause: {error.message}"
    return type(error)(message, **{**error.details, "losses": losses})


def _with_prompt(progress: Progress, prompt_tokens: int) -> Progress:
    if progress.prompt_tokens is not None:
        return progress
    return Progress(progress.opened_at, prompt_tokens, progress.delivered, progress.first_token_at, progress.losses)


def _advance(progress: Progress, delta: Delta, now: float) -> Progress:
    first = progress.first_token_at
    if first is None and delta.token_ids:
        first = now
    delivered = progress.delivered + len(delta.token_ids)
    return Progress(progress.opened_at, progress.prompt_tokens, delivered, first, progress.losses)


def _stats(progress: Progress, reported: GenerationStats | None, now: float) -> GenerationStats | None:
    """The worker's own figures, unless the stream lost a worker: the last one knows only its part of it."""
    if progress.losses == 0:
        return reported
    first = now if progress.first_token_at is None else progress.first_token_at
    decoding = now - first
    return GenerationStats(
        prompt_tokens=progress.prompt_tokens or 0,
        tokens_generated=progress.delivered,
        time_to_first_token=first - progress.opened_at,
        tokens_per_second=(progress.delivered - 1) / decoding if decoding > 0 else 0.0,
        total_time=now - progress.opened_at,
    )
