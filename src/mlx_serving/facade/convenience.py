"""Short ways to do common things with an engine, and the ancestor's one-model wrapper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from mlx_serving.config.schema import Config
from mlx_serving.errors import DeadlineExceeded, EngineError, ModelLoadError, ModelNotLoaded
from mlx_serving.facade.engine import Engine, create_engine
from mlx_serving.facade.model_options import LoadModelOptions
from mlx_serving.facade.option_base import parse
from mlx_serving.facade.options import GeneratorParams
from mlx_serving.facade.shapes import ErrorChunk, GeneratorChunk, ModelHandle, TokenChunk
from mlx_serving.telemetry.events import Event

T = TypeVar("T")


async def with_engine(
    callback: Callable[[Engine], Awaitable[T]], config: Config | Mapping[str, object] | None = None
) -> T:
    """Create an engine, call `callback` with it, dispose of it."""
    engine = await create_engine(config)
    try:
        return await callback(engine)
    finally:
        await engine.dispose()


async def generate_text(engine: Engine, params: GeneratorParams | Mapping[str, object]) -> str:
    return await engine.generate(params)


async def generate_text_streaming(
    engine: Engine, params: GeneratorParams | Mapping[str, object], on_token: Callable[[str], object]
) -> str:
    """The whole text; `on_token` is called with every piece of it as it comes. Raises what went wrong."""
    pieces: list[str] = []
    for chunk in await collect_chunks(engine, params, on_token):
        if isinstance(chunk, TokenChunk):
            pieces.append(chunk.token)
    return "".join(pieces)


async def collect_chunks(
    engine: Engine,
    params: GeneratorParams | Mapping[str, object],
    on_token: Callable[[str], object] | None = None,
) -> list[GeneratorChunk]:
    """All chunks of one answer. Raises instead of returning an error chunk."""
    chunks: list[GeneratorChunk] = []
    async for chunk in engine.create_generator(params):
        if isinstance(chunk, ErrorChunk):
            raise chunk.error
        if on_token is not None and isinstance(chunk, TokenChunk):
            on_token(chunk.token)
        chunks.append(chunk)
    return chunks


async def ensure_model_loaded(engine: Engine, options: LoadModelOptions | Mapping[str, object] | str) -> ModelHandle:
    """The handle of a model that is ready already, else of the one that is loaded now."""
    asked = parse(LoadModelOptions, options)
    return engine.get_model_info(asked.served_name) or await engine.load_model(asked)


async def retry_load_model(
    engine: Engine,
    options: LoadModelOptions | Mapping[str, object] | str,
    max_retries: int = 3,
    initial_delay_s: float = 1.0,
) -> ModelHandle:
    """Try up to `max_retries` + 1 times, doubling the delay. Errors of the caller are not retried."""
    for attempt in range(max_retries):
        try:
            return await engine.load_model(options)
        except EngineError as error:
            if not (error.retryable or isinstance(error, ModelLoadError)):
                raise
        await asyncio.sleep(initial_delay_s * 2**attempt)
    return await engine.load_model(options)


async def wait_for_model_ready(engine: Engine, model: str, timeout_s: float = 30.0) -> ModelHandle:
    """Wait until somebody has loaded `model`. Raises `DeadlineExceeded`."""
    loaded = asyncio.Event()

    def wake(_: Event) -> None:
        loaded.set()

    engine.on("model:loaded", wake)
    try:
        async with asyncio.timeout(timeout_s):
            while (handle := engine.get_model_info(model)) is None:
                await loaded.wait()
                loaded.clear()
            return handle
    except TimeoutError:
        raise DeadlineExceeded(f"{model} was not ready after {timeout_s:g} s", model=model) from None
    finally:
        engine.off("model:loaded", wake)


async def is_engine_healthy(engine: Engine) -> bool:
    return (await engine.health_check()).status == "healthy"


async def batch_tokenize(engine: Engine, model: str, texts: Sequence[str]) -> list[list[int]]:
    """The ids of several texts."""
    responses = await asyncio.gather(*(engine.tokenize({"model": model, "text": text}) for text in texts))
    return [response.tokens for response in responses]


async def get_total_token_count(engine: Engine, model: str, texts: Sequence[str]) -> int:
    return sum(len(tokens) for tokens in await batch_tokenize(engine, model, texts))


class MLXEngine:
    """One engine with one model."""

    def __init__(
        self,
        model: LoadModelOptions | Mapping[str, object] | str,
        config: Config | Mapping[str, object] | None = None,
    ) -> None:
        self._options = parse(LoadModelOptions, model)
        self._engine = Engine(config)
        self._handle: ModelHandle | None = None

    async def init(self) -> None:
        """Start the engine and load the model. Raises `ModelLoadError`, `ModelNotFound`, `WorkerDied`."""
        self._handle = await self._engine.load_model(self._options)

    def is_initialized(self) -> bool:
        return self._handle is not None

    def get_engine(self) -> Engine:
        return self._engine

    def get_model_handle(self) -> ModelHandle:
        if self._handle is None:
            raise ModelNotLoaded("Call init() first", model=self._options.model)
        return self._handle

    async def generate(self, prompt: str, params: Mapping[str, object] | None = None) -> str:
        return await self._engine.generate(self._params(prompt, params))

    def generate_stream(
        self, prompt: str, params: Mapping[str, object] | None = None
    ) -> AsyncGenerator[GeneratorChunk]:
        return self._engine.create_generator(self._params(prompt, params))

    async def tokenize(self, text: str) -> list[int]:
        return (await self._engine.tokenize({"model": self.get_model_handle().id, "text": text})).tokens

    async def dispose(self) -> None:
        await self._engine.dispose()

    def _params(self, prompt: str, params: Mapping[str, object] | None) -> dict[str, object]:
        return {**(params or {}), "model": self.get_model_handle().id, "prompt": prompt}

    isInitialized = is_initialized  # noqa: N815  the ancestor's spelling
    getEngine = get_engine  # noqa: N815
    getModelHandle = get_model_handle  # noqa: N815
    generateStream = generate_stream  # noqa: N815


async def create_mlx_engine(model: LoadModelOptions | Mapping[str, object] | str) -> MLXEngine:
    """A one-model engine that is ready."""
    engine = MLXEngine(model)
    try:
        await engine.init()
    except BaseException:
        await engine.dispose()
        raise
    return engine
