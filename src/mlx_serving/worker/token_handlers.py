"""From text to tokens and back, on the tokenizer thread."""

from __future__ import annotations

from typing import Any

import msgspec

from mlx_serving.errors import EngineError, ModelNotLoaded
from mlx_serving.wire import jsonrpc, methods
from mlx_serving.worker.loaded_model import LoadedModel
from mlx_serving.worker.loaded_models import LoadedModels
from mlx_serving.worker.requests import check_token_ids
from mlx_serving.worker.routes import Reply, Route
from mlx_serving.worker.tokenizing import TokenizerThread


class TokenHandlers:
    def __init__(self, models: LoadedModels, tokenizers: TokenizerThread) -> None:
        self._models = models
        self._tokenizers = tokenizers

    def routes(self) -> tuple[Route[Any, Any], ...]:
        return (
            Route(methods.TOKENIZE, self.tokenize),
            Route(methods.DETOKENIZE, self.detokenize),
            Route(methods.BATCH_TOKENIZE, self.batch_tokenize),
        )

    def tokenize(self, params: methods.TokenizeParams, reply: Reply[methods.TokenizeResult]) -> None:
        model = self._models.get(params.model_id)
        self._tokenizers.submit(lambda: _tokenize(model, params), reply.send, reply.fail)

    def detokenize(self, params: methods.DetokenizeParams, reply: Reply[methods.DetokenizeResult]) -> None:
        model = self._models.get(params.model_id)
        check_token_ids("tokens", params.tokens, model)

        def work() -> methods.DetokenizeResult:
            text = model.tokenizer.decode(params.tokens, skip_special_tokens=params.skip_special_tokens)
            return methods.DetokenizeResult(text)

        self._tokenizers.submit(work, reply.send, reply.fail)

    def batch_tokenize(self, params: methods.BatchTokenizeParams, reply: Reply[methods.BatchTokenizeResult]) -> None:
        models = self._models.open_to_all()

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
