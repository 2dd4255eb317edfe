"""What the worker is asked to load and to let go of."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from mlx_serving.core import model_residency as residency
from mlx_serving.core.serving import LoadProgress
from mlx_serving.engine.model_entry import Entry, ModelSpec
from mlx_serving.engine.room import Dispatch, Room
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.warm_up import warm_up
from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import EngineError, InsufficientMemory, WorkerDied
from mlx_serving.telemetry.events import ErrorOccurred, EventBus, ModelLoaded, ModelUnloaded
from mlx_serving.wire import methods
from mlx_serving.wire.methods import KnownCapabilities, LoadModelResult


class Loads:
    """Carries out what residencies decide. One load at a time: what others have left for one model is not for the next
    one."""

    def __init__(self, supervisor: Supervisor, room: Room, dispatch: Dispatch, events: EventBus) -> None:
        self._supervisor = supervisor
        self._room = room
        self._dispatch = dispatch
        self._events = events
        self._one_at_a_time = asyncio.Lock()

    async def load(self, entry: Entry, number: int) -> None:
        """Have the worker load a version of a model, and the residency of it hear how that went. `number` is that of
        this load: once another has begun, nobody wants to hear from this one's worker."""
        spec = entry.spec
        try:
            async with self._one_at_a_time:
                started = time.monotonic()
                facts = await self._into_worker(entry, number)
        except WorkerDied as error:
            # While the worker had the load, worker_lost tells the machine.
            if number == entry.loads and not entry.in_worker:
                self._dispatch(entry, residency.LoadErrored(error))
            return
        except EngineError as error:
            if number == entry.loads:
                entry.in_worker = False
                self._events.publish(ErrorOccurred(error=error, context=f"loading {spec.name}"))
                self._dispatch(entry, residency.LoadErrored(error))
            return
        if facts is None:
            return
        entry.known = KnownCapabilities(facts.config_digest, facts.capabilities)
        entry.directory = Path(facts.cached_path)
        seconds = round(time.monotonic() - started, 3)
        self._dispatch(entry, residency.LoadSucceeded(facts))
        self._events.publish(ModelLoaded(model_id=spec.name, context_length=facts.context_length, seconds=seconds))

    async def unload(self, entry: Entry) -> None:
        """Have the worker let go of a version of a model, and the residency of it hear that."""
        number = entry.loads
        try:
            client = await self._supervisor.client()
            if not entry.in_worker or number != entry.loads:
                return  # it went with the worker that had it, which worker_lost has told
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

    async def _into_worker(self, entry: Entry, number: int) -> LoadModelResult | None:
        """None when another load has begun meanwhile."""
        spec = entry.spec
        while number == entry.loads:
            client = await self._supervisor.client()
            if number != entry.loads:
                break
            entry.in_worker, entry.progress = True, None
            try:
                facts = await client.call(methods.LOAD_MODEL, _params(spec, entry))
            except InsufficientMemory as error:
                if number != entry.loads:
                    break
                entry.in_worker = False
                if not await self._make_room(entry, error):
                    raise
                continue
            if spec.warm_up and number == entry.loads:
                await self._warm_up(client, entry, facts)
            return facts if number == entry.loads else None
        return None

    async def _make_room(self, entry: Entry, error: InsufficientMemory) -> bool:
        """A model that nobody waits for takes no other one's place."""
        waiters = entry.state.waiters if isinstance(entry.state, residency.Loading) else ()
        if not waiters:
            return False
        return await self._room.make(entry, error, may_drain=not entry.modest.issuperset(waiters))

    async def _warm_up(self, client: WorkerClient, entry: Entry, facts: LoadModelResult) -> None:
        """A model that cannot answer this may be able to answer others."""
        entry.progress = LoadProgress("warming up", 0, 1)
        try:
            await warm_up(client, facts)
        except WorkerDied:
            raise
        except EngineError as error:
            self._events.publish(ErrorOccurred(error=error, context=f"warming up {entry.spec.name}"))


def _params(spec: ModelSpec, entry: Entry) -> methods.LoadModelParams:
    kv = spec.weights.kv
    return methods.LoadModelParams(
        # Known to the worker by its own name: two names may share a reference and differ in the rest.
        model_id=entry.worker_id,
        revision=spec.revision,
        context_length=spec.context_length,
        local_path=spec.local_path or (spec.reference if spec.reference != entry.worker_id else None),
        tool_parser=spec.tool_parser,
        reasoning_parser=spec.reasoning_parser,
        pooling=spec.pooling,
        known=entry.known,
        quantization=spec.weights.quantization,
        adapter_path=spec.weights.adapter,
        fuse_adapter=spec.weights.fuse_adapter,
        draft=spec.draft,
        kv_bits=None if kv is None else kv.bits,
        kv_group_size=None if kv is None else kv.group_size,
    )
