"""What a `generate` call asks of speculation, checked against the models."""

from __future__ import annotations

from collections.abc import Callable

from mlx_serving.errors import InvalidRequest
from mlx_serving.wire.methods import GenerateParams
from mlx_serving.worker.loaded_model import LoadedModel
from mlx_serving.worker.speculation.drafter import DraftModel, Wanted


def wanted_of(params: GenerateParams, model: LoadedModel, find: Callable[[str], LoadedModel]) -> Wanted:
    """`find` raises `ModelNotLoaded`. Raises `InvalidRequest` for a method without what it needs, and for a draft model
    of another vocabulary."""
    name, method = params.draft_model_id, params.speculation
    if name is None:
        if method == "draft":
            raise InvalidRequest("speculation draft needs a draft_model", field="draft_model")
        return Wanted("ngram" if method == "auto" else method, params.num_draft_tokens)
    if method in ("off", "ngram"):
        raise InvalidRequest(
            f"draft_model is given, but speculation is {method}: leave one out", field="draft_model", given=name
        )
    draft = find(name)
    if draft.facts.vocab_size != model.facts.vocab_size:
        raise InvalidRequest(
            f"{name} cannot draft for {model.model_id}: its vocabulary has {draft.facts.vocab_size} entries, not "
            f"{model.facts.vocab_size}",
            field="draft_model",
            limit=model.facts.vocab_size,
            given=draft.facts.vocab_size,
        )
    return Wanted("draft", params.num_draft_tokens, DraftModel(name, draft.model, draft.kv_bytes_per_token))
