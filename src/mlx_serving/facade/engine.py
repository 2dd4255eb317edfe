"""`Engine`: load models, generate, tokenize, from a program.

    async with Engine() as engine:
        await engine.load_model("smollm2-135m")
        async for chunk in engine.create_generator({"model": "smollm2-135m", "prompt": "Hello", "max_tokens": 20}):
            ...

Every method has its camelCase twin, and parameters are accepted in both spellings.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from mlx_serving.assembly import build
from mlx_serving.config.model_entries import ServedModel
from mlx_serving.config.model_names import EMBEDDED_MODEL
from mlx_serving.config.profiles import Profile
from mlx_serving.config.schema import Config
from mlx_serving.config.served_models import ModelsConfig
from mlx_serving.core.batch_queue import BatchQueueStats
from mlx_serving.core.embedding.embeddings import Embeddings, gather
from mlx_serving.core.generation import Delta, FinishReason, GenerationRequest, Served
from mlx_serving.core.serving import EngineTelemetry, HealthReport
from mlx_serving.core.weight_options import AS_THEY_ARE
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.engine.model_entry import ModelSpec
from mlx_serving.errors import EngineClosed, EngineError, InvalidRequest, ModelLoadError, ModelNotLoaded
from mlx_serving.facade.batches import BatchEntry, GenerationResult, each_of, whole_answer
from mlx_serving.facade.cancellation import until_set
from mlx_serving.facade.embeddings import EmbeddingResult, EmbedParams, RankedDocument, RerankParams, ranked
from mlx_serving.facade.emitter import Callback, Emitter
from mlx_serving.facade.home_loop import HomeLoop
from mlx_serving.facade.model_options import LoadModelOptions
from mlx_serving.facade.option_base import parse
from mlx_serving.facade.options import CreateGeneratorOptions, GeneratorParams, TokenizeRequest
from mlx_serving.facade.shapes import (
    CachedModel,
    ErrorChunk,
    GenerationStats,
    GeneratorChunk,
    MetadataChunk,
    ModelAlias,
    ModelCacheStats,
    ModelHandle,
    TokenChunk,
    TokenizeResponse,
)
from mlx_serving.facade.speculation import CompatibilityReport
from mlx_serving.facade.vision import (
    ImageMetadata,
    ImageProcessedChunk,
    LoadVisionModelOptions,
    VisionGeneratorChunk,
    VisionGeneratorParams,
    VisionModelHandle,
    with_vision_stats,
)
from mlx_serving.telemetry.events import Event, GenerationToken
from mlx_serving.wire import methods

ENGINE_API_SNAPSHOT_VERSION = "1"


class Engine:
    """One supervised worker and the models in it. Starts with the first call, or with `start`."""

    def __init__(self, config: Config | Mapping[str, object] | None = None, *, python_path: str | None = None) -> None:
        """`config` as in the configuration file. Raises pydantic's ValidationError for one that does not fit, and
        `InvalidConfig` when it names a BLAS library that is not there.

        `python_path` is the interpreter of the worker; without one it is ours.
        """
        checked = config if isinstance(config, Config) else Config.model_validate(dict(config or {}))
        if "models" not in checked.model_fields_set:
            # A program says itself what it wants loaded; the embedded model stays a name that loads when it is used.
            embedded = ModelsConfig(served=(ServedModel(model=EMBEDDED_MODEL, preload=False),))
            checked = checked.model_copy(update={"models": embedded})
        if python_path is not None:
            checked = checked.model_copy(update={"worker": replace(checked.worker, python=python_path)})
        self._core = build(checked)
        self._config = checked
        self._batch_width = 2 * checked.scheduler.max_num_seqs
        self._emitter = Emitter(self._core.events)
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._drafts: list[str] = []  # models that were loaded to draft, in that order
        self._home = HomeLoop()

    @property
    def core(self) -> EngineCore:
        """The engine without this surface, as the HTTP server uses it."""
        return self._core

    # -- life

    async def start(self) -> None:
        """Start the worker. Raises `WorkerDied` when it cannot be started, `EngineClosed` after `shutdown`, and
        `InvalidRequest` in another event loop than that of the first use, as all methods do."""
        self._home.enter()
        if self._closed:
            raise EngineClosed("The engine was shut down")
        if self._starting is None:
            self._starting = asyncio.create_task(self._core.start())
        try:
            await asyncio.shield(self._starting)
        except EngineError:
            self._starting = None
            raise

    async def shutdown(self) -> None:
        """End the worker. Streams in flight end with an error."""
        self._home.enter()
        self._closed = True
        await self._core.stop()
        if (starting := self._starting) is not None:
            await asyncio.wait((starting,))
            starting.exception()  # whoever waited for the start may have left before it failed

    async def dispose(self) -> None:
        """Shut down and forget all listeners."""
        await self.shutdown()
        self._emitter.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.dispose()

    # -- models

    async def load_model(self, options: LoadModelOptions | Mapping[str, object] | str) -> ModelHandle:
        """Load a model: a configured name, a hub id, a path, a GGUF file or an alias. With an adapter it gets a name of
        its own, `handle.id`, and shares the weights of its model with others.

        Raises `ModelLoadError`, `ModelNotFound`, and `InvalidRequest` when it is loaded with other options.
        """
        asked = parse(LoadModelOptions, options)
        await self.start()
        given = (asked.revision, asked.context_length, asked.local_path)
        name, form = asked.served_name, asked.weights
        meant, _ = self._core.aliases.resolve(name)
        if given == (None, None, None) and form == AS_THEY_ARE and meant in self._core.models.names():
            spec = self._core.models.spec(meant)
        else:
            spec = ModelSpec(name, asked.model, *given, weights=form)
        spec = spec.staying(asked.pin, asked.keep_alive)
        facts = await self._core.load(replace(spec, draft=True) if asked.draft else spec)
        if asked.draft:
            if not facts.capabilities.draft:  # it was there already
                raise InvalidRequest(f"draft: {name} cannot take tokens back, so it cannot draft", field="draft")
            self._drafts = [*(each for each in self._drafts if each != name), name]
        return self._handle(name, facts)

    async def load_draft_model(self, options: LoadModelOptions | Mapping[str, object] | str) -> ModelHandle:
        """Load a model that is to draft for others: as `load_model`. Raises `InvalidRequest` for one that cannot."""
        asked = parse(LoadModelOptions, options)
        return await self.load_model(asked.model_copy(update={"draft": True}))

    async def unload_draft_model(self, model: str | None = None) -> None:
        """Take a draft model out of memory when nobody uses it any more; by default the one that was loaded last.
        Raises `ModelNotLoaded` if none was."""
        name = model or next(reversed(self._drafts), None)
        if name is None:
            raise ModelNotLoaded("No draft model is loaded", loaded=[handle.id for handle in self.list_models()])
        await self.unload_model(name)
        self._drafts = [each for each in self._drafts if each != name]

    async def is_draft_model_compatible(self, primary: str, draft: str) -> CompatibilityReport:
        """Whether one model can draft for another, by their vocabularies, caches and sizes. Both are loaded for it.
        Raises `ModelNotFound`, and what a load raises."""
        await self.start()
        return CompatibilityReport.of(await self._core.check_draft(primary, draft))

    async def load_vision_model(
        self, options: LoadVisionModelOptions | Mapping[str, object] | str
    ) -> VisionModelHandle:
        """The same for a model that takes pictures. Raises `ModelLoadError` for one that takes none, too; if it was not
        in memory before, it is not then."""
        asked = parse(LoadVisionModelOptions, options)
        known = self.get_model_info(asked.served_name) is not None
        handle = await self.load_model(asked)
        facts = self._core.models.loaded().get(self._core.aliases.resolve(handle.id)[0])
        if facts is None or not facts.is_vision_model:
            if not known:
                await self.unload_model(handle.id)
            raise ModelLoadError(f"{handle.id} is no vision model: load it with load_model", model=handle.id)
        return VisionModelHandle.of_vision(handle, facts, self._config)

    async def unload_model(self, model: str, *, force: bool = False) -> None:
        """Take a model out of memory, after its last stream or at once. Raises `ModelNotFound`; an alias has nothing
        of its own that could go."""
        self._home.enter()
        await self._core.unload_served(model, force=force)

    async def warmup_model(self, options: LoadModelOptions | Mapping[str, object] | str) -> None:
        """Load a model and generate one token with it, so that the first request pays for nothing."""
        handle = await self.load_model(options)
        await self.generate({"model": handle.id, "prompt": "Hello", "max_tokens": 1})

    def list_models(self) -> list[ModelHandle]:
        """The models in memory."""
        return [self._handle(name, facts) for name, facts in self._core.models.loaded().items()]

    def get_model_info(self, model: str) -> ModelHandle | None:
        facts = self._core.models.loaded().get(self._core.aliases.resolve(model)[0])
        return None if facts is None else self._handle(model, facts)

    def _handle(self, name: str, facts: methods.LoadModelResult) -> ModelHandle:
        meant, _ = self._core.aliases.resolve(name)
        return ModelHandle.of(name, self._core.models.spec(meant).reference, facts, draft=name in self._drafts)

    # -- aliases

    async def set_alias(
        self,
        name: str,
        model: str,
        *,
        revision: str | None = None,
        profile: Profile | Mapping[str, object] | None = None,
    ) -> ModelAlias:
        """Have a name mean another model, from the moment that it is loaded: a served one, or where to load one from.
        Streams that run stay with the model they began with. `profile` is what holds under the name where a request is
        silent.

        If the model cannot be loaded, the name means what it meant. Raises `ModelLoadError`, `ModelNotFound` and
        `InvalidRequest`.
        """
        checked = parse(Profile, {} if profile is None else profile)
        await self.start()
        return ModelAlias.of(await self._core.set_alias(name, model, revision=revision, profile=checked.core))

    async def rollback_alias(self, name: str) -> ModelAlias | None:
        """Have a name mean what it meant before; None when that is the model of that name. Raises as `set_alias`, and
        `NotFound`."""
        await self.start()
        view = await self._core.roll_back_alias(name)
        return None if view is None else ModelAlias.of(view)

    def remove_alias(self, name: str) -> None:
        """Forget what was set. Raises `NotFound`, and `InvalidRequest` for an alias that is only configured."""
        self._core.remove_alias(name)

    def list_aliases(self) -> list[ModelAlias]:
        return [ModelAlias.of(view) for view in self._core.list_aliases()]

    def get_cache_stats(self) -> ModelCacheStats:
        models = [CachedModel(model.name, model.state) for model in self._core.served_models()]
        return ModelCacheStats(len(self.list_models()), models)

    # -- generation

    async def create_generator(
        self,
        params: GeneratorParams | Mapping[str, object],
        options: CreateGeneratorOptions | Mapping[str, object] | None = None,
    ) -> AsyncGenerator[GeneratorChunk]:
        """Stream one answer: token chunks, then one metadata chunk; or an error chunk as the last.

        Leaving the loop early, and closing the generator, aborts the stream. Raises `InvalidRequest` for bad
        parameters.
        """
        request, signal = self._request(params, options)
        await self.start()
        try:
            async with until_set(signal, self._core.generate(request)) as deltas:
                async for delta in deltas:
                    for chunk in self._chunks(request, delta):
                        yield chunk
        except EngineError as error:
            yield ErrorChunk(error)

    async def create_vision_generator(
        self,
        params: VisionGeneratorParams | Mapping[str, object],
        options: CreateGeneratorOptions | Mapping[str, object] | None = None,
    ) -> AsyncGenerator[VisionGeneratorChunk]:
        """The same for a text with pictures before it. The first chunk tells what became of the pictures; the metadata
        chunk has `VisionGenerationStats`."""
        asked = parse(VisionGeneratorParams, params)
        request, signal = self._request(asked, options)
        request = replace(request, served=(served := Served()))
        await self.start()
        try:
            async with until_set(signal, self._core.generate(request)) as deltas:
                yield ImageProcessedChunk([ImageMetadata.of(image) for image in served.images], served.images_s)
                async for delta in deltas:
                    for chunk in self._chunks(request, delta):
                        yield with_vision_stats(chunk, served.images_s)
        except EngineError as error:
            yield ErrorChunk(error)

    async def generate(
        self,
        params: GeneratorParams | Mapping[str, object],
        options: CreateGeneratorOptions | Mapping[str, object] | None = None,
    ) -> str:
        """The whole text of one answer, without what the model thought or called. Raises what went wrong."""
        request, signal = self._request(params, options)
        await self.start()
        async with until_set(signal, self._core.generate(request)) as deltas:
            return "".join([delta.text async for delta in deltas])

    async def chat(
        self,
        params: GeneratorParams | Mapping[str, object],
        options: CreateGeneratorOptions | Mapping[str, object] | None = None,
    ) -> GenerationResult:
        """One whole answer with its parts: what the model said, thought and called. Raises what went wrong.

        `result.message` is the answer as a message, for the next turn of the conversation.
        """
        how = parse(CreateGeneratorOptions, options)
        stream_id = how.stream_id or str(uuid.uuid4())
        async with aclosing(self.create_generator(params, how.model_copy(update={"stream_id": stream_id}))) as chunks:
            return await whole_answer(stream_id, chunks)

    async def batch_generate(
        self,
        requests: Sequence[GeneratorParams | Mapping[str, object]],
        options: CreateGeneratorOptions | Mapping[str, object] | None = None,
    ) -> list[BatchEntry[GenerationResult]]:
        """Answer many requests at the same time: whole answers in order, each request with its own error.

        As many are in flight as keep the device busy; the queue stays free for others. `options` hold for each request.
        Raises `InvalidRequest` for options that do not fit, such as a stream id, which only one stream can have.
        """
        how = parse(CreateGeneratorOptions, options)
        if how.stream_id is not None:
            raise InvalidRequest(
                "stream_id cannot be given to several requests", field="stream_id", given=how.stream_id
            )

        async def answer(request: GeneratorParams | Mapping[str, object]) -> GenerationResult:
            stream_id = str(uuid.uuid4())
            own = how.model_copy(update={"stream_id": stream_id})
            async with aclosing(self.create_generator(request, own)) as chunks:
                return await whole_answer(stream_id, chunks)

        return await each_of([partial(answer, request) for request in requests], self._batch_width)

    def _request(
        self,
        params: GeneratorParams | Mapping[str, object],
        options: CreateGeneratorOptions | Mapping[str, object] | None,
    ) -> tuple[GenerationRequest, asyncio.Event | None]:
        asked = parse(GeneratorParams, params)
        how = parse(CreateGeneratorOptions, options)
        request = GenerationRequest(
            request_id=how.stream_id or str(uuid.uuid4()),
            model=asked.model,
            prompt=asked.to_prompt(),
            sampling=asked.to_sampling(),
            structure=asked.structured,
            parse_output=asked.is_parsed,
            tool_choice=asked.to_tool_choice(),
            reasoning_budget=asked.budget,
            speculation=asked.to_speculation(),
            priority=how.core_priority,
            cache_salt=asked.cache_salt,
            timeout_s=None if how.timeout_ms is None else how.timeout_ms / 1000,
        )
        return request, how.signal

    def _chunks(self, request: GenerationRequest, delta: Delta) -> list[GeneratorChunk]:
        chunks: list[GeneratorChunk] = []
        if delta.text or delta.token_ids or delta.reasoning or delta.tool_calls:
            chunk = TokenChunk.of(delta)
            chunks.append(chunk)
            if self._emitter.listens(GenerationToken.name):
                happened = GenerationToken(stream_id=request.request_id, token=delta.text, logprob=chunk.logprob)
                self._emitter.emit(happened)
        if delta.finish_reason is not None and delta.stats is not None:
            measured = delta.stats
            stats = GenerationStats(
                tokens_generated=measured.tokens_generated,
                tokens_per_second=measured.tokens_per_second,
                time_to_first_token=measured.time_to_first_token,
                total_time=measured.total_time,
                prompt_tokens=measured.prompt_tokens,
                model_id=request.model,
                cached_tokens=measured.cached_tokens,
                draft_tokens=measured.drafted_tokens,
                draft_tokens_accepted=measured.accepted_tokens,
                speculation=measured.speculation,
            )
            chunks.append(MetadataChunk(stats, FinishReason(delta.finish_reason)))
        return chunks

    # -- vectors

    async def embed(self, params: EmbedParams | Mapping[str, object]) -> EmbeddingResult:
        """The embeddings of texts, or of token ids. Raises `InvalidRequest`, which names an input that is too long, and
        what a generation raises."""
        asked = parse(EmbedParams, params)
        return EmbeddingResult.of(await self._computed(asked))

    async def rerank(self, params: RerankParams | Mapping[str, object]) -> list[RankedDocument]:
        """How well documents answer a query, by a model that is made for it: the best first. Raises the same."""
        asked = parse(RerankParams, params)
        return ranked(await self._computed(asked), asked.top_n)

    async def _computed(self, asked: EmbedParams | RerankParams) -> Embeddings:
        inputs = asked.to_inputs()
        await self.start()
        async with self._core.generate(asked.request_for(inputs)) as deltas:
            return await gather(deltas, len(inputs.inputs))

    # -- tokens

    async def tokenize(self, request: TokenizeRequest | Mapping[str, object]) -> TokenizeResponse:
        """Text to ids. Raises `ModelNotLoaded` when the model is not in memory."""
        asked = parse(TokenizeRequest, request)
        self._require(asked.model)
        result = await self._core.tokenize(asked.model, asked.text, add_special_tokens=asked.add_bos)
        return TokenizeResponse(result.tokens, result.token_strings)

    async def detokenize(self, model: str, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Ids to text. Raises `ModelNotLoaded`."""
        self._require(model)
        result = await self._core.call_with_model(
            model,
            methods.DETOKENIZE,
            lambda model_id: methods.DetokenizeParams(
                model_id=model_id, tokens=list(tokens), skip_special_tokens=skip_special_tokens
            ),
        )
        return result.text

    async def count_tokens(self, model: str, text: str) -> int:
        return len((await self.tokenize({"model": model, "text": text})).tokens)

    async def batch_tokenize(
        self, requests: Sequence[TokenizeRequest | Mapping[str, object]]
    ) -> list[BatchEntry[TokenizeResponse]]:
        """`tokenize` for many: results in order, each request with its own error."""
        return await each_of([partial(self.tokenize, request) for request in requests], max(1, len(requests)))

    def _require(self, model: str) -> None:
        self._home.enter()
        if self._closed:
            raise EngineClosed("The engine was shut down")
        if self.get_model_info(model) is None:
            raise ModelNotLoaded(f"Model {model} is not loaded", model=model, loaded=[m.id for m in self.list_models()])

    # -- the runtime

    async def get_runtime_info(self) -> methods.RuntimeInfoResult:
        await self.start()
        return await self._core.runtime_info()

    async def get_telemetry(self) -> EngineTelemetry:
        """Load, work, memory, of the engine and its worker. Does not start one."""
        self._home.enter()
        return await self._core.telemetry()

    def get_batch_stats(self) -> BatchQueueStats:
        """How small calls shared messages to the worker."""
        return self._core.batch_stats()

    def reset_batch_stats(self) -> None:
        self._core.reset_batch_stats()

    def flush_batches(self) -> None:
        """Send at once the small calls that wait to share a message."""
        self._core.flush_batches()

    async def health_check(self) -> HealthReport:
        return await self._core.health()

    # -- events

    def on(self, event: str, callback: Callback) -> None:
        """Call `callback` with every event of that name (`model:loaded`, `runtime:status`, …; `*` for all)."""
        self._emitter.on(event, callback)

    def once(self, event: str, callback: Callback) -> None:
        self._emitter.once(event, callback)

    def off(self, event: str, callback: Callback | None = None) -> None:
        self._emitter.off(event, callback)

    def emit(self, event: Event) -> None:
        self._emitter.emit(event)

    # The ancestor's spelling.
    loadModel = load_model  # noqa: N815
    loadVisionModel = load_vision_model  # noqa: N815
    unloadModel = unload_model  # noqa: N815
    loadDraftModel = load_draft_model  # noqa: N815
    unloadDraftModel = unload_draft_model  # noqa: N815
    isDraftModelCompatible = is_draft_model_compatible  # noqa: N815
    warmupModel = warmup_model  # noqa: N815
    listModels = list_models  # noqa: N815
    setAlias = set_alias  # noqa: N815
    rollbackAlias = rollback_alias  # noqa: N815
    removeAlias = remove_alias  # noqa: N815
    listAliases = list_aliases  # noqa: N815
    getModelInfo = get_model_info  # noqa: N815
    getCacheStats = get_cache_stats  # noqa: N815
    createGenerator = create_generator  # noqa: N815
    createVisionGenerator = create_vision_generator  # noqa: N815
    batchGenerate = batch_generate  # noqa: N815
    batchTokenize = batch_tokenize  # noqa: N815
    countTokens = count_tokens  # noqa: N815
    getRuntimeInfo = get_runtime_info  # noqa: N815
    getTelemetry = get_telemetry  # noqa: N815
    getBatchStats = get_batch_stats  # noqa: N815
    resetBatchStats = reset_batch_stats  # noqa: N815
    flushBatches = flush_batches  # noqa: N815
    healthCheck = health_check  # noqa: N815


async def create_engine(
    config: Config | Mapping[str, object] | None = None, *, python_path: str | None = None
) -> Engine:
    """An engine whose worker runs already. Raises `WorkerDied` when it cannot be started."""
    engine = Engine(config, python_path=python_path)
    try:
        await engine.start()
    except BaseException:
        await engine.dispose()
        raise
    return engine
