"""What a `generate` call asks of speculation."""

from __future__ import annotations

from mlx_serving.errors import InvalidRequest
from mlx_serving.wire.methods import GenerateParams
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.speculation.drafter import DraftModel, Wanted


def wanted_of(params: GenerateParams, draft: LoadedModel | None) -> Wanted:
    """`draft` is the draft model that is asked for. Raises `InvalidRequest` for a method without what it needs."""
    method = params.speculation
    if draft is None:
        if method == "draft":
            raise InvalidRequest("speculation draft needs a draft_model", field="draft_model")
        return Wanted("ngram" if method == "auto" else method, params.num_draft_tokens)
    if method in ("off", "ngram"):
        raise InvalidRequest(
            f"draft_model is given, but speculation is {method}: leave one out",
            field="draft_model",
            given=draft.model_id,
        )
    return Wanted("draft", params.num_draft_tokens, DraftModel(draft.model_id, draft.model))
