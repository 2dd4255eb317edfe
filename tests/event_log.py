"""What an engine told, and a way to wait for what it will tell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mlx_serving.telemetry.events import Event, EventBus, RuntimeStatusChanged

E = TypeVar("E", bound=Event)

LIMIT_S = 60.0


class EventLog:
    def __init__(self, bus: EventBus) -> None:
        self.events: list[Event] = []
        self._changed = asyncio.Event()
        bus.subscribe(self._hear)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def states(self) -> list[str]:
        """The states of the worker, in order."""
        return [event.state for event in self.of(RuntimeStatusChanged)]

    async def wait_for(self, kind: type[E], matches: Callable[[E], bool] = lambda _: True, count: int = 1) -> E:
        """The `count`-th event of that kind that matches, when it has come."""
        async with asyncio.timeout(LIMIT_S):
            while len(found := [event for event in self.of(kind) if matches(event)]) < count:
                await self._changed.wait()
        return found[count - 1]

    async def wait_for_state(self, state: str, count: int = 1) -> None:
        """Until the worker has come into `state` for the `count`-th time."""
        await self.wait_for(RuntimeStatusChanged, lambda event: event.state == state, count)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()
        self._changed = asyncio.Event()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes. For what tells nobody that it has changed."""
    async with asyncio.timeout(LIMIT_S):
        while not await condition():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0)
