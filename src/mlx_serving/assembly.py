"""From a configuration to a running engine: the only place where features are chosen.

Read the stack from the outside in: refuse what the operator does not allow, keep the caller's deadline, spare a worker
that keeps failing, go on in the next worker when one dies, hold the model that is named, generate in the worker.
"""

from __future__ import annotations

from mlx_serving.config.schema import Config
from mlx_serving.core.generation import Backend
from mlx_serving.core.inquest import Inquest, InquestPolicy
from mlx_serving.core.model_residency import ResidencyPolicy
from mlx_serving.engine.batch_queue import BatchQueue
from mlx_serving.engine.breaker import BreakerBackend
from mlx_serving.engine.deadline import DeadlineBackend
from mlx_serving.engine.engine_core import CALL_TIMEOUT_S, EngineCore, Parts
from mlx_serving.engine.limits import LimitsBackend
from mlx_serving.engine.model_manager import ModelManager, ModelSpec
from mlx_serving.engine.recovery import RecoveryBackend
from mlx_serving.engine.residency import ResidencyBackend
from mlx_serving.engine.runtime_telemetry import TelemetryReader
from mlx_serving.engine.supervisor import Supervisor
from mlx_serving.engine.worker_backend import WorkerBackend
from mlx_serving.engine.worker_process import WorkerCommand
from mlx_serving.machine import blas
from mlx_serving.telemetry.events import EventBus
from mlx_serving.telemetry.logs import log_event
from mlx_serving.wire.settings import WorkerSettings


def build(config: Config) -> EngineCore:
    """An engine that is not started yet. Nothing runs, nothing is loaded.

    Raises `InvalidConfig` when the BLAS library that the configuration names is not there.
    """
    blas.find(config.worker.blas)
    events = EventBus()
    events.subscribe(log_event)
    settings = WorkerSettings(
        max_message_bytes=config.worker.max_message_bytes,
        scheduler=config.scheduler.policy,
        sampling=config.generation.sampling_defaults,
        memory=config.memory,
    )
    command = WorkerCommand(settings, python=config.worker.python, blas=config.worker.blas)
    supervisor = Supervisor(command, config.worker, events)

    models = ModelManager(supervisor, ResidencyPolicy(), events)
    for served in config.models.served:
        models.register(ModelSpec(served.name, served.model, served.revision, served.context_length))

    worker = WorkerBackend(supervisor, Inquest(InquestPolicy()), config.scheduler.flow)
    streams = RecoveryBackend(ResidencyBackend(worker, models), worker.forget, events)
    breaker = BreakerBackend(streams, config.circuit_breaker, events)
    backend: Backend = DeadlineBackend(breaker, config.generation.timeout_s)
    if config.generation.max_tokens_limit is not None:
        backend = LimitsBackend(backend, config.generation.max_tokens_limit)

    return EngineCore(
        Parts(
            supervisor=supervisor,
            models=models,
            streams=streams,
            breaker=breaker,
            backend=backend,
            batch_queue=BatchQueue(config.batch_queue, CALL_TIMEOUT_S),
            telemetry=TelemetryReader(supervisor),
            events=events,
            retry=config.retry,
            default_model=config.models.default,
            preload=tuple(served.name for served in config.models.served if served.preload),
        )
    )
