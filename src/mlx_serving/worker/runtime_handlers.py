"""The worker as a whole: what it is, what it holds, and its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import metadata
from typing import Any, Literal

import mlx.core as mx
import psutil

from mlx_serving.core.runtime_telemetry import RuntimeTelemetry
from mlx_serving.machine.blas import Blas
from mlx_serving.wire import methods
from mlx_serving.worker.embedding.handlers import EmbedHandlers
from mlx_serving.worker.embedding.model import EmbeddingModel
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.heartbeat import Pulse
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.loaded_models import LoadedModels
from mlx_serving.worker.memory import MemoryGuard
from mlx_serving.worker.memory_bounds import working_set_bytes
from mlx_serving.worker.model_handlers import ModelHandlers
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.routes import Reply, Route
from mlx_serving.worker.stream_handlers import StreamHandlers
from mlx_serving.worker.telemetry import Telemetry


class RuntimeHandlers:
    """`stop` ends the loop after the answer to `shutdown` is written."""

    def __init__(
        self,
        outbox: Outbox,
        models: LoadedModels,
        streams: StreamHandlers,
        embeds: EmbedHandlers,
        model_handlers: ModelHandlers,
        generation: Generation,
        memory: MemoryGuard,
        pulse: Pulse,
        telemetry: Telemetry,
        *,
        blas: Blas,
        restart_count: int,
        stop: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._models = models
        self._streams = streams
        self._embeds = embeds
        self._model_handlers = model_handlers
        self._generation = generation
        self._memory = memory
        self._pulse = pulse
        self._telemetry = telemetry
        self._blas = blas
        self._restart_count = restart_count
        self._stop = stop

    def routes(self) -> tuple[Route[Any, Any], ...]:
        return (
            Route(methods.RUNTIME_INFO, self.runtime_info),
            Route(methods.RUNTIME_STATE, self.runtime_state),
            Route(methods.RUNTIME_TELEMETRY, self.runtime_telemetry),
            Route(methods.SHUTDOWN, self.shutdown),
        )

    def runtime_info(self, params: methods.RuntimeInfoParams, reply: Reply[methods.RuntimeInfoResult]) -> None:
        binary = methods.STEP_FRAMES in params.protocols
        memory, plan = psutil.Process().memory_info(), self._memory.look()
        reply.send(
            methods.RuntimeInfoResult(
                version=metadata.version("mlx-serving"),
                mlx_version=metadata.version("mlx"),
                mlx_lm_version=metadata.version("mlx-lm"),
                protocol=methods.PROTOCOL_VERSION,
                protocols=list(methods.PROTOCOLS),
                notifications=methods.STEP_FRAMES if binary or self._outbox.is_binary else methods.PROTOCOL_VERSION,
                capabilities=[method.name for method in methods.METHODS],
                mlx_supported=True,
                device=str(mx.default_device()),
                metal=mx.metal.is_available(),
                blas=methods.BlasInfo(self._blas.name, self._blas.path),
                memory=methods.MemoryInfo(
                    rss=memory.rss,
                    vms=memory.vms,
                    active=mx.get_active_memory(),
                    cache=mx.get_cache_memory(),
                    peak=mx.get_peak_memory(),
                    capacity=plan.capacity.size,
                    limited_by=plan.capacity.limited_by,
                    weights=plan.weights,
                    kv_budget=plan.kv_caches,
                ),
                pid=os.getpid(),
                device_name=str(mx.device_info().get("device_name", "")),
                working_set_bytes=working_set_bytes(),
            )
        )
        if binary:
            self._outbox.use_binary_notifications()
        if params.heartbeat_interval_s is not None:
            self._pulse.start(params.heartbeat_interval_s)

    def runtime_state(self, params: methods.NoParams, reply: Reply[methods.RuntimeStateResult]) -> None:
        reply.send(
            methods.RuntimeStateResult(
                loaded_models=[
                    methods.LoadedModelState(
                        model_id,
                        "ready",
                        _type_of(self._models.find(model_id)),
                        self._streams.count(model_id) + self._embeds.count(model_id),
                    )
                    for model_id in self._models
                ],
                active_streams=len(self._streams) + len(self._embeds),
                paused_streams=self._generation.paused,
                restart_count=self._restart_count,
            )
        )

    def runtime_telemetry(self, params: methods.NoParams, reply: Reply[RuntimeTelemetry]) -> None:
        reply.send(self._telemetry.read(opening=self._streams.opening + self._embeds.opening))

    def shutdown(self, params: methods.NoParams, reply: Reply[methods.SuccessResult]) -> None:
        for model_id in self._models:
            self._streams.abort_all(model_id)
            self._embeds.abort_all(model_id)
        self._model_handlers.finish_unloading()
        reply.send(methods.SuccessResult())
        self._stop()


def _type_of(model: LoadedModel | EmbeddingModel | None) -> Literal["text", "vision", "embedding", "reranker"]:
    if isinstance(model, EmbeddingModel):
        return "reranker" if model.plan.pooling is None else "embedding"
    return "vision" if model is not None and model.facts.is_vision_model else "text"
