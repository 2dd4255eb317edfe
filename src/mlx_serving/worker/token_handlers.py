"""From text to tokens and back, on the tokenizer thread."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from mlx_serving.core.generation import ChatPrompt
from mlx_serving.errors import EngineError
from mlx_serving.wire import jsonrpc, methods
from mlx_serving.worker.embedding_model import EmbeddingModel
from mlx_serving.worker.loaded_model import LoadedModel
from mlx_serving.worker.loaded_models import LoadedModels
from mlx_serving.worker.requests import check_images, check_token_ids, images_of
from mlx_serving.worker.routes import Reply, Route
from mlx_serving.worker.tokenizing import TokenizerThread, tokenizer_errors


class TokenHandlers:
    def __init__(self, models: LoadedModels, tokenizers: TokenizerThread) -> None:
        self._models = models
        self._tokenizers = tokenizers

    def routes(self) -> tuple[Route[Any, Any], ...]:
        return (
            Route(methods.TOKENIZE, self.tokenize),
            Route(methods.TOKENIZE_CHAT, self.tokenize_chat),
            Route(methods.DETOKENIZE, self.detokenize),
            Route(methods.BATCH_TOKENIZE, self.batch_tokenize),
        )

    def tokenize(self, params: methods.TokenizeParams, reply: Reply[methods.TokenizeResult]) -> None:
        model = self._models.tokenizing(params.model_id)
        self._tokenizers.submit(lambda: _tokenize(model, params), reply.send, reply.fail)

    def tokenize_chat(self, params: methods.TokenizeChatParams, reply: Reply[methods.TokenizeResult]) -> None:
        model = self._models.get(params.model_id)
        check_images(params.messages, params.images, model)
        prompt = ChatPrompt(
            tuple(params.messages),
            params.template_kwargs,
            tuple(params.tools),
            params.chat_template,
            images_of(params.images),
        )

        def work() -> methods.TokenizeResult:
            token_ids = list(model.tokenizer.prepare(prompt).token_ids)
            return methods.TokenizeResult(token_ids, model.tokenizer.token_strings(token_ids))

        self._tokenizers.submit(work, reply.send, reply.fail)

    def detokenize(self, params: methods.DetokenizeParams, reply: Reply[methods.DetokenizeResult]) -> None:
        model = self._models.tokenizing(params.model_id)
        check_token_ids("tokens", params.tokens, model)

        def work() -> methods.DetokenizeResult:
            text = model.tokenizer.decode(params.tokens, skip_special_tokens=params.skip_special_tokens)
            return methods.DetokenizeResult(text)

        self._tokenizers.submit(work, reply.send, reply.fail)

    def batch_tokenize(self, params: methods.BatchTokenizeParams, reply: Reply[methods.BatchTokenizeResult]) -> None:
        models = self._models.snapshot()

        def one(raw: msgspec.Raw) -> methods.BatchTokenizeItem:
            try:
                with tokenizer_errors():
                    entry = jsonrpc.parse_params(raw, methods.TokenizeParams)
                    return methods.BatchTokenizeItem(
                        success=True, result=_tokenize(models.tokenizing(entry.model_id), entry)
                    )
            except EngineError as error:
                return methods.BatchTokenizeItem(success=False, error=_batch_error(error))

        def work() -> methods.BatchTokenizeResult:
            return methods.BatchTokenizeResult([one(raw) for raw in params.requests])

        self._tokenizers.submit(work, reply.send, reply.fail)


def _tokenize(model: LoadedModel | EmbeddingModel, params: methods.TokenizeParams) -> methods.TokenizeResult:
    token_ids = model.tokenizer.encode(params.text, add_special_tokens=params.add_special_tokens)
    return methods.TokenizeResult(token_ids, model.tokenizer.token_strings(token_ids))


def _batch_error(error: EngineError) -> methods.BatchError:
    told = jsonrpc.rpc_error(error)
    return methods.BatchError(told.code, told.message, error.code, cast("dict[str, object]", told.data["details"]))
