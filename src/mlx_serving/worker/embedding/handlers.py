"""Beginning and ending requests for vectors. Their texts are tokenized off this thread, some at a time, so that others'
prompts go in between; meanwhile the request is `opening`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from mlx_serving.errors import Aborted, ContextLengthExceeded, EngineError, InvalidRequest
from mlx_serving.wire import methods
from mlx_serving.wire.notifications import Row, StepFrame
from mlx_serving.worker.embedding.embeddings import EmbeddingJob, Embeddings
from mlx_serving.worker.embedding.model import EmbeddingModel, EncodedInput
from mlx_serving.worker.loading.loaded_models import LoadedModels
from mlx_serving.worker.pipe import Outbox
from mlx_serving.worker.requests import check_token_ids
from mlx_serving.worker.routes import Reply, Route
from mlx_serving.worker.tokenizer_thread import TokenizerThread

_PIECE_INPUTS = 64
_PIECE_CHARS = 65_536


class EmbedHandlers:
    def __init__(
        self, outbox: Outbox, models: LoadedModels, embeddings: Embeddings, tokenizers: TokenizerThread
    ) -> None:
        self._outbox = outbox
        self._models = models
        self._embeddings = embeddings
        self._tokenizers = tokenizers
        self._opening: dict[str, str] = {}  # stream id -> model id, while the texts are tokenized

    def routes(self) -> tuple[Route[Any, Any], ...]:
        return (Route(methods.EMBED, self.embed),)

    @property
    def opening(self) -> int:
        return len(self._opening)

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._embeddings) + len(self._opening)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._opening or stream_id in self._embeddings

    def count(self, model_id: str) -> int:
        """The same, of one model."""
        opening = sum(each == model_id for each in self._opening.values())
        return len(self._embeddings.stream_ids(model_id)) + opening

    def abort(self, stream_id: str) -> bool:
        """End a request. False when it had ended or never was."""
        row = self._embeddings.abort(stream_id)
        self._emit([] if row is None else [row])
        return row is not None or self._opening.pop(stream_id, None) is not None

    def abort_all(self, model_id: str) -> None:
        """End every request for a model."""
        for stream_id in self._embeddings.stream_ids(model_id):
            self.abort(stream_id)
        for stream_id in [each for each, opening in self._opening.items() if opening == model_id]:
            del self._opening[stream_id]

    def embed(self, params: methods.EmbedParams, reply: Reply[methods.GenerateResult]) -> None:
        model = self._models.embedder(params.model_id)
        stream_id = params.stream_id or str(uuid.uuid4())
        if stream_id in self:
            raise InvalidRequest(f"A stream with the id {stream_id} is active", field="stream_id", given=stream_id)
        places = params.places or range(len(params.inputs))
        _check(params, model, places)
        started_at, started = time.time(), time.monotonic()
        self._opening[stream_id] = model.model_id
        encoded: dict[int, EncodedInput] = {}
        pieces = _pieces(params.inputs)

        def go_on(found: list[EncodedInput]) -> None:
            if stream_id not in self._opening:
                reply.fail(Aborted("The request was aborted before it began", stream_id=stream_id))
                return
            for each in found:
                encoded[places[len(encoded)]] = each
            if len(encoded) < len(params.inputs):
                self._tokenize(model, params, pieces.pop(0), go_on, refuse)
                return
            deadline = None if params.timeout_s is None else started + params.timeout_s
            job = EmbeddingJob(stream_id, encoded, started, params.dimensions, params.priority, params.caller, deadline)
            for place, each in encoded.items():
                self._require_memory(place, len(each.token_ids), model)
            self._embeddings.submit(model, job)
            del self._opening[stream_id]
            reply.send(methods.GenerateResult(stream_id, started_at, job.tokens))

        def refuse(error: EngineError) -> None:
            self._opening.pop(stream_id, None)
            reply.fail(error)

        self._tokenize(model, params, pieces.pop(0), go_on, refuse)

    def _tokenize(
        self,
        model: EmbeddingModel,
        params: methods.EmbedParams,
        piece: range,
        done: Callable[[list[EncodedInput]], None],
        failed: Callable[[EngineError], None],
    ) -> None:
        places = params.places or range(len(params.inputs))
        queries = params.queries
        if len(queries) == 1:
            queries = queries * len(params.inputs)

        def work() -> list[EncodedInput]:
            return [_encoded(model, params, each, queries[each] if queries else None, places[each]) for each in piece]

        self._tokenizers.submit(work, done, failed)

    def _require_memory(self, place: int, tokens: int, model: EmbeddingModel) -> None:
        room = self._embeddings.pass_bytes()
        if model.memory.size(0, tokens) > room:
            limit = int(model.memory.tokens_within(room, 0))
            raise ContextLengthExceeded(
                f"input[{place}] has {tokens} tokens, and the memory set aside for a pass holds {limit}",
                field=f"input[{place}]",
                limit=limit,
                given=tokens,
            )

    def _emit(self, rows: list[Row]) -> None:
        if rows:
            self._outbox.notify(StepFrame(rows))


def _check(params: methods.EmbedParams, model: EmbeddingModel, places: Sequence[int]) -> None:
    count = len(params.inputs)
    if len(places) != count or len(set(places)) != count:
        raise InvalidRequest("places must have one number for each input, and none twice", field="places", limit=count)
    if params.queries and len(params.queries) not in (1, count):
        raise InvalidRequest(
            f"queries must have one text for all inputs or one for each of the {count}, got {len(params.queries)}",
            field="queries",
            limit=count,
            given=len(params.queries),
        )
    facts = model.facts.embedding
    assert facts is not None
    if facts.scores != bool(params.queries):
        does = "scores texts against a query, and makes no embeddings" if facts.scores else "makes embeddings"
        raise InvalidRequest(
            f"{model.model_id} {does}" + ("" if facts.scores else ", and scores no texts against a query"),
            field="model",
            given=model.model_id,
        )
    if params.dimensions is not None and params.dimensions > facts.dimensions:
        raise InvalidRequest(
            f"dimensions must be at most {facts.dimensions}, as many as {model.model_id} has, got {params.dimensions}",
            field="dimensions",
            limit=facts.dimensions,
            given=params.dimensions,
        )
    if params.truncate_to is not None and params.truncate_to > model.facts.context_length:
        raise InvalidRequest(
            f"truncate_prompt_tokens must be at most {model.facts.context_length}, as many as {model.model_id} takes, "
            f"got {params.truncate_to}",
            field="truncate_prompt_tokens",
            limit=model.facts.context_length,
            given=params.truncate_to,
        )


def _pieces(inputs: Sequence[str | list[int]]) -> list[range]:
    """Ranges of inputs, each little work for the tokenizer."""
    pieces: list[range] = []
    first = chars = 0
    for index, each in enumerate(inputs):
        if index > first and (index - first == _PIECE_INPUTS or chars + len(each) > _PIECE_CHARS):
            pieces.append(range(first, index))
            first, chars = index, 0
        chars += len(each)
    return [*pieces, range(first, len(inputs))]


def _encoded(
    model: EmbeddingModel, params: methods.EmbedParams, index: int, query: str | None, place: int
) -> EncodedInput:
    """Runs on the tokenizer thread."""
    given = params.inputs[index]
    field = f"input[{place}]"
    limit = model.facts.context_length
    cut = limit if params.truncate_to == -1 else params.truncate_to
    if isinstance(given, str):
        encoded = model.encode(given, query, cut)
    elif query is not None:
        raise InvalidRequest(f"{field} is scored against a query, and must be a text", field=field)
    else:
        check_token_ids(field, given, model)
        encoded = EncodedInput(given[:cut])
    count = len(encoded.token_ids)
    if count == 0:
        raise InvalidRequest(f"{field} is empty: it has no tokens", field=field)
    if cut is not None and count > cut:
        raise InvalidRequest(
            f"truncate_prompt_tokens must be more than {cut}, which leaves nothing beside the special tokens",
            field="truncate_prompt_tokens",
            given=cut,
        )
    if count > limit:
        raise ContextLengthExceeded(
            f"{field} has {count} tokens, and {model.model_id} takes at most {limit}; truncate_prompt_tokens cuts it",
            field=field,
            limit=limit,
            given=count,
        )
    return encoded
