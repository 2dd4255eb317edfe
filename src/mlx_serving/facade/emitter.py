"""`on`, `once`, `off` and `emit` over the event bus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from mlx_serving.telemetry.events import Event, EventBus

Callback: TypeAlias = Callable[[Event], None]

ALL = "*"


@dataclass(frozen=True, slots=True, eq=False)
class _Subscription:
    callback: Callback
    cancel: Callable[[], None]


class Emitter:
    """Callbacks by event name. `*` hears everything. One that raises does not disturb the others: see `EventBus`."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._subscriptions: dict[str, list[_Subscription]] = {}

    def on(self, event: str, callback: Callback) -> None:
        """Call `callback` with every event of that name, as often as it is given."""

        def hear(happened: Event) -> None:
            if event in (ALL, happened.name):
                callback(happened)

        self._add(event, callback, hear)

    def once(self, event: str, callback: Callback) -> None:
        """Call `callback` with the next event of that name, and forget it."""

        def hear(happened: Event) -> None:
            # What an earlier listener published is heard first: then this one, in delivery already, is over.
            if event in (ALL, happened.name) and subscription in self._subscriptions.get(event, ()):
                self._remove(event, subscription)
                callback(happened)

        subscription = self._add(event, callback, hear)

    def off(self, event: str, callback: Callback | None = None) -> None:
        """Forget one callback, or all of that event."""
        for subscription in tuple(self._subscriptions.get(event, ())):
            if callback is None or subscription.callback == callback:
                self._remove(event, subscription)

    def emit(self, event: Event) -> None:
        self._bus.publish(event)

    def listens(self, event: str) -> bool:
        return bool(self._subscriptions.get(event) or self._subscriptions.get(ALL))

    def clear(self) -> None:
        for event in tuple(self._subscriptions):
            self.off(event)

    def _add(self, event: str, callback: Callback, hear: Callback) -> _Subscription:
        subscription = _Subscription(callback, self._bus.subscribe(hear))
        self._subscriptions.setdefault(event, []).append(subscription)
        return subscription

    def _remove(self, event: str, subscription: _Subscription) -> None:
        subscription.cancel()
        self._subscriptions[event].remove(subscription)
