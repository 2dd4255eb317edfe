"""Loading and unloading models."""

from __future__ import annotations

import gc
from typing import Any

import mlx.core as mx

from mlx_serving.core.load_pace import LoadPace
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.wire import methods
from mlx_serving.wire.notifications import ModelProgress
from mlx_serving.worker.embedding.embeddings import Embeddings
from mlx_serving.worker.embedding.handlers import EmbedHandlers
from mlx_serving.worker.embedding.loader import AnyLoading, embedder_loading
from mlx_serving.worker.embedding.model import EmbeddingModel
from mlx_serving.worker.generation import Generation
from mlx_serving.worker.heartbeat import Progress
from mlx_serving.worker.loading import loader
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.loaded_models import LoadedModels
from mlx_serving.worker.loading.loads import Loads
from mlx_serving.worker.memory import MemoryGuard
from mlx_serving.worker.model_runner import RunnerFactory
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.prefix.disk import PrefixDisk
from mlx_serving.worker.routes import Reply, Route
from mlx_serving.worker.stream_handlers import StreamHandlers
from mlx_serving.worker.tokenizer_thread import TokenizerThread


class ModelHandlers:
    """`slice_s` is how long a piece of a load may keep the streams of other models waiting, in seconds."""

    def __init__(
        self,
        outbox: Outbox,
        models: LoadedModels,
        generation: Generation,
        memory: MemoryGuard,
        streams: StreamHandlers,
        embeddings: Embeddings,
        embeds: EmbedHandlers,
        progress: Progress,
        make_runner: RunnerFactory,
        loads: TokenizerThread,
        slice_s: float,
        disk: PrefixDisk | None,
    ) -> None:
        self._outbox = outbox
        self._models = models
        self._generation = generation
        self._memory = memory
        self._streams = streams
        self._embeddings = embeddings
        self._embeds = embeds
        self._progress = progress
        self._make_runner = make_runner
        self._disk = disk
        self._pace = LoadPace(slice_s)
        self.loads = Loads(loads, self._begin, self._loaded, self._memory.forget_model)
        self._unloading: dict[str, list[Reply[methods.SuccessResult]]] = {}  # who waits for a model to be gone

    def routes(self) -> tuple[Route[Any, Any], ...]:
        return (Route(methods.LOAD_MODEL, self.load_model), Route(methods.UNLOAD_MODEL, self.unload_model))

    def load_model(self, params: methods.LoadModelParams, reply: Reply[methods.LoadModelResult]) -> None:
        if params.trust_remote_code:
            raise UnsupportedParameter("trust_remote_code is not supported", field="trust_remote_code", given=True)
        if self._models.is_leaving(params.model_id):
            raise InvalidRequest(f"{params.model_id} is being unloaded", field="model_id", given=params.model_id)
        loaded = self._models.find(params.model_id)
        under_way = self.loads.find(params.model_id)
        wanted = loader.options_of(params)
        given = wanted if under_way is None else loader.options_of(under_way)
        if isinstance(loaded, LoadedModel):
            given = loaded.options
        if given != wanted:
            raise InvalidRequest(
                f"{params.model_id} is loaded already, as {given} and not as {wanted}: unload it first",
                field=_differing(given, wanted),
                given=str(wanted),
            )
        if loaded is None:
            self.loads.add(params, reply)
        else:
            if params.draft:
                loader.require_draft(params.model_id, loaded.facts.capabilities)
            reply.send(loaded.facts)

    def _begin(self, params: methods.LoadModelParams) -> AnyLoading:
        model_id = params.model_id

        def require(weights: int) -> None:
            self._memory.require(model_id, weights)
            self._memory.add_model(model_id, weights)  # what streams may take meanwhile is less

        def report(stage: str, done: int, total: int) -> None:
            self._progress.advance()
            self._outbox.notify(ModelProgress(model_id, stage, done, total))

        embedder = yield from embedder_loading(params, report, require)
        if embedder is not None:
            if params.draft:
                loader.require_draft(model_id, embedder.facts.capabilities)
            return embedder
        return (
            yield from loader.loading(
                params,
                self._make_runner,
                report,
                require,
                self._models.find_base,
                self._pace,
                read_ahead=lambda: not self._generation.is_idle,
            )
        )

    def _loaded(self, model: LoadedModel | EmbeddingModel) -> None:
        if isinstance(model, EmbeddingModel):
            self._models.add_embedder(model)
            self._embeddings.add_model(model)
            self._memory.add_model(model.model_id, model.facts.memory_bytes)
            return
        self._models.add(model)
        self._generation.models.add(model)
        shared = () if model.base is None else ((model.base.key, model.base.size_bytes),)
        self._memory.add_model(model.model_id, model.own_bytes, shared)
        if self._disk is not None:
            self._disk.add_model(model)

    @property
    def is_due(self) -> bool:
        """Whether there is a slice of a load to be done."""
        return self.loads.is_due

    def work(self) -> None:
        """Drop the models that are to go and that nobody uses any more; do a slice of a load."""
        self.finish_unloading()
        self.loads.advance()

    def unload_model(self, params: methods.UnloadModelParams, reply: Reply[methods.SuccessResult]) -> None:
        """Waits for the model's streams, unless forced: then they are aborted. An absent model is a success."""
        model_id = params.model_id
        if params.force:
            self._streams.abort_all(model_id)
            self._embeds.abort_all(model_id)
        if model_id not in self._models:
            reply.send(methods.SuccessResult())
            return
        self._models.leave(model_id)
        self._unloading.setdefault(model_id, []).append(reply)
        self.finish_unloading()

    def finish_unloading(self) -> None:
        """Drop the models that are to go and that nobody uses any more."""
        for model_id in [model_id for model_id in self._unloading if not self._users(model_id)]:
            if isinstance(self._models.find(model_id), EmbeddingModel):
                self._embeddings.remove_model(model_id)
            else:
                self._generation.models.remove(model_id)
                if self._disk is not None:
                    self._disk.remove_model(model_id)
            self._models.remove(model_id)
            gc.collect()
            mx.synchronize()  # buffers in flight must not be freed
            mx.clear_cache()
            self._memory.remove_model(model_id)
            for reply in self._unloading.pop(model_id):
                reply.send(methods.SuccessResult())

    def _users(self, model_id: str) -> int:
        return self._streams.count(model_id) + self._embeds.count(model_id)


def _differing(given: WeightOptions, wanted: WeightOptions) -> str:
    if given.quantization != wanted.quantization:
        return "quantization"
    return "adapter_path" if given.kv == wanted.kv else "kv_bits"
