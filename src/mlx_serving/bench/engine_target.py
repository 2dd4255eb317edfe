"""`Engine` in this process, its worker in another: what a program that embeds the engine gets."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import version

from mlx_serving.bench.records import Answer
from mlx_serving.bench.target import Count, RequestFailed, TargetFacts
from mlx_serving.bench.workload import Ask, Endpoint
from mlx_serving.config.schema import Config
from mlx_serving.errors import EngineError
from mlx_serving.facade.engine import Engine
from mlx_serving.facade.shapes import ErrorChunk, MetadataChunk, TokenChunk
from mlx_serving.machine.device import device_name


@asynccontextmanager
async def open_engine_target(config: Config, name: str = "engine") -> AsyncGenerator[EngineTarget]:
    """An engine with the configured default model loaded, until the block ends.

    Raises `WorkerDied`, `ModelLoadError`, `ModelNotFound`, `InvalidConfig`.
    """
    async with Engine(config) as engine:
        model = config.models.default
        await engine.load_model(model)
        info = await engine.get_runtime_info()
        facts = {
            "device": device_name(info.device, metal=info.metal),
            "BLAS": info.blas.name,
            "mlx-serving": version("mlx-serving"),
            "mlx": info.mlx_version,
            "mlx-lm": info.mlx_lm_version,
        }
        yield EngineTarget(engine, TargetFacts(name, model, facts))


class EngineTarget:
    def __init__(self, engine: Engine, about: TargetFacts) -> None:
        self._engine = engine
        self._about = about

    @property
    def about(self) -> TargetFacts:
        return self._about

    @property
    def count_tokens(self) -> Count | None:
        return self._count

    async def send(self, ask: Ask) -> Answer:
        """See `Target`."""
        prompt: dict[str, object] = (
            {"messages": [{"role": "user", "content": ask.prompt}]}
            if ask.endpoint is Endpoint.CHAT
            else {"prompt": ask.prompt}
        )
        params = {"model": self._about.model, **prompt, "max_tokens": ask.max_tokens, **ask.sampling}
        arrivals_s: list[float] = []
        text: list[str] = []
        try:
            async with aclosing(self._engine.create_generator(params)) as chunks:
                async for chunk in chunks:
                    match chunk:
                        case TokenChunk():
                            if chunk.token:
                                arrivals_s.append(time.perf_counter())
                                text.append(chunk.token)
                        case MetadataChunk():
                            return Answer(
                                arrivals_s=tuple(arrivals_s),
                                ended_s=time.perf_counter(),
                                output_tokens=chunk.stats.tokens_generated,
                                prompt_tokens=chunk.stats.prompt_tokens,
                                text="".join(text),
                                drafted_tokens=chunk.stats.draft_tokens,
                                accepted_tokens=chunk.stats.draft_tokens_accepted,
                            )
                        case ErrorChunk():
                            raise chunk.error
        except EngineError as error:
            raise RequestFailed(error.code, error.message) from None
        raise RequestFailed("truncated", "the stream ended without its statistics")

    async def _count(self, text: str) -> int:
        return await self._engine.count_tokens(self._about.model, text)
