"""Whether one model is in the worker, and who uses it.

    Absent ──acquire, preload──▶ Loading ──▶ Ready ──unload──▶ Draining ──last release──▶ Evicting ──▶ Absent
                                    │
                                    └──▶ LoadFailed ──acquire, preload──▶ Loading

The first who acquires an absent model starts its load; others who come meanwhile wait for the same load. A load that
succeeds grants all who wait. A load that fails refuses all who wait, and the next acquire tries again. A preload
loads without anybody waiting. A ready model is granted at once. An unload of a ready model that nobody uses starts at
once. A model in use is never evicted: its unload waits until the last user has released it. Who acquires a model that
is on its way out waits until it is gone, and it is loaded again. A model that is kept while it drains is ready again,
and grants those who wait, unless its unload was asked for once more meanwhile. An unload while loading takes effect
when the load has ended, after those who wait were served. A forced unload invalidates those who use the model and
refuses those who wait for it; if it is replaced, the error has them go on with its successor. Who gives up waiting is
forgotten; the load goes on. Losing the worker invalidates the users of a ready model, and it is loaded again. Losing
the worker while loading starts the load again, until `max_load_losses` workers were lost that way: the load is the
likely cause and fails. Those who wait for it wait on, or, where they may go to another worker, are refused with the
loss. A worker that died of something from outside counts a quarter, one that was ended on purpose not at all. Losing
the worker while unloading completes the unload. A ticket is void after Refuse, Invalidate and its release: later
releases of it are ignored.

The shell carries out a StartLoad as soon as a worker is there, and answers it with LoadSucceeded, LoadErrored (also
when there will be no worker) or WorkerLost; it answers StartUnload with UnloadDone or WorkerLost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from mlx_serving.core.bounds import at_least
from mlx_serving.core.inquest import LOSS
from mlx_serving.core.residency_states import (
    Absent,
    Acquire,
    Draining,
    Evicting,
    Facts,
    Grant,
    Invalidate,
    Keep,
    LoadErrored,
    LoadFailed,
    Loading,
    LoadSucceeded,
    Preload,
    Ready,
    Refuse,
    Release,
    Residency,
    ResidencyEffect,
    ResidencyEvent,
    StartLoad,
    StartUnload,
    Ticket,
    Unload,
    UnloadDone,
    UnloadForced,
    WorkerLost,
)
from mlx_serving.errors import EngineError, ModelLoadError, WorkerDied


@dataclass(frozen=True, slots=True)
class ResidencyPolicy:
    """`waits_for_restart`: whether who waits for a load waits on when its worker is lost."""

    max_load_losses: int = 2
    waits_for_restart: bool = True

    def __post_init__(self) -> None:
        at_least("max_load_losses", self.max_load_losses, 1)


Step: TypeAlias = tuple[Residency[Facts], tuple[ResidencyEffect[Facts], ...]]


def step(state: Residency[Facts], event: ResidencyEvent[Facts], now: float, policy: ResidencyPolicy) -> Step[Facts]:
    """The next state, and what the shell must do, in order."""
    match state:
        case Absent() | LoadFailed():
            return _away(state, event)
        case Loading():
            return _loading(state, event, now, policy)
        case Ready():
            return _ready(state, event, now)
        case Draining():
            return _draining(state, event, now)
        case Evicting():
            return _evicting(state, event)
        case _:
            assert_never(state)


def _away(state: Absent | LoadFailed, event: ResidencyEvent[Facts]) -> Step[Facts]:
    match event:
        case Acquire():
            return Loading((event.ticket,)), (StartLoad(),)
        case Preload():
            return Loading(), (StartLoad(),)
        case Unload() | UnloadForced():
            return Absent(), ()
        case Release() | LoadSucceeded() | LoadErrored() | Keep() | UnloadDone() | WorkerLost():
            return state, ()
        case _:
            assert_never(event)


def _loading(state: Loading, event: ResidencyEvent[Facts], now: float, policy: ResidencyPolicy) -> Step[Facts]:
    match event:
        case Acquire():
            return Loading((*state.waiters, event.ticket), state.unload, state.losses), ()
        case Release():
            return Loading(_without(state.waiters, event.ticket), state.unload, state.losses), ()
        case LoadSucceeded():
            return _loaded(state, event.facts, now)
        case LoadErrored():
            return LoadFailed(event.error, now), _refuse(state.waiters, event.error)
        case Unload():
            return Loading(state.waiters, True, state.losses), ()
        case UnloadForced():
            return Loading((), True, state.losses), _refuse(state.waiters, event.error)
        case WorkerLost():
            return _lost_while_loading(state, event.error, now, policy)
        case Preload() | Keep() | UnloadDone():
            return state, ()
        case _:
            assert_never(event)


def _loaded(state: Loading, facts: Facts, now: float) -> Step[Facts]:
    in_use = frozenset(state.waiters)
    grants = tuple(Grant(ticket, facts) for ticket in state.waiters)
    if not state.unload:
        return Ready(facts, in_use, now), grants
    if in_use:
        return Draining(facts, in_use), grants
    return Evicting(), (StartUnload(),)


def _lost_while_loading(state: Loading, error: WorkerDied, now: float, policy: ResidencyPolicy) -> Step[Facts]:
    if state.unload and not state.waiters:
        return Absent(), ()
    losses = state.losses + LOSS[error.origin]
    if losses < policy.max_load_losses:
        if policy.waits_for_restart:
            return Loading(state.waiters, state.unload, losses), (StartLoad(),)
        return Loading((), state.unload, losses), (*_refuse(state.waiters, error), StartLoad())
    blamed = ModelLoadError(
        f"Loading was given up, because it is the likely cause of lost workers; the last loss: {error.message}",
        **{**error.details, "losses": losses},
    )
    return LoadFailed(blamed, now), _refuse(state.waiters, blamed)


def _ready(state: Ready[Facts], event: ResidencyEvent[Facts], now: float) -> Step[Facts]:
    match event:
        case Acquire():
            return Ready(state.facts, state.in_use | {event.ticket}, now), (Grant(event.ticket, state.facts),)
        case Release():
            if event.ticket not in state.in_use:
                return state, ()
            return Ready(state.facts, state.in_use - {event.ticket}, now), ()
        case Unload():
            if state.in_use:
                return Draining(state.facts, state.in_use), ()
            return Evicting(), (StartUnload(),)
        case UnloadForced():
            return Evicting(), (*_invalidate(state.in_use, event.error), StartUnload())
        case WorkerLost():
            return Loading(), (*_invalidate(state.in_use, event.error), StartLoad())
        case Preload() | LoadSucceeded() | LoadErrored() | Keep() | UnloadDone():
            return state, ()
        case _:
            assert_never(event)


def _draining(state: Draining[Facts], event: ResidencyEvent[Facts], now: float) -> Step[Facts]:
    match event:
        case Acquire():
            return replace(state, waiters=(*state.waiters, event.ticket)), ()
        case Release():
            in_use = state.in_use - {event.ticket}
            waiters = _without(state.waiters, event.ticket)
            if in_use:
                return replace(state, in_use=in_use, waiters=waiters), ()
            return Evicting(waiters), (StartUnload(),)
        case UnloadForced():
            error = event.error
            refusals = _refuse(state.waiters, error)
            return Evicting(), (*_invalidate(state.in_use, error), *refusals, StartUnload())
        case Unload():
            return replace(state, for_good=True), ()
        case Keep() if not state.for_good:
            grants = tuple(Grant(ticket, state.facts) for ticket in state.waiters)
            return Ready(state.facts, state.in_use.union(state.waiters), now), grants
        case WorkerLost():
            gone, effects = _gone(state.waiters)
            return gone, (*_invalidate(state.in_use, event.error), *effects)
        case Preload() | LoadSucceeded() | LoadErrored() | Keep() | UnloadDone():
            return state, ()
        case _:
            assert_never(event)


def _evicting(state: Evicting, event: ResidencyEvent[Facts]) -> Step[Facts]:
    match event:
        case Acquire():
            return Evicting((*state.waiters, event.ticket)), ()
        case Release():
            return Evicting(_without(state.waiters, event.ticket)), ()
        case UnloadForced():
            return Evicting(), _refuse(state.waiters, event.error)
        case UnloadDone() | WorkerLost():
            return _gone(state.waiters)
        case Preload() | LoadSucceeded() | LoadErrored() | Unload() | Keep():
            return state, ()
        case _:
            assert_never(event)


def _gone(waiters: tuple[Ticket, ...]) -> tuple[Absent | Loading, tuple[StartLoad, ...]]:
    return (Loading(waiters), (StartLoad(),)) if waiters else (Absent(), ())


def _refuse(waiters: tuple[Ticket, ...], error: EngineError) -> tuple[Refuse, ...]:
    return tuple(Refuse(ticket, error) for ticket in waiters)


def _invalidate(in_use: frozenset[Ticket], error: EngineError) -> tuple[Invalidate, ...]:
    return (Invalidate(in_use, error),) if in_use else ()


def _without(waiters: tuple[Ticket, ...], ticket: Ticket) -> tuple[Ticket, ...]:
    return tuple(waiter for waiter in waiters if waiter != ticket)
