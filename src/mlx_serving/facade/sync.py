"""The engine without `await`, for scripts and notebooks.

with SyncEngine() as engine:
    print(engine.generate("What is the capital of France?"))
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Self, TypeVar

from mlx_serving.config.schema import Config
from mlx_serving.config.served_models import EMBEDDED_MODEL
from mlx_serving.facade.engine import Engine
from mlx_serving.facade.shapes import ErrorChunk, GeneratorChunk, ModelHandle, TokenChunk

T = TypeVar("T")


class SyncEngine:
    """Runs an `Engine` on an event loop in a thread of its own. Usable from any thread, also inside a notebook."""

    def __init__(self, config: Config | Mapping[str, object] | None = None) -> None:
        """Starts the worker. Raises `WorkerDied` when it cannot be started."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mlx-serving", daemon=True)
        self._thread.start()
        self._engine = Engine(config)
        try:
            self._run(self._engine.start())
        except BaseException:
            self.close()
            raise

    def load_model(self, model: str) -> ModelHandle:
        return self._run(self._engine.load_model(model))

    def list_models(self) -> list[ModelHandle]:
        return self._engine.list_models()

    def generate(self, prompt: str | list[dict[str, object]], *, model: str = EMBEDDED_MODEL, **params: object) -> str:
        """The answer to a text prompt or to chat messages. A model that is known by name loads with its first use."""
        return self._run(self._engine.generate(_params(prompt, model, params)))

    def stream(
        self, prompt: str | list[dict[str, object]], *, model: str = EMBEDDED_MODEL, **params: object
    ) -> Iterator[str]:
        """The same, piece by piece. Leaving the loop early aborts the stream."""
        chunks = self._engine.create_generator(_params(prompt, model, params))
        try:
            while (chunk := self._run(_following(chunks))) is not None:
                if isinstance(chunk, ErrorChunk):
                    raise chunk.error
                if isinstance(chunk, TokenChunk) and chunk.token:
                    yield chunk.token
        finally:
            self._run(chunks.aclose())

    def tokenize(self, text: str, *, model: str = EMBEDDED_MODEL) -> list[int]:
        return self._run(self._engine.tokenize({"model": model, "text": text})).tokens

    def close(self) -> None:
        """End the worker and the thread. Safe to call twice."""
        if self._thread.is_alive():
            self._run(self._engine.dispose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[object, object, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise


async def _following(chunks: AsyncGenerator[GeneratorChunk]) -> GeneratorChunk | None:
    return await anext(chunks, None)


def _params(prompt: str | list[dict[str, object]], model: str, params: Mapping[str, object]) -> dict[str, object]:
    return {**params, "model": model, ("prompt" if isinstance(prompt, str) else "messages"): prompt}
