"""What each method of the pipe does. Runs on the thread that owns MLX; what takes long goes to the tokenizer thread."""

from __future__ import annotations

import gc
import os
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Generic, TypeVar

import mlx.core as mx
import msgspec
import psutil

from mlx_serving.core import sampling_defaults
from mlx_serving.core.sampling_defaults import ResolvedSampling, SamplingDefaults
from mlx_serving.errors import (
    Aborted,
    EngineError,
    InvalidRequest,
    ModelNotLoaded,
    UnsupportedParameter,
)
from mlx_serving.machine.blas import Blas
from mlx_serving.wire import jsonrpc, methods
from mlx_serving.wire.methods import Method
from mlx_serving.wire.notifications import ModelProgress, Row, StepFrame
from mlx_serving.worker import loader
from mlx_serving.worker.generation import Generation, Terms
from mlx_serving.worker.heartbeat import Progress, Pulse
from mlx_serving.worker.loaded_model import LoadedModel
from mlx_serving.worker.model_runner import Job, RunnerFactory
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.requests import check_ids, check_token_ids, prompt_of, sampling_of, tokens_that_fit
from mlx_serving.worker.sequence import Ending, RunningSequence
from mlx_serving.worker.tokenizing import TokenizerThread

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Reply(Generic[R]):
    """Where the answer to one request goes; called once, now or later. A notification's goes nowhere."""

    outbox: Outbox
    request_id: jsonrpc.RequestId | msgspec.UnsetType

    def send(self, result: R) -> None:
        if not isinstance(self.request_id, msgspec.UnsetType):
            self.outbox.send(jsonrpc.encode_result(self.request_id, result))

    def fail(self, error: EngineError) -> None:
        if not isinstance(self.request_id, msgspec.UnsetType):
            self.outbox.send(jsonrpc.encode_error(self.request_id, error))


@dataclass(frozen=True, slots=True)
class Route(Generic[P, R]):
    method: Method[P, R]
    handle: Callable[[P, Reply[R]], None]


@dataclass(slots=True)
class _Unloading:
    """Who waits for a model to be gone; it goes when its last stream has ended."""

    replies: list[Reply[methods.SuccessResult]]


class Handlers:
    """`stop` ends the loop after the answer to `shutdown` is written."""

    def __init__(
        self,
        outbox: Outbox,
        generation: Generation,
        tokenizers: TokenizerThread,
        progress: Progress,
        pulse: Pulse,
        make_runner: RunnerFactory,
        *,
        blas: Blas,
        restart_count: int,
        defaults: SamplingDefaults,
        stop: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._generation = generation
        self._tokenizers = tokenizers
        self._progress = progress
        self._pulse = pulse
        self._make_runner = make_runner
        self._blas = blas
        self._restart_count = restart_count
        self._defaults = defaults
        self._stop = stop
        self._models: dict[str, LoadedModel] = {}
        self._unloading: dict[str, _Unloading] = {}
        self._opening: dict[str, str] = {}  # stream id -> model id, while the prompt is tokenized

    def routes(self) -> tuple[Route[Any, Any], ...]:
        return (
            Route(methods.RUNTIME_INFO, self.runtime_info),
            Route(methods.RUNTIME_STATE, self.runtime_state),
            Route(methods.SHUTDOWN, self.shutdown),
            Route(methods.LOAD_MODEL, self.load_model),
            Route(methods.UNLOAD_MODEL, self.unload_model),
            Route(methods.GENERATE, self.generate),
            Route(methods.ABORT, self.abort),
            Route(methods.TOKENIZE, self.tokenize),
            Route(methods.DETOKENIZE, self.detokenize),
            Route(methods.BATCH_TOKENIZE, self.batch_tokenize),
        )

    @property
    def owes_answers(self) -> bool:
        """Whether requests are being tokenized: work that no step shows yet."""
        return self._tokenizers.pending > 0

    # -- the runtime

    def runtime_info(self, params: methods.RuntimeInfoParams, reply: Reply[methods.RuntimeInfoResult]) -> None:
        binary = methods.STEP_FRAMES in params.protocols
        memory = psutil.Process().memory_info()
        reply.send(
            methods.RuntimeInfoResult(
                version=metadata.version("mlx-serving"),
                mlx_version=metadata.version("mlx"),
                mlx_lm_version=metadata.version("mlx-lm"),
                protocol=methods.PROTOCOL_VERSION,
                protocols=list(methods.PROTOCOLS),
                notifications=methods.STEP_FRAMES if binary or self._outbox.is_binary else methods.PROTOCOL_VERSION,
                capabilities=[route.method.name for route in self.routes()],
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
                ),
                pid=os.getpid(),
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
                    methods.LoadedModelState(model_id, "ready", "text", self._streams_of(model_id))
                    for model_id in self._models
                ],
                active_streams=len(self._generation) + len(self._opening),
                restart_count=self._restart_count,
            )
        )

    def shutdown(self, params: methods.NoParams, reply: Reply[methods.SuccessResult]) -> None:
        for model_id in self._models:
            self._abort_streams(model_id)
        self.finish_unloading()
        reply.send(methods.SuccessResult())
        self._stop()

    # -- models

    def load_model(self, params: methods.LoadModelParams, reply: Reply[methods.LoadModelResult]) -> None:
        for name, neutral in (("draft", False), ("trust_remote_code", False)):
            if getattr(params, name) != neutral:
                raise UnsupportedParameter(f"{name} is not supported", field=name, given=True)
        if params.quantization not in (None, "none"):
            raise UnsupportedParameter(
                "quantization on load is not supported: give a model that is quantised already",
                field="quantization",
                given=params.quantization,
            )
        if params.model_id in self._unloading:
            raise InvalidRequest(f"{params.model_id} is being unloaded", field="model_id", given=params.model_id)
        loaded = self._models.get(params.model_id)
        if loaded is None:
            loaded = loader.load(params, self._make_runner, self._progress_reporter(params.model_id))
            self._models[params.model_id] = loaded
            self._generation.add_model(loaded)
        reply.send(loaded.facts)

    def _progress_reporter(self, model_id: str) -> loader.OnProgress:
        def report(stage: str, done: int, total: int) -> None:
            self._progress.advance()
            self._outbox.notify(ModelProgress(model_id, stage, done, total))

        return report

    def unload_model(self, params: methods.UnloadModelParams, reply: Reply[methods.SuccessResult]) -> None:
        """Waits for the model's streams, unless forced: then they are aborted. An absent model is a success."""
        model_id = params.model_id
        if params.force:
            self._abort_streams(model_id)
        if model_id not in self._models:
            reply.send(methods.SuccessResult())
            return
        self._unloading.setdefault(model_id, _Unloading([])).replies.append(reply)
        self.finish_unloading()

    def finish_unloading(self) -> None:
        """Drop the models that are to go and that nobody uses any more."""
        for model_id in [model_id for model_id in self._unloading if self._streams_of(model_id) == 0]:
            del self._models[model_id]
            self._generation.remove_model(model_id)
            gc.collect()
            mx.synchronize()  # buffers in flight must not be freed
            mx.clear_cache()
            for reply in self._unloading.pop(model_id).replies:
                reply.send(methods.SuccessResult())

    def _model(self, model_id: str) -> LoadedModel:
        model = self._models.get(model_id)
        if model is None or model_id in self._unloading:
            raise ModelNotLoaded(f"Model {model_id} is not loaded", model=model_id, loaded=sorted(self._models))
        return model

    def _streams_of(self, model_id: str) -> int:
        return len(self._generation.stream_ids(model_id)) + sum(
            opening == model_id for opening in self._opening.values()
        )

    def _abort_streams(self, model_id: str) -> None:
        rows = [self._generation.abort(stream_id) for stream_id in self._generation.stream_ids(model_id)]
        self._emit([row for row in rows if row is not None])
        for stream_id in [stream_id for stream_id, opening in self._opening.items() if opening == model_id]:
            del self._opening[stream_id]

    def _emit(self, rows: list[Row]) -> None:
        if rows:
            self._outbox.notify(StepFrame(rows))

    # -- streams

    def generate(self, params: methods.GenerateParams, reply: Reply[methods.GenerateResult]) -> None:
        if params.guidance is not None:
            raise UnsupportedParameter("guidance is not supported", field="guidance")
        model = self._model(params.model_id)
        stream_id = params.stream_id or str(uuid.uuid4())
        if stream_id in self._opening or stream_id in self._generation:
            raise InvalidRequest(f"A stream with the id {stream_id} is active", field="stream_id", given=stream_id)
        prompt = prompt_of(params)
        sampling_params = sampling_of(params)
        sampling_defaults.validate(sampling_params)
        sampling = sampling_defaults.resolve(sampling_params, model.generation_config, self._defaults)
        check_ids(params, model)
        started_at, started = time.time(), time.monotonic()
        self._opening[stream_id] = model.model_id

        def admit(token_ids: list[int]) -> None:
            if self._opening.pop(stream_id, None) is None:
                reply.fail(Aborted("The stream was aborted before it began", stream_id=stream_id))
                return
            max_tokens = tokens_that_fit(
                len(token_ids), params.max_tokens, sampling.max_tokens, model.facts.context_length
            )
            self._submit(
                model, stream_id, token_ids, sampling, Terms(max_tokens, params.priority, params.caller), started
            )
            reply.send(methods.GenerateResult(stream_id, started_at, len(token_ids)))

        def refuse(error: EngineError) -> None:
            self._opening.pop(stream_id, None)
            reply.fail(error)

        self._tokenizers.submit(lambda: model.tokenizer.prompt_ids(prompt), admit, refuse)

    def _submit(
        self,
        model: LoadedModel,
        stream_id: str,
        token_ids: list[int],
        sampling: ResolvedSampling,
        terms: Terms,
        started: float,
    ) -> None:
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        ending = Ending(terms.max_tokens, model.eos_token_ids.union(sampling.stop_token_ids), sampling.stop)
        sequence = RunningSequence(stream_id, token_ids, ending, model.decode, started)
        job = Job(stream_id, token_ids, sampling, seed)
        self._generation.submit(model, sequence, job, terms)

    def abort(self, params: methods.AbortParams, reply: Reply[methods.AbortResult]) -> None:
        row = self._generation.abort(params.stream_id)
        was_opening = self._opening.pop(params.stream_id, None) is not None
        self._emit([row] if row is not None else [])
        reply.send(methods.AbortResult(row is not None or was_opening))

    # -- tokens

    def tokenize(self, params: methods.TokenizeParams, reply: Reply[methods.TokenizeResult]) -> None:
        model = self._model(params.model_id)
        self._tokenizers.submit(lambda: _tokenize(model, params), reply.send, reply.fail)

    def detokenize(self, params: methods.DetokenizeParams, reply: Reply[methods.DetokenizeResult]) -> None:
        model = self._model(params.model_id)
        check_token_ids("tokens", params.tokens, model)

        def work() -> methods.DetokenizeResult:
            text = model.tokenizer.decode(params.tokens, skip_special_tokens=params.skip_special_tokens)
            return methods.DetokenizeResult(text)

        self._tokenizers.submit(work, reply.send, reply.fail)

    def batch_tokenize(self, params: methods.BatchTokenizeParams, reply: Reply[methods.BatchTokenizeResult]) -> None:
        models = dict(self._models)

        def one(raw: msgspec.Raw) -> methods.BatchTokenizeItem:
            try:
                entry = jsonrpc.parse_params(raw, methods.TokenizeParams)
                model = models.get(entry.model_id)
                if model is None:
                    raise ModelNotLoaded(f"Model {entry.model_id} is not loaded", model=entry.model_id)
                return methods.BatchTokenizeItem(success=True, result=_tokenize(model, entry))
            except EngineError as error:
                failure = methods.BatchError(error.rpc_code, error.message, error.code)
                return methods.BatchTokenizeItem(success=False, error=failure)

        def work() -> methods.BatchTokenizeResult:
            return methods.BatchTokenizeResult([one(raw) for raw in params.requests])

        self._tokenizers.submit(work, reply.send, reply.fail)


def _tokenize(model: LoadedModel, params: methods.TokenizeParams) -> methods.TokenizeResult:
    token_ids = model.tokenizer.encode(params.text, add_special_tokens=params.add_special_tokens)
    return methods.TokenizeResult(token_ids, model.tokenizer.token_strings(token_ids))
