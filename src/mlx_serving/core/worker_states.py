"""The states, events and effects of `core.worker_lifecycle`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from mlx_serving.errors import DeathOrigin


class Cause(StrEnum):
    """Why a child had to go."""

    EXITED = "exited"  # by itself, or by somebody's signal
    STARTUP_TIMEOUT = "startup timeout"
    NO_HEARTBEAT = "no heartbeat"
    NO_PROGRESS = "no progress"
    STOP = "stop"
    RESTART = "planned restart"


class DrainStage(StrEnum):
    ASKED = "asked"
    TERMINATED = "terminated"
    KILLED = "killed"


Deaths: TypeAlias = tuple[float, ...]
"""When children died unasked, newest last; only those that the window still covers matter."""


@dataclass(frozen=True, slots=True)
class Stopped:
    pass


@dataclass(frozen=True, slots=True)
class Starting:
    deadline: float
    deaths: Deaths = ()


@dataclass(frozen=True, slots=True)
class Ready:
    since: float
    last_beat: float
    last_progress: float
    progress: int = 0
    busy: bool = False
    deaths: Deaths = ()


@dataclass(frozen=True, slots=True)
class Draining:
    """The child must go; `restart` says whether another follows."""

    stage: DrainStage
    deadline: float
    cause: Cause
    restart: bool
    deaths: Deaths = ()


@dataclass(frozen=True, slots=True)
class BackingOff:
    until: float
    deaths: Deaths


@dataclass(frozen=True, slots=True)
class GaveUp:
    """`deaths` within the window were too many; `cause` is the last one's."""

    since: float
    deaths: int
    cause: Cause


WorkerState: TypeAlias = Stopped | Starting | Ready | Draining | BackingOff | GaveUp


@dataclass(frozen=True, slots=True)
class StartRequested:
    pass


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    pass


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat: `progress` counts finished pieces of work, `busy` says whether any is waiting."""

    progress: int
    busy: bool


@dataclass(frozen=True, slots=True)
class Tick:
    pass


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """The child is gone, and nothing that it said may come after this. `uniform` in [0, 1) feeds the jitter of the
    back-off; `served` says that it had generated something."""

    uniform: float
    served: bool = False
    origin: DeathOrigin = DeathOrigin.INSIDE


@dataclass(frozen=True, slots=True)
class StopRequested:
    pass


@dataclass(frozen=True, slots=True)
class RestartRequested:
    pass


WorkerEvent: TypeAlias = StartRequested | HandshakeDone | Beat | Tick | ProcessExited | StopRequested | RestartRequested


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a child. One that cannot be started counts as one that exits at once: `ProcessExited` must follow."""


@dataclass(frozen=True, slots=True)
class AskShutdown:
    pass


@dataclass(frozen=True, slots=True)
class Terminate:
    pass


@dataclass(frozen=True, slots=True)
class Kill:
    pass


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """Whatever the child was doing is lost, as of now."""

    cause: Cause


WorkerEffect: TypeAlias = Spawn | AskShutdown | Terminate | Kill | WorkerLost
Step: TypeAlias = tuple[WorkerState, tuple[WorkerEffect, ...]]
