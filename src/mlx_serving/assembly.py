"""From a configuration to a running engine: the only place where features are chosen.

Read the stack from the outside in: refuse what the operator does not allow, refuse what is more than can wait, keep the
caller's deadline, spare a worker that keeps failing, go on in another worker when one dies, choose a worker, hold the
model that is named in it, generate there.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlx_serving.config.changes import Plan
from mlx_serving.config.schema import Config
from mlx_serving.config.served_models import ServedModel
from mlx_serving.core.generation import Backend
from mlx_serving.core.inquest import Inquest, InquestPolicy
from mlx_serving.core.intake import Intake
from mlx_serving.core.model_residency import ResidencyPolicy
from mlx_serving.core.placement import PlacementPolicy
from mlx_serving.engine.batch_queue import BatchQueue
from mlx_serving.engine.breaker import BreakerBackend
from mlx_serving.engine.deadline import DeadlineBackend
from mlx_serving.engine.engine_core import CALL_TIMEOUT_S, EngineCore, Parts
from mlx_serving.engine.intake import IntakeBackend
from mlx_serving.engine.limits import LimitsBackend
from mlx_serving.engine.model_manager import ModelManager, ModelSpec
from mlx_serving.engine.pooled_models import PooledModels
from mlx_serving.engine.recovery import RecoveryBackend
from mlx_serving.engine.residency import ResidencyBackend
from mlx_serving.engine.runtime_telemetry import TelemetryReader
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_backend import WorkerBackend
from mlx_serving.engine.worker_pool import PooledWorker, WorkerPool
from mlx_serving.engine.worker_process import WorkerCommand
from mlx_serving.errors import EngineError
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
    ) -> None:
        self.core = core
        self._shares = shares
        self._breaker = breaker
        self._intake = intake
        self._calls = calls

    def adopt(self, plan: Plan) -> None:
        """Carry out what of a plan can be done at once: all but fresh workers and models.

        Raises `InvalidConfig`, before anything has changed, when the BLAS library that is configured is not there.
        """
        config = plan.config
        blas.find(config.worker.blas)
        self._breaker.policy = config.circuit_breaker
        self._calls.reconfigure(config.batch_queue)
        self._intake.reconfigure(config.scheduler.policy, config.scheduler.max_queue_s)
        backend = _outermost(self._breaker, self._intake, config)
        self.core.adopt(backend=backend, retry=config.retry, default_model=config.models.default)
        for share, worker in zip(self._shares, self.core.workers, strict=True):
            worker.streams.flow_policy = config.scheduler.flow
            worker.supervisor.reconfigure(_command(config, share), config.worker)

    async def carry_out(self, plan: Plan) -> dict[str, EngineError]:
        """Do what takes its time: replace the workers, one after the other, if the plan needs it, then the models.

        Returns by name why models could not be replaced. Raises `WorkerDied` when a worker does not come back.
        """
        if plan.fresh_worker:
            await self.core.restart_workers()
        return await self.core.change_models(
            added=[_spec(model) for model in plan.added],
            removed=[model.name for model in plan.removed],
            replaced=[_spec(model) for model in plan.replaced],
            load=plan.to_load,
        )


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

    streams = RecoveryBackend(pool, pool.forget, events)
    breaker = BreakerBackend(streams, config.circuit_breaker, events)
    intake = Intake(config.scheduler.policy, config.workers, max_wait_s=config.scheduler.max_queue_s)
    calls = BatchQueue(config.batch_queue, CALL_TIMEOUT_S)
    core = EngineCore(
        Parts(
            pool=pool,
            models=models,
            streams=streams,
            breaker=breaker,
            backend=_outermost(breaker, intake, config),
            batch_queue=calls,
            events=events,
            retry=config.retry,
            default_model=config.models.default,
            preload=tuple(served.name for served in config.models.served if served.preload),
        )
    )
    return Stack(core, shares, breaker, intake, calls)


def _outermost(inner: Backend, intake: Intake, config: Config) -> Backend:
    backend: Backend = IntakeBackend(DeadlineBackend(inner, config.generation.timeout_s), intake)
    if config.generation.max_tokens_limit is not None:
        backend = LimitsBackend(backend, config.generation.max_tokens_limit)
    return backend


def _worker(number: int, share: DeviceShare, config: Config, inquest: Inquest, events: EventBus) -> PooledWorker:
    supervisor = Supervisor(_command(config, share), config.worker, events, number=number)
    # Where there is another worker to go to, nobody waits for this one to come back.
    models = ModelManager(supervisor, ResidencyPolicy(waits_for_restart=config.workers == 1), events)
    streams = WorkerBackend(supervisor, inquest, config.scheduler.flow, number)
    return PooledWorker(supervisor, models, streams, ResidencyBackend(streams, models), TelemetryReader(supervisor))


def _command(config: Config, share: DeviceShare) -> WorkerCommand:
    settings = WorkerSettings(
        max_message_bytes=config.worker.max_message_bytes,
        scheduler=config.scheduler.policy,
        sampling=config.generation.sampling_defaults,
        memory=config.memory,
        device_sharers=share.sharers,
    )
    return WorkerCommand(settings, config.worker.python, config.worker.blas, share.environment)


def _spec(model: ServedModel) -> ModelSpec:
    return ModelSpec(model.name, model.model, model.revision, model.context_length)
