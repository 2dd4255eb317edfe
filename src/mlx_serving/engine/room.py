"""Memory for models that come, from models that can go: the shell around `core.model_room`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import cast

from mlx_serving.core import model_room
from mlx_serving.core import residency_states as residency
from mlx_serving.core.model_room import RoomPolicy
from mlx_serving.core.residency_states import ResidencyEvent
from mlx_serving.core.schedule.kv_budget import MEMORY_RETRY_S
from mlx_serving.engine.model_entry import Entry
from mlx_serving.errors import InsufficientMemory, MemoryInUse
from mlx_serving.telemetry.events import EventBus, ModelEvicted
from mlx_serving.wire.methods import LoadModelResult

Dispatch = Callable[[Entry, ResidencyEvent[LoadModelResult]], None]


class Room:
    """Evicts for those who need memory, and what was idle for too long."""

    def __init__(
        self, policy: RoomPolicy, entries: Callable[[], Iterable[Entry]], dispatch: Dispatch, events: EventBus
    ) -> None:
        self.policy = policy
        self._entries = entries
        self._dispatch = dispatch
        self._events = events
        self._timer: asyncio.TimerHandle | None = None

    async def make(self, wanted: Entry, error: InsufficientMemory, *, may_drain: bool) -> bool:
        """Have others go so that `wanted` may fit, of which the worker has said how much it lacks. False when nobody
        can go. Raises `MemoryInUse` when those who use a model do not leave in time: then it stays."""
        lacking = _bytes(error, "weights_bytes") - _bytes(error, "available_bytes") + 1
        able = {entry.spec.name: entry for entry in self._entries() if entry.spec.name != wanted.spec.name}
        residents = [resident for entry in able.values() if (resident := entry.resident()) is not None]
        names = model_room.give_way(lacking, residents, self.policy, may_drain=may_drain)
        if not names:
            return False
        leaving = [able[name] for name in names]
        for entry in leaving:
            self._events.publish(ModelEvicted(model_id=entry.spec.name, reason="memory", wanted_by=wanted.spec.name))
            self._dispatch(entry, residency.Unload())
        try:
            async with asyncio.timeout(self.policy.drain_timeout_s):
                for entry in leaving:
                    while isinstance(entry.state, residency.Draining):
                        await entry.changed.wait()
        except TimeoutError:
            for entry in leaving:
                self._dispatch(entry, residency.Keep())
            raise _in_use(wanted, leaving) from None
        for entry in leaving:
            while entry.is_leaving:
                await entry.changed.wait()
        return True

    async def make_for_caches(self, wanted_by: str, lacking: int) -> bool:
        """Have models that nobody uses go, so that a request of the model `wanted_by` may fit. False when there are
        none, or not enough."""
        leaving = self.give_to_caches(wanted_by, lacking)
        for entry in leaving:
            while entry.is_leaving:
                await entry.changed.wait()
        return bool(leaving)

    def give_to_caches(self, wanted_by: str, lacking: int) -> list[Entry]:
        """The same without waiting for them. Those that go already are all who need to, until they are gone."""
        entries = {entry.spec.name: entry for entry in self._entries()}
        going = [entry for entry in entries.values() if isinstance(entry.state, residency.Evicting)]
        if going:
            return going
        residents = [resident for entry in entries.values() if (resident := entry.resident()) is not None]
        leaving = [entries[name] for name in model_room.give_way_to_caches(lacking, residents, self.policy) or ()]
        for entry in leaving:
            self._events.publish(ModelEvicted(model_id=entry.spec.name, reason="kv_cache", wanted_by=wanted_by))
            self._dispatch(entry, residency.Unload())
        return leaving

    def reconfigure(self, policy: RoomPolicy) -> None:
        """Go on with another policy."""
        self.policy = policy
        self.look()

    def look(self) -> None:
        """Somebody came or went: evict what was idle for too long, and look again when the next one will be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        entries = {entry.spec.name: entry for entry in self._entries()}
        residents = [resident for entry in entries.values() if (resident := entry.resident()) is not None]
        due = model_room.next_due(residents, self.policy)
        if due is not None:
            delay = max(0.0, due - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._evict_overdue)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _evict_overdue(self) -> None:
        entries = {entry.spec.name: entry for entry in self._entries()}
        residents = [resident for entry in entries.values() if (resident := entry.resident()) is not None]
        for name in model_room.overdue(residents, self.policy, time.monotonic()):
            self._events.publish(ModelEvicted(model_id=name, reason="idle"))
            self._dispatch(entries[name], residency.Unload())
        self.look()


def _in_use(wanted: Entry, leaving: Iterable[Entry]) -> MemoryInUse:
    names = ", ".join(entry.spec.name for entry in leaving)
    return MemoryInUse(
        f"{wanted.spec.name} needs memory that those who use {names} have, and they were not done in time",
        retry_after=MEMORY_RETRY_S,
        model=wanted.spec.name,
    )


def _bytes(error: InsufficientMemory, name: str) -> int:
    return cast("int", error.details.get(name, 0))
