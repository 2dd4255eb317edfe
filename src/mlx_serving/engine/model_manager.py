"""Which models are in the worker, and who uses them: the shell around `core.model_residency`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from mlx_serving.core import residency_states as residency
from mlx_serving.core.model_residency import ResidencyPolicy, step
from mlx_serving.core.model_room import RoomPolicy
from mlx_serving.core.placement import Holding
from mlx_serving.core.residency_states import ResidencyEvent
from mlx_serving.core.serving import LoadProgress, ServedModel
from mlx_serving.core.suggest import did_you_mean
from mlx_serving.engine.loads import Loads
from mlx_serving.engine.model_entry import Entry, ModelSpec
from mlx_serving.engine.replacement import Replacement
from mlx_serving.engine.room import Room
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.errors import (
    Aborted,
    EngineClosed,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    ModelNotLoaded,
    ModelReplaced,
    WorkerDied,
)
from mlx_serving.telemetry.events import EventBus, ModelInvalidated, ModelProgressed
from mlx_serving.wire.methods import LoadModelResult
from mlx_serving.wire.notifications import MemoryWanted, ModelProgress


class ModelManager:
    """Loads a model when it is first needed, keeps it while it is used, evicts it for others that need its memory,
    brings it back after the worker died."""

    def __init__(
        self, supervisor: Supervisor, policy: ResidencyPolicy, events: EventBus, room: RoomPolicy | None = None
    ) -> None:
        self._supervisor = supervisor
        self._policy = policy
        self._events = events
        self.entries: dict[str, Entry] = {}
        self.versions = Replacement(self)
        self.room = Room(room or RoomPolicy(), lambda: self.entries.values(), self.dispatch, events)
        self._tickets = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loads = Loads(supervisor, self.room, self.dispatch, events)
        self.closed = False
        supervisor.add_listener(self)
        supervisor.on_loading(self._model_progressed)
        supervisor.on_memory_wanted(self._memory_wanted)

    # -- what others use

    def register(self, spec: ModelSpec) -> None:
        """Make a model known under its name. Raises `InvalidRequest` when the name is in use for another spec."""
        self.require_replaceable(spec)
        entry = self.entries.setdefault(spec.name, Entry(spec, int(time.time()), worker_id=spec.name))
        entry.spec = spec
        self.room.look()

    def require_replaceable(self, spec: ModelSpec) -> None:
        """Raises `InvalidRequest` when the name is in use for another spec."""
        entry = self.entries.get(spec.name)
        if entry is None or entry.spec == spec:
            return
        if not isinstance(entry.state, residency.Absent | residency.LoadFailed):
            raise InvalidRequest(
                f"{spec.name} is loaded from {entry.spec.reference} with other options: unload it first, or give "
                "another name",
                field="model",
                given=spec.name,
            )

    def forget(self, name: str) -> None:
        self.entries.pop(name, None)

    def names(self) -> list[str]:
        return list(self.entries)

    def spec(self, name: str) -> ModelSpec:
        return self.entry(name).spec

    @asynccontextmanager
    async def lease(self, name: str, *, modest: bool = False) -> AsyncGenerator[LoadModelResult]:
        """Use a model: it is loaded when the block begins and stays until it ends. `modest`: no model that is in use is
        to make room for it.

        Raises `ModelNotFound` for a name that is not known, `ModelLoadError`, or `WorkerDied`.
        """
        await self.versions.wait_turn(name)
        async with self.lease_entry(self.entry(name), modest=modest) as facts:
            yield facts

    @asynccontextmanager
    async def lease_entry(self, entry: Entry, *, modest: bool = False) -> AsyncGenerator[LoadModelResult]:
        """The same for a version of a model."""
        ticket = next(self._tickets)
        if modest:
            entry.modest.add(ticket)
        future: asyncio.Future[LoadModelResult] = asyncio.get_running_loop().create_future()
        entry.waiting[ticket] = future
        entry.use = entry.use.again(time.monotonic(), self.room.policy.half_life_s)
        try:
            self.dispatch(entry, residency.Acquire(ticket))
            facts = await future
            if ticket in entry.lost:  # between the grant and now
                raise entry.lost[ticket]
            yield facts
        except (Aborted, ModelNotLoaded) as error:  # which the worker says of streams whose model goes
            if isinstance(lost := entry.lost.get(ticket), ModelReplaced):
                raise lost from None
            if lost is not None and isinstance(error, Aborted):
                raise Aborted(lost.message) from None
            raise
        finally:
            entry.waiting.pop(ticket, None)
            entry.lost.pop(ticket, None)
            entry.modest.discard(ticket)
            self.dispatch(entry, residency.Release(ticket))

    async def bring(self, name: str) -> None:
        """Load a model beside those that are in use. Raises as `lease`, and `InsufficientMemory` where that needs a
        model in use to go."""
        async with self.lease(name, modest=True):
            pass

    async def make_room_for(self, name: str, refused: EngineError) -> bool:
        """Whether room was made for a request to a model that was refused for want of memory for its KV cache."""
        lacking = refused.details.get("lacking_bytes")
        return isinstance(lacking, int) and await self.room.make_for_caches(name, lacking)

    def preload(self, name: str) -> None:
        """Start loading without waiting for it. How it went is an event."""
        self.dispatch(self.entry(name), residency.Preload())

    async def unload(self, name: str, *, force: bool) -> None:
        """Returns when the worker has let go of the model: after its last user, or at once if forced.

        A load under way is waited for, because the worker cannot break it off.
        """
        entry = self.entry(name)
        event = residency.UnloadForced(f"{name} was unloaded") if force else residency.Unload()
        self.dispatch(entry, event)
        await self.gone(entry)

    async def gone(self, entry: Entry) -> None:
        while entry.is_leaving and not self.closed:
            await entry.changed.wait()

    async def wait_settled(self) -> None:
        """Returns when nothing is being loaded; at once when it ends."""
        while not self.closed:
            loading = [entry for entry in self.entries.values() if isinstance(entry.state, residency.Loading)]
            if not loading:
                return
            await loading[0].changed.wait()

    @property
    def held(self) -> int:
        """Models that are in the worker, or on their way there."""
        away = residency.Absent | residency.LoadFailed
        return sum(not isinstance(entry.state, away) for entry in self.entries.values())

    def holding(self, name: str) -> Holding:
        """What the worker has of a model. Raises `ModelNotFound`."""
        return self.entry(name).holding

    def directory_of_absent(self, name: str) -> Path | None:
        """Where the files of a model are that was in the worker once and is not now."""
        entry = self.entries.get(name)
        return entry.directory if entry is not None and isinstance(entry.state, residency.Absent) else None

    def loaded(self) -> dict[str, LoadModelResult]:
        return {name: entry.facts for name, entry in self.entries.items() if entry.facts is not None}

    def adjust(self, spec: ModelSpec) -> None:
        """Have a model stay in memory as `spec` says; the rest of it is what was known. Raises `ModelNotFound`."""
        entry = self.entry(spec.name)
        entry.spec = replace(entry.spec, pinned=spec.pinned, keep_alive_s=spec.keep_alive_s, warm_up=spec.warm_up)
        self.room.look()

    def served(self, default: str | None) -> list[ServedModel]:
        return [entry.served(default) for entry in self.entries.values()]

    def close(self) -> None:
        """The engine ends: nothing is loaded any more, and who waits for a model hears it."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        self.versions.close()
        self.room.close()
        for entry in self._versions():
            entry.changed.set()
            for future in entry.waiting.values():
                if not future.done():
                    future.set_exception(EngineClosed("The engine was shut down"))

    async def wait_closed(self) -> None:
        """Wait until nothing is under way any more."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _versions(self) -> list[Entry]:
        return [*self.entries.values(), *self.versions.aside]

    def entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            hint = did_you_mean(name, self.entries)
            raise ModelNotFound(
                f"The model {name} is not served here" + (f"; did you mean {hint}?" if hint else ""),
                model=name,
                served=list(self.entries),
            )
        return entry

    # -- WorkerListener

    def worker_lost(self, error: WorkerDied) -> None:
        # Loads are sent in this order: first the models whose streams wait, by who began first.
        for entry in sorted(self._versions(), key=lambda entry: entry.first_user):
            if self.closed:
                entry.state, entry.in_worker = residency.Absent(), False
            elif entry.in_worker:  # a load that was not sent yet has lost nothing
                entry.in_worker = False
                self._events.publish(ModelInvalidated(model_id=entry.spec.name, reason="worker_restart"))
                self.dispatch(entry, residency.WorkerLost(error))

    def _model_progressed(self, progress: ModelProgress) -> None:
        for entry in self._versions():
            if entry.worker_id == progress.model_id:
                entry.progress = LoadProgress(progress.stage, progress.done, progress.total)
                told = ModelProgressed(
                    model_id=entry.spec.name, stage=progress.stage, done=progress.done, total=progress.total
                )
                self._events.publish(told)

    def _memory_wanted(self, wanted: MemoryWanted) -> None:
        name = next((entry.spec.name for entry in self._versions() if entry.worker_id == wanted.model_id), None)
        if name is not None and not self.closed:
            self.room.give_to_caches(name, wanted.lacking_bytes)

    # -- the machine

    def dispatch(self, entry: Entry, event: ResidencyEvent[LoadModelResult]) -> None:
        before = entry.state
        entry.state, effects = step(before, event, time.monotonic(), self._policy)
        if before is not entry.state:
            entry.changed.set()
            entry.changed = asyncio.Event()
        for effect in effects:
            self._carry_out(entry, effect)
        if before is not entry.state:
            self.room.look()

    def _carry_out(self, entry: Entry, effect: residency.ResidencyEffect[LoadModelResult]) -> None:
        match effect:
            case residency.StartLoad():
                entry.loads += 1
                self.spawn(self._loads.load(entry, entry.loads), f"load {entry.spec.name}")
            case residency.Grant():
                future = entry.waiting.pop(effect.ticket, None)
                if future is not None and not future.done():
                    future.set_result(effect.facts)
            case residency.Refuse():
                future = entry.waiting.pop(effect.ticket, None)
                if future is not None and not future.done():
                    future.set_exception(effect.error)
            case residency.StartUnload():
                self.spawn(self._loads.unload(entry), f"unload {entry.spec.name}")
            case residency.Invalidate():
                # Those who use it hear it from their own streams, unless they have not begun.
                entry.lost.update(dict.fromkeys(effect.tickets, effect.error))
            case _:
                assert_never(effect)

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """Do this until the engine ends."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
