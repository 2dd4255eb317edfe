"""Which models are in the worker, and who uses them: the shell around `core.model_residency`."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias, assert_never

from mlx_serving.core import model_residency as residency
from mlx_serving.core.model_residency import Residency, ResidencyEvent, ResidencyPolicy, Ticket
from mlx_serving.core.placement import Holding
from mlx_serving.core.serving import ServedModel
from mlx_serving.core.suggest import did_you_mean
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.errors import (
    Aborted,
    EngineClosed,
    EngineError,
    InsufficientMemory,
    InvalidRequest,
    ModelNotFound,
    ModelNotLoaded,
    ModelReplaced,
    WorkerDied,
)
from mlx_serving.telemetry.events import ErrorOccurred, EventBus, ModelInvalidated, ModelLoaded, ModelUnloaded
from mlx_serving.wire import methods
from mlx_serving.wire.methods import KnownCapabilities, LoadModelResult


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that can be named: `reference` is what the worker loads, `name` what callers say."""

    name: str
    reference: str
    revision: str | None = None
    context_length: int | None = None
    local_path: str | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None

    def with_reference(self, reference: str, revision: str | None) -> ModelSpec:
        """The same name and settings for another model."""
        return replace(self, reference=reference, revision=revision, local_path=None)


@dataclass(slots=True)
class _Entry:
    spec: ModelSpec
    created: int
    state: Residency[LoadModelResult] = field(default_factory=residency.Absent)
    waiting: dict[Ticket, asyncio.Future[LoadModelResult]] = field(
        default_factory=dict[Ticket, "asyncio.Future[LoadModelResult]"]
    )
    lost: dict[Ticket, EngineError] = field(default_factory=dict[Ticket, EngineError])
    in_worker: bool = False  # whether a load was sent to the worker that lives now
    loads: int = 0
    known: KnownCapabilities | None = None  # what the last load found
    worker_id: str = ""  # what the worker knows it by: two versions of a model may be there at a time
    retired: bool = False  # another version has its name
    changed: asyncio.Event = field(default_factory=asyncio.Event)


Version: TypeAlias = _Entry
"""One version of a model, for who prepares it."""


class ModelManager:
    """Loads a model when it is first needed, keeps it while it is used, brings it back after the worker died."""

    def __init__(self, supervisor: Supervisor, policy: ResidencyPolicy, events: EventBus) -> None:
        self._supervisor = supervisor
        self._policy = policy
        self._events = events
        self._entries: dict[str, _Entry] = {}
        self._aside: list[_Entry] = []  # versions that have no name yet, or no more
        self._turns: dict[str, asyncio.Event] = {}  # names whose versions change places: leases wait
        self._tickets = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        supervisor.add_listener(self)

    # -- what others use

    def register(self, spec: ModelSpec) -> None:
        """Make a model known under its name. Raises `InvalidRequest` when the name is in use for another spec."""
        self.require_replaceable(spec)
        self._entries.setdefault(spec.name, _Entry(spec, int(time.time()), worker_id=spec.name)).spec = spec

    def require_replaceable(self, spec: ModelSpec) -> None:
        """Raises `InvalidRequest` when the name is in use for another spec."""
        entry = self._entries.get(spec.name)
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
        self._entries.pop(name, None)

    def names(self) -> list[str]:
        return list(self._entries)

    def spec(self, name: str) -> ModelSpec:
        return self._entry(name).spec

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncGenerator[LoadModelResult]:
        """Use a model: it is loaded when the block begins and stays until it ends.

        Raises `ModelNotFound` for a name that is not known, `ModelLoadError`, or `WorkerDied`.
        """
        while (turn := self._turns.get(name)) is not None:
            await turn.wait()
        async with self._lease(self._entry(name)) as facts:
            yield facts

    @asynccontextmanager
    async def _lease(self, entry: _Entry) -> AsyncGenerator[LoadModelResult]:
        ticket = next(self._tickets)
        future: asyncio.Future[LoadModelResult] = asyncio.get_running_loop().create_future()
        entry.waiting[ticket] = future
        try:
            self._dispatch(entry, residency.Acquire(ticket))
            facts = await future
            if ticket in entry.lost:  # between the grant and now
                raise entry.lost[ticket]
            yield facts
        except (Aborted, ModelNotLoaded):  # which the worker says of streams whose model goes, whatever the reason
            if isinstance(lost := entry.lost.get(ticket), ModelReplaced):
                raise lost from None
            raise
        finally:
            entry.waiting.pop(ticket, None)
            entry.lost.pop(ticket, None)
            self._dispatch(entry, residency.Release(ticket))

    def preload(self, name: str) -> None:
        """Start loading without waiting for it. How it went is an event."""
        self._dispatch(self._entry(name), residency.Preload())

    async def unload(self, name: str, *, force: bool) -> None:
        """Returns when the worker has let go of the model: after its last user, or at once if forced.

        A load under way is waited for, because the worker cannot break it off.
        """
        entry = self._entry(name)
        event = residency.UnloadForced(f"{name} was unloaded") if force else residency.Unload()
        self._dispatch(entry, event)
        await self._gone(entry)

    async def prepare(self, spec: ModelSpec) -> Version:
        """Load another version of a model that is known, which `install` or `discard` must follow.

        It is loaded beside the one that serves, or, where memory does not hold both, after it: then leases of the name
        wait. Raises `ModelLoadError`, `ModelNotFound` or `WorkerDied`; then the old one serves, or is loaded again.
        """
        old = self._entry(spec.name)
        new = self._version(spec, old)
        try:
            try:
                await self._load_version(new)
            except InsufficientMemory:
                if not isinstance(old.state, residency.Ready | residency.Draining):
                    raise
                self._turns[spec.name] = asyncio.Event()
                self._dispatch(old, residency.UnloadForced(f"{spec.name} is being replaced", replaced=True))
                await self._gone(old)
                await self._load_version(new)
        except BaseException:
            self.discard(new)
            raise
        return new

    def install(self, spec: ModelSpec, version: Version | None) -> None:
        """Have the name mean another version from now on, which is loaded when it is needed if it was not prepared.
        Who uses the old one goes on with it."""
        old = self._entry(spec.name)
        new = version or self._version(spec, old)
        self._aside.remove(new)
        self._entries[spec.name] = new
        self._aside.append(old)
        self._retire(old)
        self._end_turn(spec.name)

    def discard(self, version: Version) -> None:
        """Let go of a version that was prepared. If the old one had to make room for it, it comes back."""
        self._retire(version)
        name = version.spec.name
        if self._end_turn(name) and name in self._entries and not self._closed:
            self.preload(name)

    def _version(self, spec: ModelSpec, old: _Entry) -> _Entry:
        entry = _Entry(spec, old.created, worker_id=f"{spec.name}@{next(self._tickets)}")
        self._aside.append(entry)
        return entry

    async def _load_version(self, entry: _Entry) -> None:
        while True:
            try:
                async with self._lease(entry):
                    return
            except WorkerDied as error:  # it is loaded again, and given up when that is the cause
                if not error.retryable:
                    raise

    def _end_turn(self, name: str) -> bool:
        turn = self._turns.pop(name, None)
        if turn is not None:
            turn.set()
        return turn is not None

    def _retire(self, entry: _Entry) -> None:
        """Let go of a version that stands aside."""
        entry.retired = True
        self._dispatch(entry, residency.UnloadForced(f"{entry.spec.name} was replaced", replaced=True))
        self.spawn(self._forget_version(entry), f"retire {entry.worker_id}")

    async def _forget_version(self, entry: _Entry) -> None:
        await self._gone(entry)
        self._aside.remove(entry)

    async def _gone(self, entry: _Entry) -> None:
        while _is_leaving(entry.state) and not self._closed:
            await entry.changed.wait()

    async def wait_settled(self) -> None:
        """Returns when nothing is being loaded; at once when it ends."""
        while not self._closed:
            loading = [entry for entry in self._entries.values() if isinstance(entry.state, residency.Loading)]
            if not loading:
                return
            await loading[0].changed.wait()

    @property
    def held(self) -> int:
        """Models that are in the worker, or on their way there."""
        away = residency.Absent | residency.LoadFailed
        return sum(not isinstance(entry.state, away) for entry in self._entries.values())

    def holding(self, name: str) -> Holding:
        """What the worker has of a model. Raises `ModelNotFound`."""
        state = self._entry(name).state
        match state:
            case residency.Absent():
                return Holding.ABSENT
            case residency.Loading():
                return Holding.LOADING
            case residency.Ready():
                return Holding.READY
            case residency.Draining() | residency.Evicting():
                return Holding.LEAVING
            case residency.LoadFailed():
                return Holding.FAILED
            case _:
                assert_never(state)

    def loaded(self) -> dict[str, LoadModelResult]:
        return {
            name: entry.state.facts
            for name, entry in self._entries.items()
            if isinstance(entry.state, residency.Ready | residency.Draining)
        }

    def served(self, default: str | None) -> list[ServedModel]:
        return [_served(entry, default) for entry in self._entries.values()]

    def close(self) -> None:
        """The engine ends: nothing is loaded any more, and who waits for a model hears it."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for turn in self._turns.values():
            turn.set()
        for entry in self._versions():
            entry.changed.set()
            for future in entry.waiting.values():
                if not future.done():
                    future.set_exception(EngineClosed("The engine was shut down"))

    async def wait_closed(self) -> None:
        """Wait until nothing is under way any more."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _versions(self) -> list[_Entry]:
        return [*self._entries.values(), *self._aside]

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            hint = did_you_mean(name, self._entries)
            raise ModelNotFound(
                f"The model {name} is not served here" + (f"; did you mean {hint}?" if hint else ""),
                model=name,
                served=list(self._entries),
            )
        return entry

    # -- WorkerListener

    def worker_lost(self, error: WorkerDied) -> None:
        # Loads are sent in this order: first the models whose streams wait, by who began first.
        for entry in sorted(self._versions(), key=_first_user):
            if self._closed:
                entry.state, entry.in_worker = residency.Absent(), False
            elif entry.in_worker:  # a load that was not sent yet has lost nothing
                entry.in_worker = False
                self._events.publish(ModelInvalidated(model_id=entry.spec.name, reason="worker_restart"))
                self._dispatch(entry, residency.WorkerLost(error))

    # -- the machine

    def _dispatch(self, entry: _Entry, event: ResidencyEvent[LoadModelResult]) -> None:
        before = entry.state
        entry.state, effects = residency.step(before, event, time.monotonic(), self._policy)
        if before is not entry.state:
            entry.changed.set()
            entry.changed = asyncio.Event()
        for effect in effects:
            self._carry_out(entry, effect)

    def _carry_out(self, entry: _Entry, effect: residency.ResidencyEffect[LoadModelResult]) -> None:
        match effect:
            case residency.StartLoad():
                entry.loads += 1
                self.spawn(self._load(entry, entry.loads), f"load {entry.spec.name}")
            case residency.Grant():
                future = entry.waiting.pop(effect.ticket, None)
                if future is not None and not future.done():
                    future.set_result(effect.facts)
            case residency.Refuse():
                future = entry.waiting.pop(effect.ticket, None)
                if future is not None and not future.done():
                    future.set_exception(effect.error)
            case residency.StartUnload():
                self.spawn(self._unload(entry), f"unload {entry.spec.name}")
            case residency.Invalidate():
                # Those who use it hear it from their own streams, unless they have not begun.
                entry.lost.update(dict.fromkeys(effect.tickets, effect.error))
            case _:
                assert_never(effect)

    async def _load(self, entry: _Entry, number: int) -> None:
        """`number` is that of this load: once another has begun, nobody wants to hear from this one's worker."""
        spec = entry.spec
        params = methods.LoadModelParams(
            # Known to the worker by its own name: two names may share a reference and differ in the rest.
            model_id=entry.worker_id,
            revision=spec.revision,
            context_length=spec.context_length,
            local_path=spec.local_path or (spec.reference if spec.reference != entry.worker_id else None),
            tool_parser=spec.tool_parser,
            reasoning_parser=spec.reasoning_parser,
            known=entry.known,
        )
        try:
            client = await self._supervisor.client()
        except EngineError as error:
            self._dispatch(entry, residency.LoadErrored(error))
            return
        entry.in_worker = True
        started = time.monotonic()
        try:
            facts = await client.call(methods.LOAD_MODEL, params)
        except WorkerDied:
            return  # worker_lost tells the machine
        except EngineError as error:
            if number == entry.loads:
                entry.in_worker = False
                self._events.publish(ErrorOccurred(error=error, context=f"loading {spec.name}"))
                self._dispatch(entry, residency.LoadErrored(error))
            return
        if number != entry.loads:
            return
        entry.known = KnownCapabilities(facts.config_digest, facts.capabilities)
        seconds = round(time.monotonic() - started, 3)
        self._dispatch(entry, residency.LoadSucceeded(facts))
        self._events.publish(ModelLoaded(model_id=spec.name, context_length=facts.context_length, seconds=seconds))

    async def _unload(self, entry: _Entry) -> None:
        try:
            client = await self._supervisor.client()
            params = methods.UnloadModelParams(model_id=entry.worker_id, force=True)
            await client.call(methods.UNLOAD_MODEL, params)
        except WorkerDied:
            if entry.in_worker:
                return  # worker_lost tells the machine
        except EngineError as error:
            self._events.publish(ErrorOccurred(error=error, context=f"unloading {entry.spec.name}"))
        entry.in_worker = False
        if not entry.retired:
            self._events.publish(ModelUnloaded(model_id=entry.spec.name))
        self._dispatch(entry, residency.UnloadDone())

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """Do this until the engine ends."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _first_user(entry: _Entry) -> float:
    match entry.state:
        case residency.Ready() | residency.Draining():
            return min(entry.state.in_use, default=math.inf)
        case residency.Loading() | residency.Evicting():
            return min(entry.state.waiters, default=math.inf)
        case residency.Absent() | residency.LoadFailed():
            return math.inf
        case _:
            assert_never(entry.state)


def _is_leaving(state: Residency[LoadModelResult]) -> bool:
    match state:
        case residency.Draining() | residency.Evicting():
            return True
        case residency.Loading():
            return state.unload
        case residency.Absent() | residency.Ready() | residency.LoadFailed():
            return False
        case _:
            assert_never(state)


def _served(entry: _Entry, default: str | None) -> ServedModel:
    state = entry.state
    error: str | None = None
    context_length = entry.spec.context_length
    facts: LoadModelResult | None = None
    match state:
        case residency.Absent():
            stage = "absent"
        case residency.Loading():
            stage = "loading"
        case residency.Ready():
            stage, facts = "ready", state.facts
        case residency.Draining():
            stage, facts = "draining", state.facts
        case residency.Evicting():
            stage = "draining"
        case residency.LoadFailed():
            stage, error = "failed", state.error.message
        case _:
            assert_never(state)
    return ServedModel(
        name=entry.spec.name,
        reference=entry.spec.reference,
        created=entry.created,
        state=stage,
        context_length=context_length if facts is None else facts.context_length,
        error=error,
        default=entry.spec.name == default,
        abilities=None if facts is None else _abilities(facts),
    )


def _abilities(facts: LoadModelResult) -> tuple[str, ...]:
    return ("completions", "chat") if facts.has_chat_template else ("completions",)
