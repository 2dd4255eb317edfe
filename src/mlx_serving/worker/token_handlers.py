"""From text to tokens and back, on the tokenizer thread."""

from __future__ import annotations

from typing import Any

from mlx_serving.core.generation import ChatPrompt
from mlx_serving.wire import methods
from mlx_serving.worker.batches import each_of
from mlx_serving.worker.embedding.model import EmbeddingModel
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.loading.loaded_models import LoadedModels
from mlx_serving.worker.requests import check_images, check_token_ids, images_of
from mlx_serving.worker.routes import Reply, Route
from mlx_serving.worker.tokenizer_thread import TokenizerThread


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

    def batch_tokenize(
        self, params: methods.BatchParams, reply: Reply[methods.BatchResult[methods.TokenizeResult]]
    ) -> None:
        models = self._models.snapshot()

        def one(entry: methods.TokenizeParams) -> methods.TokenizeResult:
            return _tokenize(models.tokenizing(entry.model_id), entry)

        self._tokenizers.submit(lambda: each_of(params, methods.TokenizeParams, one), reply.send, reply.fail)


def _tokenize(model: LoadedModel | EmbeddingModel, params: methods.TokenizeParams) -> methods.TokenizeResult:
    token_ids = model.tokenizer.encode(params.text, add_special_tokens=params.add_special_tokens)
    return methods.TokenizeResult(token_ids, model.tokenizer.token_strings(token_ids))
