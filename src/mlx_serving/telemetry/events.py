"""What the engine tells its owner: typed events, and the bus that carries them.

Names are the ancestor's where it had the event. `at` is Unix time in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from mlx_serving.core.generation import GenerationStats
from mlx_serving.errors import EngineError
from mlx_serving.telemetry.logger import get_logger

RuntimeStatus = Literal["starting", "ready", "error", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    name: ClassVar[str]
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStatusChanged(Event):
    name = "runtime:status"
    status: RuntimeStatus
    previous_status: RuntimeStatus
    state: str
    reason: str | None = None
    pid: int | None = None
    worker: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoaded(Event):
    name = "model:loaded"
    model_id: str
    context_length: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUnloaded(Event):
    name = "model:unloaded"
    model_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvicted(Event):
    """A model goes because another one (`wanted_by`) needs its memory, or a request to that one does for its KV cache,
    or because nobody used it for long. One that is in use goes when its users are done."""

    name = "model:evicted"
    model_id: str
    reason: Literal["memory", "kv_cache", "idle"]
    wanted_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrefetched(Event):
    """The system reads the files of a model, because it is likely to be wanted next."""

    name = "model:prefetched"
    model_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInvalidated(Event):
    name = "model:invalidated"
    model_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersionChanged(Event):
    """Another version is served under the name `model_id` now; streams go on with it."""

    name = "model:replaced"
    model_id: str
    reference: str
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMoved(Event):
    """A name means another model for requests that come from now on. None: it is no alias any more, or was none."""

    name = "alias:moved"
    alias: str
    model_id: str | None
    previous: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProgressed(Event):
    name = "model:progress"
    model_id: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitChanged(Event):
    name = "circuit:changed"
    previous: str
    current: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryShareChanged(Event):
    """The next worker may use another part of its memory for KV caches: less when the last one died for want of it."""

    name = "memory:share"
    previous: float
    current: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStarted(Event):
    name = "generation:started"
    stream_id: str
    model_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationToken(Event):
    name = "generation:token"
    stream_id: str
    token: str
    logprob: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationCompleted(Event):
    name = "generation:completed"
    stream_id: str
    stats: GenerationStats


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecovered(Event):
    """A stream goes on in another worker, `pause_s` after it lost the last one; `losses` counts them all."""

    name = "generation:recovered"
    stream_id: str
    model_id: str
    delivered: int
    losses: int
    pause_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorOccurred(Event):
    name = "error"
    error: EngineError
    context: str


Listener: TypeAlias = Callable[[Event], None]

_log = get_logger("mlx_serving.events")


class EventBus:
    """Calls every listener, in the order of subscription, in the caller's task."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Returns the function that ends the subscription."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def publish(self, event: Event) -> None:
        """A listener that raises is logged and does not disturb the others, nor what happened."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:  # noqa: BLE001  somebody else's code
                _log.exception("event listener failed", event_name=event.name)
