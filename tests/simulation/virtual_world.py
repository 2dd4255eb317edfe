"""The whole: the parent's layers as `assembly` stacks them, workers that come and go, and readers that check all."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from unittest.mock import patch

from mlx_serving.core.flow_control import FlowPolicy
from mlx_serving.core.generation import Backend, Delta, GenerationRequest, SamplingParams, TokenPrompt
from mlx_serving.core.inquest import LOSS, Inquest, InquestPolicy
from mlx_serving.core.model_residency import ResidencyPolicy
from mlx_serving.core.placement import PlacementPolicy
from mlx_serving.core.retry import BackoffPolicy
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.core.worker_lifecycle import WorkerPolicy
from mlx_serving.engine.deadline import DeadlineBackend
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.engine.model_manager import ModelManager
from mlx_serving.engine.pooled_models import PooledModels
from mlx_serving.engine.recovery import RecoveryBackend
from mlx_serving.engine.residency import ResidencyBackend
from mlx_serving.engine.runtime_telemetry import TelemetryReader
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_backend import WorkerBackend
from mlx_serving.engine.worker_pool import PooledWorker, WorkerPool
from mlx_serving.engine.worker_process import WorkerCommand
from mlx_serving.errors import (
    Aborted,
    DeadlineExceeded,
    EngineError,
    ModelLoadError,
    ModelNotLoaded,
    Overloaded,
    RequestCrashedWorker,
    WorkerDied,
    WorkerGaveUp,
)
from mlx_serving.telemetry.events import Event, EventBus, RuntimeStatusChanged, StreamRecovered
from mlx_serving.wire.settings import WorkerSettings
from mlx_serving.worker.sequence import Ending

from .virtual_model import END_OF_TEXT, Answer, undisturbed
from .virtual_process import VirtualProcess
from .virtual_time import VirtualLoop, VirtualTime
from .virtual_worker import Fate, VirtualWorker

MODELS = ("shared", "alone")
UNBATCHABLE = frozenset({"alone"})
SCHEDULER = SchedulerPolicy(
    max_num_seqs=3, max_queue=6, kv_budget_bytes=150, min_prefill_chunk=4, max_prefill_chunk=16, ageing_s=1.0
)
WORKER = WorkerPolicy(
    startup_timeout_s=5.0,
    shutdown_timeout_s=2.0,
    terminate_timeout_s=1.0,
    heartbeat_interval_s=1.0,
    heartbeat_timeout_s=3.0,
    stall_timeout_s=8.0,
    max_restarts=4,
    restart_window_s=60.0,
    give_up_pause_s=10.0,
    backoff=BackoffPolicy(initial_delay_s=0.1, max_delay_s=2.0),
)
INQUEST = InquestPolicy()
RESIDENCY = ResidencyPolicy()
QUIET_S = 400.0
"""Enough for whatever was asked for to end, when nothing new goes wrong."""

_CLOCKS = (
    "mlx_serving.engine.model_manager.time",
    "mlx_serving.engine.recovery.time",
    "mlx_serving.engine.room.time",
    "mlx_serving.engine.supervisor.time",
    "mlx_serving.worker.generation.time",
    "mlx_serving.worker.stream_handlers.time",
)


@dataclass(slots=True)
class Reader:
    """One request and what its client has seen of it. `ending` is "completed", "left", or the error's class."""

    request: GenerationRequest
    answer: Answer
    poisonous: bool
    since: float
    task: asyncio.Task[None] | None = None
    tokens: list[int] = field(default_factory=list[int])
    text: str = ""
    ending: str | None = None
    error: EngineError | None = None

    @property
    def id(self) -> str:
        return self.request.request_id

    async def read(self, backend: Backend) -> None:
        try:
            async with backend.generate(self.request) as deltas:
                async for delta in deltas:
                    self._take(delta)
        except EngineError as error:
            assert self.ending is None, "failed after its end"
            self.error, self.ending = error, type(error).__name__
        except asyncio.CancelledError:
            if self.ending is None:
                self.ending = "left"
        assert self.ending is not None, "nothing more comes, and it was no end"

    def _take(self, delta: Delta) -> None:
        assert self.ending is None, "something came after the end"
        self.tokens += delta.token_ids
        self.text += delta.text
        assert self.answer.allows(self.tokens, self.text), f"not the undisturbed answer: {self}"
        if delta.finish_reason is not None:
            assert (tuple(self.tokens), self.text) == (self.answer.tokens, self.answer.text), "ended too early"
            assert delta.finish_reason is self.answer.reason
            assert delta.stats is not None
            assert delta.stats.tokens_generated == self.answer.generated
            self.ending = "completed"


@dataclass(slots=True)
class Record:
    """What happened that a failure may be blamed on: `forced` says when a model was turned out last, `load_losses`
    adds up what each worker lost while loading it, `framed` were on trial when the worker died of something else."""

    gave_up: bool = False
    failed_loads: bool = False
    forced: dict[str, float] = field(default_factory=dict[str, float])
    load_losses: dict[tuple[int, str], float] = field(default_factory=dict[tuple[int, str], float])
    framed: set[str] = field(default_factory=set[str])

    def explains(self, reader: Reader, now: float) -> bool:
        """Whether the policies name a reason for how it ended."""
        model, since = reader.request.model, reader.since
        match reader.error:
            case None:
                return True
            case RequestCrashedWorker():
                return reader.poisonous or reader.id in self.framed
            case WorkerGaveUp():
                return self.gave_up
            case ModelLoadError():
                losses = [lost for (_, name), lost in self.load_losses.items() if name == model]
                return self.failed_loads or max(losses, default=0.0) >= RESIDENCY.max_load_losses
            case ModelNotLoaded() | Aborted():
                return self.forced.get(model, 0.0) >= since
            case DeadlineExceeded():
                limit = reader.request.timeout_s
                return (
                    limit is not None and now >= since + limit - 1e-6
                )  # a timer may be early by the resolution of clocks
            case Overloaded():
                return not reader.tokens
            case _:
                return False


class Site:
    """Where one worker after the other lives. Stands in for `WorkerProcess`, and hears of losses before all others."""

    def __init__(self, world: World, number: int, events: EventBus) -> None:
        self._world = world
        self._number = number
        self.process: VirtualProcess | None = None
        self.worker: VirtualWorker | None = None
        command = WorkerCommand(WorkerSettings(scheduler=SCHEDULER), environment={"SITE": str(number)})
        self.supervisor = Supervisor(command, WORKER, events, number=number)
        self.supervisor.add_listener(self)  # first: what it asks of the inquest is as of the death
        residency = replace(RESIDENCY, waits_for_restart=world.alone)
        self.models = ModelManager(self.supervisor, residency, events)
        self.streams = WorkerBackend(self.supervisor, world.inquest, FlowPolicy(), number)

    def pooled(self) -> PooledWorker:
        inner = ResidencyBackend(self.streams, self.models)
        return PooledWorker(self.supervisor, self.models, self.streams, inner, TelemetryReader(self.supervisor))

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive

    def spawn(self, pid: int, scheduler: SchedulerPolicy) -> VirtualProcess:
        def start(process: VirtualProcess) -> VirtualWorker:
            self.worker = VirtualWorker(process, self._world.clock, self._world.fate, scheduler, UNBATCHABLE)
            return self.worker

        assert not self.is_alive, "two workers at once"
        self.process = VirtualProcess(pid, start)
        return self.process

    def running(self) -> list[str]:
        """The streams in the worker that lives now."""
        if self.worker is None or not self.is_alive:
            return []
        return [stream_id for name in MODELS for stream_id in self.worker.generation.stream_ids(name)]

    # -- WorkerListener

    def worker_lost(self, error: WorkerDied) -> None:
        record, inquest = self._world.record, self._world.inquest
        loss = LOSS[error.origin]
        culprit = self.worker.culprit if self.worker is not None else None
        if not loss or culprit is not None:
            return
        for model in self.models.served(None):
            if model.state == "loading":
                lost = record.load_losses.get((self._number, model.name), 0.0)
                record.load_losses[self._number, model.name] = lost + loss
        if self._number == inquest.court:
            record.framed |= {reader.id for reader in self._world.live() if inquest.is_on_trial(reader.id)}


class World:
    def __init__(self, workers: int = 1) -> None:
        self.clock = VirtualTime()
        self.loop = VirtualLoop(self.clock)
        self.fate = Fate()
        self.jitter = random.Random(0)
        self.record = Record()
        self.readers: list[Reader] = []
        self.recovered: set[str] = set()  # who went on in another worker
        self.alone = workers == 1
        self._pids = itertools.count(1)
        self._unloads: list[asyncio.Task[None]] = []
        self._patches = ExitStack()
        for name in _CLOCKS:
            self._patches.enter_context(patch(name, self.clock))
        self._patches.enter_context(patch("mlx_serving.engine.supervisor.random", self.jitter))
        self._patches.enter_context(patch("mlx_serving.engine.supervisor.WorkerProcess", self))
        events = EventBus()
        events.subscribe(self._on_event)
        self.inquest = Inquest(INQUEST)
        self.sites = [Site(self, number, events) for number in range(workers)]
        self.pool = WorkerPool([site.pooled() for site in self.sites], self.inquest, PlacementPolicy(2))
        self.models = PooledModels(self.pool, events)
        for name in MODELS:
            self.models.register(ModelSpec(name, name))
        self.streams = RecoveryBackend(self.pool, self.pool.forget, events)
        self.backend = DeadlineBackend(self.streams, None)

    # -- what stands in for `WorkerProcess`

    async def spawn(self, command: WorkerCommand) -> VirtualProcess:
        await asyncio.sleep(0.01)
        if self.fate.failing_spawns:
            self.fate.failing_spawns -= 1
            raise OSError("no more processes")
        site = self.sites[int(command.environment["SITE"])]
        return site.spawn(next(self._pids), command.settings.scheduler)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, RuntimeStatusChanged) and event.state == "gave up":
            self.record.gave_up = True
        elif isinstance(event, StreamRecovered):
            self.recovered.add(event.stream_id)

    # -- what happens

    def live(self) -> list[Reader]:
        return [reader for reader in self.readers if reader.ending is None]

    def running(self) -> list[str]:
        """The streams in workers that live now."""
        return [stream_id for site in self.sites for stream_id in site.running()]

    def do(self, action: Callable[[], object]) -> None:
        """Act inside the loop, and let those who hear of it at once react."""

        async def act() -> None:
            action()

        self.loop.run_until_complete(act())
        self.loop.run_for(0)

    def submit(self, request: GenerationRequest, *, poisonous: bool = False) -> Reader:
        sampling, prompt = request.sampling, request.prompt
        assert sampling.max_tokens is not None
        assert sampling.seed is not None
        assert isinstance(prompt, TokenPrompt)
        ending = Ending(sampling.max_tokens, frozenset({END_OF_TEXT}), sampling.stop)
        answer = undisturbed(sampling.seed, prompt.token_ids, ending)
        reader = Reader(request, answer, poisonous, self.clock.now)
        self.readers.append(reader)
        reader.task = self.loop.create_task(reader.read(self.backend))
        self.loop.run_for(0)
        return reader

    def leave(self, reader: Reader) -> None:
        assert reader.task is not None
        reader.task.cancel()
        self.loop.run_for(0)

    def unload(self, model: str, *, force: bool) -> None:
        if force:
            self.record.forced[model] = self.clock.now
        self._unloads.append(self.loop.create_task(self.models.unload(model, force=force)))
        self.loop.run_for(0)

    # -- what must hold

    def check(self) -> None:
        assert not self.loop.unhandled, self.loop.unhandled
        for reader in self.readers:
            assert reader.task is not None
            if reader.task.done():
                reader.task.result()
                assert reader.ending is not None
                assert self.record.explains(reader, self.clock.now), f"ended without a reason: {reader}"
        active = sum(1 for reader in self.readers if reader.task is not None and not reader.task.done())
        assert self.streams.active_streams == active
        assert len(self.inquest) <= active

    def come_to_rest(self) -> None:
        """Nothing new goes wrong: everything ends, nothing is left over, and the next request is served."""
        self.fate.heal()
        for site in self.sites:
            for stream_id in site.running():
                assert site.worker is not None
                site.worker.scheduler.resume(stream_id)
        self._wait_for_all()
        self.loop.run_for(WORKER.give_up_pause_s + 1)
        for number, model in enumerate(MODELS):
            probe = self.submit(
                GenerationRequest(f"probe {model}", model, TokenPrompt((1, 2, 3)), SamplingParams(6, seed=number))
            )
            self._wait_for_all()
            assert probe.ending == "completed", probe
        self.loop.run_for(1)  # the aborts arrive
        self._check_that_nothing_is_left()

    def close(self) -> None:
        async def stop() -> None:
            await self.pool.stop()

        try:
            self.loop.run_until_complete(stop())
            assert not any(site.is_alive for site in self.sites)
            self.loop.run_for(0)
            assert not asyncio.all_tasks(self.loop)
            self.check()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Free what is held of the real world."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=1))
        self._patches.close()
        self.loop.close()

    def _wait_for_all(self) -> None:
        until = self.clock.now + QUIET_S
        while self.live():
            assert self.clock.now < until, f"never ended: {self.live()}, the workers are {self.pool.health()}"
            self.loop.run_for(1)
            self.check()

    def _check_that_nothing_is_left(self) -> None:
        self.check()
        assert len(self.inquest) == 0
        for site in self.sites:
            assert site.worker is not None
            assert len(site.worker.streams) == len(site.worker.scheduler) == 0
            load = site.worker.scheduler.load()
            assert (load.kv_held_bytes, load.kv_reserved_bytes) == (0, 0)
            client = site.supervisor.ready_client
            assert client is not None
            assert client.active_streams == 0

        async def unload_all() -> None:
            async with asyncio.timeout(10):  # who still held one would keep it
                for model in MODELS:
                    await self.models.unload(model, force=False)

        self.loop.run_until_complete(unload_all())
        assert all(task.done() for task in self._unloads)
        assert [model.state for model in self.models.served(None)] == ["absent"] * len(MODELS)
