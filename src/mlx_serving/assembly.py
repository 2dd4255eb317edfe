"""From a configuration to a running engine: the only place where features are chosen.

Read the stack from the outside in: find out what the name means, refuse what the operator does not allow, keep the
caller's deadline, read the pictures, give an answer again that is known, compute once what several ask at a time,
refuse what is more than can wait, spare a worker that keeps failing, go on in another worker when one dies, choose a
worker, hold the model that is named in it, generate there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from mlx_serving.config.changes import Plan
from mlx_serving.config.model_entries import ServedModel
from mlx_serving.config.reuse import ResponseCacheConfig
from mlx_serving.config.schema import Config
from mlx_serving.core.alias_table import Target
from mlx_serving.core.generation import Backend
from mlx_serving.core.inquest import Inquest, InquestPolicy
from mlx_serving.core.intake import Intake
from mlx_serving.core.model_residency import ResidencyPolicy
from mlx_serving.core.placement import PlacementPolicy
from mlx_serving.engine.aliases import Aliases
from mlx_serving.engine.batch_queue import BatchQueue
from mlx_serving.engine.breaker import BreakerBackend
from mlx_serving.engine.calls import CALL_TIMEOUT_S
from mlx_serving.engine.deadline import DeadlineBackend
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.engine.images import ImagesBackend, PromptImages
from mlx_serving.engine.intake import IntakeBackend
from mlx_serving.engine.limits import LimitsBackend
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.engine.model_manager import ModelManager
from mlx_serving.engine.model_versions import ModelVersions
from mlx_serving.engine.names import NamesBackend
from mlx_serving.engine.parts import Parts
from mlx_serving.engine.pooled_models import PooledModels
from mlx_serving.engine.prefetch import Prefetch
from mlx_serving.engine.recovery import RecoveryBackend
from mlx_serving.engine.residency import ResidencyBackend
from mlx_serving.engine.response_cache import MemoryBodies, ResponseCacheBackend
from mlx_serving.engine.response_store import DiskBodies
from mlx_serving.engine.runtime_telemetry import TelemetryReader
from mlx_serving.engine.sharing import SharingBackend
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_backend import WorkerBackend
from mlx_serving.engine.worker_pool import PooledWorker, WorkerPool
from mlx_serving.engine.worker_process import WorkerCommand
from mlx_serving.errors import EngineError
from mlx_serving.images.reader import ImageReader
from mlx_serving.machine import blas, devices
from mlx_serving.machine.devices import DeviceShare
from mlx_serving.telemetry.events import EventBus
from mlx_serving.telemetry.logs import log_event
from mlx_serving.wire.settings import WorkerSettings


def build(config: Config) -> EngineCore:
    """An engine that is not started yet. Nothing runs, nothing is loaded.

    Raises `InvalidConfig` when the BLAS library that the configuration names is not there.
    """
    return assemble(config).core


class Stack:
    """An engine and the parts of it that another configuration changes while it runs."""

    def __init__(
        self,
        core: EngineCore,
        shares: Sequence[DeviceShare],
        breaker: BreakerBackend,
        intake: Intake,
        calls: BatchQueue,
        layers: Layers,
    ) -> None:
        self.core = core
        self._shares = shares
        self._breaker = breaker
        self._intake = intake
        self._calls = calls
        self._layers = layers

    def adopt(self, plan: Plan) -> None:
        """Carry out what of a plan can be done at once: all but fresh workers and models.

        Raises `InvalidConfig`, before anything has changed, when the BLAS library that is configured is not there.
        """
        config = plan.config
        blas.find(config.worker.blas)
        self._breaker.policy = config.circuit_breaker
        self._calls.reconfigure(config.batch_queue)
        self._intake.reconfigure(config.scheduler.policy, config.scheduler.max_queue_s)
        self._layers.images.reconfigure(config.images, config.worker.max_message_bytes)
        self._layers.reconfigure(config)
        if plan.fresh_worker:  # until they are there, answers are of neither configuration
            self._layers.versions.settings = None
        for model in plan.added:
            # An alias may mean it at once; one that somebody has loaded under the name is replaced later.
            if model.name not in self.core.models.names():
                self.core.models.register(_spec(model))
        _configure_names(self.core.aliases, config, [model.name for model in plan.removed])
        self.core.adopt(
            backend=self._layers.outermost(config),
            sharing=self._layers.sharing,
            responses=self._layers.responses,
            retry=config.retry,
            default_model=config.models.default,
        )
        for share, worker in zip(self._shares, self.core.workers, strict=True):
            worker.streams.flow_policy = config.scheduler.flow
            worker.models.room.reconfigure(config.models.room)
            worker.supervisor.reconfigure(_command(config, share), config.worker)

    async def carry_out(self, plan: Plan) -> dict[str, EngineError]:
        """Do what takes its time: replace the workers, one after the other, if the plan needs it, then the models.

        Returns by name why models could not be replaced. Raises `WorkerDied` when a worker does not come back.
        """
        await self._layers.close_former()
        if plan.fresh_worker:
            await self.core.restart_workers()
            self._layers.versions.settings = _told(plan.config)
        failed = await self.core.change_models(
            added=[_spec(model) for model in plan.added],
            removed=[model.name for model in plan.removed],
            replaced=[_spec(model) for model in plan.replaced],
            load=plan.to_load,
        )
        for model in plan.config.models.served:
            if model.name in self.core.models.names():
                self.core.models.adjust(_spec(model))
        return failed


def assemble(config: Config) -> Stack:
    """The same as `build`, with a way to change it."""
    blas.find(config.worker.blas)
    events = EventBus()
    events.subscribe(log_event)
    inquest = Inquest(InquestPolicy())
    shares = devices.shares(config.workers)
    workers = [_worker(number, share, config, inquest, events) for number, share in enumerate(shares)]
    pool = WorkerPool(workers, inquest, PlacementPolicy())
    models = PooledModels(pool, events)
    for served in config.models.served:
        models.register(_spec(served))

    alias_file = config.models.alias_file
    aliases = Aliases(models, events, None if alias_file is None else Path(alias_file).expanduser())
    _configure_names(aliases, config)

    streams = RecoveryBackend(pool, pool.forget, events)
    breaker = BreakerBackend(streams, config.circuit_breaker, events)
    intake = Intake(config.scheduler.policy, config.workers, max_wait_s=config.scheduler.max_queue_s)
    prefetch = Prefetch(models.directory_of_absent, events)
    images = PromptImages(ImageReader(config.images), models.takes_images, config.worker.max_message_bytes)
    layers = Layers(IntakeBackend(breaker, intake), ModelVersions(models, _told(config)), aliases, prefetch, images)
    layers.reconfigure(config)
    calls = BatchQueue(config.batch_queue, CALL_TIMEOUT_S)
    core = EngineCore(
        Parts(
            pool=pool,
            models=models,
            aliases=aliases,
            prefetch=prefetch,
            streams=streams,
            breaker=breaker,
            backend=layers.outermost(config),
            sharing=layers.sharing,
            responses=layers.responses,
            batch_queue=calls,
            images=images,
            events=events,
            retry=config.retry,
            default_model=config.models.default,
            preload=tuple(served.name for served in config.models.served if served.preload),
        )
    )
    return Stack(core, shares, breaker, intake, calls, layers)


class Layers:
    """The layers that requests enter by. Those that remember something are the same ones after a change of the
    configuration that does not concern them."""

    def __init__(
        self, inner: Backend, versions: ModelVersions, aliases: Aliases, prefetch: Prefetch, images: PromptImages
    ) -> None:
        self.versions = versions
        self.images = images
        self.prefetch = prefetch
        self._aliases = aliases
        self.sharing: SharingBackend | None = None
        self.responses: ResponseCacheBackend | None = None
        self._inner = inner
        self._response_config = ResponseCacheConfig()
        self._former: list[ResponseCacheBackend] = []

    def reconfigure(self, config: Config) -> None:
        if not config.sharing.enabled:
            self.sharing = None
        elif self.sharing is None:
            self.sharing = SharingBackend(self._inner, self.versions.configured)
        wanted = config.response_cache
        if wanted != self._response_config:
            if self.responses is not None:
                self._former.append(self.responses)
            self._response_config, self.responses = wanted, None
            if wanted.enabled:
                bodies = MemoryBodies() if wanted.path is None else DiskBodies(Path(wanted.path).expanduser())
                self.responses = ResponseCacheBackend(self._inner, wanted, bodies, self.versions.loaded)
        if self.responses is not None:
            self.responses.inner = self.sharing or self._inner

    def outermost(self, config: Config) -> Backend:
        """The layer that requests enter by."""
        backend: Backend = ImagesBackend(self.responses or self.sharing or self._inner, self.images)
        backend = DeadlineBackend(backend, config.generation.timeout_s)
        if config.generation.max_tokens_limit is not None:
            backend = LimitsBackend(backend, config.generation.max_tokens_limit)
        self.prefetch.enabled = config.models.prefetch
        default_max_tokens = config.generation.sampling_defaults.max_tokens
        return NamesBackend(backend, self._aliases, default_max_tokens, self.prefetch.used)

    async def close_former(self) -> None:
        """Close what was replaced."""
        while self._former:
            await self._former.pop().close()


def _configure_names(aliases: Aliases, config: Config, leaving: Collection[str] = ()) -> None:
    """Needs all models that the aliases mean; of those that are there, some are `leaving`."""
    aliases.reconfigure(
        {alias.name: Target(alias.model, alias.profile.core) for alias in config.models.aliases},
        {model.name: model.profile.core for model in config.models.served},
        leaving,
    )


def _told(config: Config) -> str:
    """What the workers know of defaults."""
    return repr(config.generation.sampling_defaults)


def _worker(number: int, share: DeviceShare, config: Config, inquest: Inquest, events: EventBus) -> PooledWorker:
    supervisor = Supervisor(_command(config, share), config.worker, events, number=number)
    # Where there is another worker to go to, nobody waits for this one to come back.
    residency = ResidencyPolicy(waits_for_restart=config.workers == 1)
    models = ModelManager(supervisor, residency, events, config.models.room)
    streams = WorkerBackend(supervisor, inquest, config.scheduler.flow, number)
    return PooledWorker(supervisor, models, streams, ResidencyBackend(streams, models), TelemetryReader(supervisor))


def _command(config: Config, share: DeviceShare) -> WorkerCommand:
    folder = config.prefix_cache.disk.path
    settings = WorkerSettings(
        max_message_bytes=config.worker.max_message_bytes,
        scheduler=config.scheduler.policy,
        sampling=config.generation.sampling_defaults,
        memory=config.memory,
        prefix_cache=config.prefix_cache,
        prefix_disk=config.prefix_cache.disk,
        prefix_folder=None if folder is None else str(Path(folder).expanduser().absolute()),
        device_sharers=share.sharers,
    )
    return WorkerCommand(settings, config.worker.python, config.worker.blas, share.environment)


def _spec(model: ServedModel) -> ModelSpec:
    return ModelSpec(
        model.name,
        model.model,
        model.revision,
        model.context_length,
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
        weights=model.weights,
        pinned=model.pin,
        keep_alive_s=model.keep_alive_s,
        warm_up=model.warm_up,
        pooling=model.pooling,
    )
