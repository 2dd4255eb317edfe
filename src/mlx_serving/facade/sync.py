"""The engine without `await`, for scripts and notebooks.

with SyncEngine() as engine:
    print(engine.generate("What is the capital of France?"))
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

from mlx_serving.config.model_names import EMBEDDED_MODEL
from mlx_serving.config.schema import Config
from mlx_serving.core.serving import EngineTelemetry
from mlx_serving.errors import EngineClosed
from mlx_serving.facade.batches import BatchEntry, GenerationResult
from mlx_serving.facade.embeddings import RankedDocument
from mlx_serving.facade.engine import Engine
from mlx_serving.facade.shapes import ErrorChunk, GeneratorChunk, ModelAlias, ModelHandle, TokenChunk, TokenizeResponse
from mlx_serving.facade.speculation import CompatibilityReport

T = TypeVar("T")


class SyncEngine:
    """Runs an `Engine` on an event loop in a thread of its own. Usable from any thread, also inside a notebook.

    Ctrl-C ends the call that it interrupts, and its stream in the worker; the engine stays usable until `close`.
    """

    def __init__(self, config: Config | Mapping[str, object] | None = None) -> None:
        """Starts the worker. Raises `WorkerDied` when it cannot be started, and what `Engine` raises."""
        self._engine = Engine(config)
        self._loop = _LoopThread()
        self._streams: set[AsyncGenerator[GeneratorChunk]] = set()
        try:
            self._loop.run(self._engine.start())
        except BaseException:
            self.close()
            raise

    def load_model(self, model: str) -> ModelHandle:
        return self._loop.run(self._engine.load_model(model))

    def load_draft_model(self, model: str) -> ModelHandle:
        """Load a model that is to draft for others."""
        return self._loop.run(self._engine.load_draft_model(model))

    def unload_draft_model(self, model: str | None = None) -> None:
        """By default the one that was loaded last."""
        self._loop.run(self._engine.unload_draft_model(model))

    def is_draft_model_compatible(self, primary: str, draft: str) -> CompatibilityReport:
        """Whether one model can draft for another."""
        return self._loop.run(self._engine.is_draft_model_compatible(primary, draft))

    def set_alias(self, name: str, model: str, *, profile: Mapping[str, object] | None = None) -> ModelAlias:
        """Have a name mean another model; streams that run stay with the one they began with."""
        return self._loop.run(self._engine.set_alias(name, model, profile=profile))

    def rollback_alias(self, name: str) -> ModelAlias | None:
        """Have a name mean what it meant before; None when that is the model of that name."""
        return self._loop.run(self._engine.rollback_alias(name))

    def list_aliases(self) -> list[ModelAlias]:
        return self._engine.list_aliases()

    def list_models(self) -> list[ModelHandle]:
        return self._engine.list_models()

    def generate(self, prompt: str | list[dict[str, object]], *, model: str = EMBEDDED_MODEL, **params: object) -> str:
        """The answer to a text prompt or to chat messages. A model that is known by name loads with its first use."""
        return self._loop.run(self._engine.generate(_params(prompt, model, params)))

    def chat(
        self, messages: list[dict[str, object]], *, model: str = EMBEDDED_MODEL, **params: object
    ) -> GenerationResult:
        """The answer to a conversation with its parts: what the model said, thought and called."""
        return self._loop.run(self._engine.chat(_params(messages, model, params)))

    def stream(
        self, prompt: str | list[dict[str, object]], *, model: str = EMBEDDED_MODEL, **params: object
    ) -> Iterator[str]:
        """The same, piece by piece. Leaving the loop early aborts the stream."""
        chunks = self._engine.create_generator(_params(prompt, model, params))
        self._streams.add(chunks)
        try:
            while (chunk := self._loop.run(_following(chunks))) is not None:
                if isinstance(chunk, ErrorChunk):
                    raise chunk.error
                if isinstance(chunk, TokenChunk) and chunk.token:
                    yield chunk.token
        finally:
            self._streams.discard(chunks)
            if self._loop.is_open:  # else the stream has ended with the engine
                self._loop.run(chunks.aclose())

    def tokenize(self, text: str, *, model: str = EMBEDDED_MODEL) -> list[int]:
        return self._loop.run(self._engine.tokenize({"model": model, "text": text})).tokens

    def batch_generate(
        self, prompts: Sequence[str | list[dict[str, object]]], *, model: str = EMBEDDED_MODEL, **params: object
    ) -> list[BatchEntry[GenerationResult]]:
        """The answers to many prompts, in order, computed at the same time; each with its own error."""
        requests = [_params(prompt, model, params) for prompt in prompts]
        return self._loop.run(self._engine.batch_generate(requests))

    def batch_tokenize(
        self, texts: Sequence[str], *, model: str = EMBEDDED_MODEL
    ) -> list[BatchEntry[TokenizeResponse]]:
        """The ids of many texts, in order; each with its own error."""
        return self._loop.run(self._engine.batch_tokenize([{"model": model, "text": text} for text in texts]))

    def count_tokens(self, text: str, *, model: str = EMBEDDED_MODEL) -> int:
        return self._loop.run(self._engine.count_tokens(model, text))

    def embed(self, inputs: str | Sequence[str], *, model: str, **params: object) -> list[list[float]]:
        """One vector for each text, in their order."""
        texts = inputs if isinstance(inputs, str) else list(inputs)
        return self._loop.run(self._engine.embed({**params, "model": model, "input": texts})).embeddings

    def rerank(self, query: str, documents: Sequence[str], *, model: str, **params: object) -> list[RankedDocument]:
        """How well documents answer a query, the best first."""
        asked = {**params, "model": model, "query": query, "documents": list(documents)}
        return self._loop.run(self._engine.rerank(asked))

    def get_telemetry(self) -> EngineTelemetry:
        """Load, work, memory, of the engine and its worker."""
        return self._loop.run(self._engine.get_telemetry())

    def close(self) -> None:
        """End the worker and the thread. Safe to call twice."""
        if self._loop.is_open:
            try:
                self._loop.run(self._dispose())
            finally:
                self._loop.close()

    async def _dispose(self) -> None:
        await self._engine.dispose()
        for chunks in tuple(self._streams):
            with contextlib.suppress(RuntimeError):  # another thread is in it, and hears of the end itself
                await chunks.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _LoopThread:
    """An event loop in a thread, to which other threads hand work and wait for it."""

    def __init__(self) -> None:
        started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._main, args=(started,), name="mlx-serving", daemon=True)
        self._thread.start()
        self._loop = started.result()

    @property
    def is_open(self) -> bool:
        return self._thread.is_alive()

    def run(self, work: Coroutine[object, object, T]) -> T:
        """The result of `work`. A KeyboardInterrupt cancels it and is raised when it has ended."""
        if not self.is_open:
            work.close()
            raise EngineClosed("The engine was shut down")
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        begun: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self._loop.create_task(work)
            task.add_done_callback(lambda ended: _settle(ended, outcome))
            begun.append(task)

        def cancel() -> None:
            if begun:
                begun[0].cancel()
            else:  # the interrupt came before the work was handed over
                work.close()
                outcome.set_exception(EngineClosed("The call was cancelled"))

        try:
            self._loop.call_soon_threadsafe(begin)
            return outcome.result()
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(cancel)
            concurrent.futures.wait((outcome,))
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _main(self, started: concurrent.futures.Future[asyncio.AbstractEventLoop]) -> None:
        asyncio.run(self._live(started))

    async def _live(self, started: concurrent.futures.Future[asyncio.AbstractEventLoop]) -> None:
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()


def _settle(task: asyncio.Task[T], outcome: concurrent.futures.Future[T]) -> None:
    error = EngineClosed("The call was cancelled") if task.cancelled() else task.exception()
    if error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(task.result())


async def _following(chunks: AsyncGenerator[GeneratorChunk]) -> GeneratorChunk | None:
    return await anext(chunks, None)


def _params(prompt: str | list[dict[str, object]], model: str, params: Mapping[str, object]) -> dict[str, object]:
    return {**params, "model": model, ("prompt" if isinstance(prompt, str) else "messages"): prompt}
