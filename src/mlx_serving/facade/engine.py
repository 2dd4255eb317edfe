"""`Engine`: load models, generate, tokenize, from a program.

    async with Engine() as engine:
        await engine.load_model("smollm2-135m")
        async for chunk in engine.create_generator({"model": "smollm2-135m", "prompt": "Hello", "max_tokens": 20}):
            ...

Every method has its camelCase twin, and parameters are accepted in both spellings. How an engine begins and ends is in
`facade.life`, what it does with models in `facade.loading`, how it answers in `facade.generating`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from mlx_serving.config.schema import Config
from mlx_serving.errors import EngineClosed, ModelNotLoaded
from mlx_serving.facade.batches import BatchEntry, each_of
from mlx_serving.facade.generating import GeneratingEngine
from mlx_serving.facade.loading import LoadingEngine
from mlx_serving.facade.model_options import LoadModelOptions
from mlx_serving.facade.option_base import parse
from mlx_serving.facade.options import TokenizeRequest
from mlx_serving.facade.shapes import TokenizeResponse
from mlx_serving.wire import methods

ENGINE_API_SNAPSHOT_VERSION = "1"


class Engine(LoadingEngine, GeneratingEngine):
    """One supervised worker and the models in it. Starts with the first call, or with `start`."""

    async def warmup_model(self, options: LoadModelOptions | Mapping[str, object] | str) -> None:
        """Load a model and generate one token with it, so that the first request pays for nothing."""
        handle = await self.load_model(options)
        await self.generate({"model": handle.id, "prompt": "Hello", "max_tokens": 1})

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

    # The ancestor's spelling.
    warmupModel = warmup_model  # noqa: N815
    batchTokenize = batch_tokenize  # noqa: N815
    countTokens = count_tokens  # noqa: N815


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
