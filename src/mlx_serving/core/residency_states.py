"""The states, events and effects of `core.model_residency`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from mlx_serving.errors import EngineError, ModelNotLoaded, ModelReplaced, WorkerDied

Facts = TypeVar("Facts")
"""What the worker tells about a model it has loaded. The machine carries it, it never looks inside."""

Ticket: TypeAlias = int
"""One use of the model, numbered by the shell; a number is never used twice."""


@dataclass(frozen=True, slots=True)
class Absent:
    pass


@dataclass(frozen=True, slots=True)
class Loading:
    """`waiters` in the order they came; `unload` is to follow the load; `losses` adds up workers lost in it."""

    waiters: tuple[Ticket, ...] = ()
    unload: bool = False
    losses: float = 0


@dataclass(frozen=True, slots=True)
class Ready(Generic[Facts]):
    facts: Facts
    in_use: frozenset[Ticket]
    last_used: float


@dataclass(frozen=True, slots=True)
class Draining(Generic[Facts]):
    """`waiters` want the model after it was unloaded. With `for_good`, it is not kept any more."""

    facts: Facts
    in_use: frozenset[Ticket]
    waiters: tuple[Ticket, ...] = ()
    for_good: bool = False


@dataclass(frozen=True, slots=True)
class Evicting:
    waiters: tuple[Ticket, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadFailed:
    error: EngineError
    at: float


Residency: TypeAlias = Absent | Loading | Ready[Facts] | Draining[Facts] | Evicting | LoadFailed


@dataclass(frozen=True, slots=True)
class Acquire:
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Release:
    """The user is done, or gave up waiting."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Preload:
    """Load it, though nobody waits. A model that is there already, or on its way out, stays as it is."""


@dataclass(frozen=True, slots=True)
class LoadSucceeded(Generic[Facts]):
    facts: Facts


@dataclass(frozen=True, slots=True)
class LoadErrored:
    error: EngineError


@dataclass(frozen=True, slots=True)
class Unload:
    pass


@dataclass(frozen=True, slots=True)
class UnloadForced:
    """`reason` is for the users and waiters who are turned out. `replaced`: a successor waits for them."""

    reason: str
    replaced: bool = False

    @property
    def error(self) -> ModelNotLoaded:
        return ModelReplaced(self.reason) if self.replaced else ModelNotLoaded(self.reason)


@dataclass(frozen=True, slots=True)
class Keep:
    """Its place is not needed after all. Only a model that drains hears it in time."""


@dataclass(frozen=True, slots=True)
class UnloadDone:
    """The worker does not have the model, any more or at all."""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    error: WorkerDied


ResidencyEvent: TypeAlias = (
    Acquire
    | Release
    | Preload
    | LoadSucceeded[Facts]
    | LoadErrored
    | Unload
    | UnloadForced
    | Keep
    | UnloadDone
    | WorkerLost
)


@dataclass(frozen=True, slots=True)
class StartLoad:
    pass


@dataclass(frozen=True, slots=True)
class Grant(Generic[Facts]):
    ticket: Ticket
    facts: Facts


@dataclass(frozen=True, slots=True)
class Refuse:
    ticket: Ticket
    error: EngineError


@dataclass(frozen=True, slots=True)
class StartUnload:
    pass


@dataclass(frozen=True, slots=True)
class Invalidate:
    """These users have lost the model under their hands, because of `error`."""

    tickets: frozenset[Ticket]
    error: EngineError


ResidencyEffect: TypeAlias = StartLoad | Grant[Facts] | Refuse | StartUnload | Invalidate
