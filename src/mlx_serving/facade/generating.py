"""An engine that generates: answers as they come or whole, one or many; and vectors."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from mlx_serving.core.embedding.embeddings import Embeddings, gather
from mlx_serving.core.generation import Delta, FinishReason, GenerationRequest, Served
from mlx_serving.errors import EngineError, InvalidRequest
from mlx_serving.facade.batches import BatchEntry, GenerationResult, each_of, whole_answer
from mlx_serving.facade.cancellation import until_set
from mlx_serving.facade.embeddings import EmbeddingResult, EmbedParams, RankedDocument, RerankParams, ranked
from mlx_serving.facade.life import LivingEngine
from mlx_serving.facade.option_base import parse
from mlx_serving.facade.options import CreateGeneratorOptions, GeneratorParams
from mlx_serving.facade.shapes import ErrorChunk, GenerationStats, GeneratorChunk, MetadataChunk, TokenChunk
from mlx_serving.facade.vision import (
    ImageMetadata,
    ImageProcessedChunk,
    VisionGeneratorChunk,
    VisionGeneratorParams,
    with_vision_stats,
)
from mlx_serving.telemetry.events import GenerationToken


class GeneratingEngine(LivingEngine):
    """What `Engine` answers."""

    async def create_generator(
        self,
        params: GeneratorParams | Mapping[str, object],
        options: CreateGeneratorOptions | Mapping[str, object] | None = None,
    ) -> AsyncGenerator[GeneratorChunk]:
        """Stream one answer: token chunks, then one metadata chunk; or an error chunk as the last.

        Leaving the loop early, and closing the generator, aborts the stream. Raises `InvalidRequest` for bad
        parameters.
        """
        request, signal = _requested(parse(GeneratorParams, params), options)
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
        request, signal = _requested(asked, options)
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
        request, signal = _requested(parse(GeneratorParams, params), options)
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
        return await self._answer(params, parse(CreateGeneratorOptions, options))

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
        return await each_of([partial(self._answer, request, how) for request in requests], self._batch_width)

    async def _answer(
        self, params: GeneratorParams | Mapping[str, object], how: CreateGeneratorOptions
    ) -> GenerationResult:
        stream_id = how.stream_id or str(uuid.uuid4())
        async with aclosing(self.create_generator(params, how.model_copy(update={"stream_id": stream_id}))) as chunks:
            return await whole_answer(stream_id, chunks)

    def _chunks(self, request: GenerationRequest, delta: Delta) -> Iterator[GeneratorChunk]:
        if delta.text or delta.token_ids or delta.reasoning or delta.tool_calls:
            chunk = TokenChunk.of(delta)
            if self._emitter.listens(GenerationToken.name):
                happened = GenerationToken(stream_id=request.request_id, token=delta.text, logprob=chunk.logprob)
                self._emitter.emit(happened)
            yield chunk
        if delta.finish_reason is not None and delta.stats is not None:
            yield MetadataChunk(GenerationStats.of(delta.stats, request.model), FinishReason(delta.finish_reason))

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

    # The ancestor's spelling.
    createGenerator = create_generator  # noqa: N815
    createVisionGenerator = create_vision_generator  # noqa: N815
    batchGenerate = batch_generate  # noqa: N815


def _requested(
    asked: GeneratorParams, options: CreateGeneratorOptions | Mapping[str, object] | None
) -> tuple[GenerationRequest, asyncio.Event | None]:
    how = parse(CreateGeneratorOptions, options)
    return asked.to_request(how), how.signal
