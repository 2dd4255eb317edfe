"""Whether models that are loaded can draft for each other."""

from __future__ import annotations

from typing import Any

from mlx_serving.core.speculation.report import CompatibilityReport
from mlx_serving.wire import methods
from mlx_serving.worker.batches import each_of
from mlx_serving.worker.loading.loaded_models import LoadedModels
from mlx_serving.worker.routes import Reply, Route
from mlx_serving.worker.speculation.pairs import DraftPairs
from mlx_serving.worker.tokenizer_thread import TokenizerThread


class DraftHandlers:
    def __init__(self, models: LoadedModels, pairs: DraftPairs, tokenizers: TokenizerThread) -> None:
        self._models = models
        self._pairs = pairs
        self._tokenizers = tokenizers

    def routes(self) -> tuple[Route[Any, Any], ...]:
        return (
            Route(methods.CHECK_DRAFT, self.check_draft),
            Route(methods.BATCH_CHECK_DRAFT, self.batch_check_draft),
        )

    def check_draft(self, params: methods.CheckDraftParams, reply: Reply[CompatibilityReport]) -> None:
        primary, draft = self._models.get(params.primary_id), self._models.get(params.draft_id)
        self._tokenizers.submit(lambda: self._pairs.report(primary, draft), reply.send, reply.fail)

    def batch_check_draft(
        self, params: methods.BatchParams, reply: Reply[methods.BatchResult[CompatibilityReport]]
    ) -> None:
        models = self._models.snapshot()

        def one(entry: methods.CheckDraftParams) -> CompatibilityReport:
            return self._pairs.report(models.get(entry.primary_id), models.get(entry.draft_id))

        self._tokenizers.submit(lambda: each_of(params, methods.CheckDraftParams, one), reply.send, reply.fail)
