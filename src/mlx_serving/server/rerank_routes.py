"""How well texts answer a query: reranking as Jina and vLLM word it, and vLLM's scores."""

from __future__ import annotations

import time
from typing import Annotated, Literal, TypeAlias

from fastapi import APIRouter, Depends
from pydantic import Discriminator, Field, Tag
from starlette.requests import Request

from mlx_serving.core.embedding.embeddings import Embeddings, floats
from mlx_serving.core.generation import EmbeddingInputs
from mlx_serving.core.serving import ServedModel
from mlx_serving.errors import InvalidRequest
from mlx_serving.server.embedding_routes import (
    MAX_INPUTS,
    OF_OTHERS,
    EmbeddingUsage,
    Truncate,
    computed,
    named_model,
    refuse_zero,
    too_many,
)
from mlx_serving.server.http.access_log import access_record
from mlx_serving.server.http.body import read_json_object
from mlx_serving.server.issues import Issue, refuse
from mlx_serving.server.keys.auth import require_api_key
from mlx_serving.server.openai.documents import Document
from mlx_serving.server.openapi import GENERATION_ERRORS, body_of, error_responses
from mlx_serving.server.parsing import parse_body
from mlx_serving.server.request_fields import Body, string_or
from mlx_serving.server.service import Service


class TextObject(Body):
    """A document, as Jina writes it."""

    text: str = Field(min_length=1)


def _text_or_object(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, (dict, TextObject)) else None


_TextOrObject: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[TextObject, Tag("<object>")],
    Discriminator(
        _text_or_object,
        custom_error_type="wrong_type",
        custom_error_message="must be a string or an object with a text",
    ),
]
_TextOrTexts: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[str], Tag("<list>")], string_or("strings")
]


class RerankRequest(Body):
    """Body of POST /v1/rerank."""

    model: str | None = Field(default=None, description="A name that GET /v1/models lists; the default model if none.")
    query: str = Field(min_length=1)
    documents: list[_TextOrObject] = Field(min_length=1, description=f"At most {MAX_INPUTS}.")
    top_n: int | None = Field(default=None, ge=0, description="As many of the best; null and 0 are all.")
    return_documents: bool = Field(default=True, description="Whether the results have the texts.")
    truncate_prompt_tokens: Truncate = None
    user: str | None = None


class ScoreRequest(Body):
    """Body of POST /score."""

    model: str | None = Field(default=None, description="A name that GET /v1/models lists; the default model if none.")
    text_1: _TextOrTexts = Field(description="One text for all of `text_2`, or one for each.")
    text_2: _TextOrTexts = Field(description=f"At most {MAX_INPUTS}.")
    truncate_prompt_tokens: Truncate = None
    user: str | None = None


class RankedText(Document):
    text: str


class RankedDocument(Document):
    index: int = Field(description="In `documents`.")
    relevance_score: float
    document: RankedText | None = None


class RerankDocument(Document):
    id: str
    model: str
    usage: EmbeddingUsage
    results: list[RankedDocument] = Field(description="The best first.")


class ScoredPair(Document):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreDocument(Document):
    id: str
    object: Literal["list"] = "list"
    created: int = Field(description="Unix seconds.")
    model: str
    data: list[ScoredPair]
    usage: EmbeddingUsage


BODIES = (RerankRequest, ScoreRequest)


def rerank_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Reranking"], dependencies=[Depends(require_api_key(service))])
    errors = error_responses(*GENERATION_ERRORS)

    @router.post(
        "/v1/rerank",
        summary="Documents in the order in which they answer a query",
        openapi_extra=body_of(RerankRequest),
        responses=errors,
        response_model_exclude_none=True,
    )
    @router.post("/rerank", include_in_schema=False, response_model_exclude_none=True)
    @router.post("/v2/rerank", include_in_schema=False, response_model_exclude_none=True)
    async def rerank(request: Request) -> RerankDocument:
        asked = parse_body(RerankRequest, await read_json_object(request, service.settings), OF_OTHERS)
        texts = [each if isinstance(each, str) else each.text for each in asked.documents]
        _check("documents", texts, asked.truncate_prompt_tokens)
        model = named_model(service, request, asked.model, asked.user)
        inputs = EmbeddingInputs(tuple(texts), (asked.query,), truncate_to=asked.truncate_prompt_tokens)
        scored = await _scored(service, request, model, inputs, "documents")
        scores = _scores(scored)
        best = sorted(range(len(texts)), key=lambda index: -scores[index])[: asked.top_n or None]
        return RerankDocument(
            id=f"rerank-{access_record(request).request_id}",
            model=model.name,
            usage=_usage(scored),
            results=[
                RankedDocument(
                    index=index,
                    relevance_score=scores[index],
                    document=RankedText(text=texts[index]) if asked.return_documents else None,
                )
                for index in best
            ],
        )

    @router.post(
        "/v1/score",
        summary="How well texts answer others",
        openapi_extra=body_of(ScoreRequest),
        responses=errors,
    )
    @router.post("/score", include_in_schema=False)
    async def score(request: Request) -> ScoreDocument:
        asked = parse_body(ScoreRequest, await read_json_object(request, service.settings), OF_OTHERS)
        queries, texts = _as_list(asked.text_1), _as_list(asked.text_2)
        _check("text_1", queries, None)
        _check("text_2", texts, asked.truncate_prompt_tokens)
        if len(queries) not in (1, len(texts)):
            message = f"text_1 must have one text, or {len(texts)} as text_2 has, got {len(queries)}"
            refuse([Issue("text_1", message, limit=len(texts))])
        model = named_model(service, request, asked.model, asked.user)
        inputs = EmbeddingInputs(tuple(texts), tuple(queries), truncate_to=asked.truncate_prompt_tokens)
        scored = await _scored(service, request, model, inputs, "text_2")
        return ScoreDocument(
            id=f"score-{access_record(request).request_id}",
            created=int(time.time()),
            model=model.name,
            data=[ScoredPair(index=index, score=each) for index, each in enumerate(_scores(scored))],
            usage=_usage(scored),
        )

    return router


async def _scored(
    service: Service, request: Request, model: ServedModel, inputs: EmbeddingInputs, field: str
) -> Embeddings:
    try:
        return await computed(service, request, model, inputs)
    except InvalidRequest as error:
        if error.field is None or not error.field.startswith("input["):
            raise
        raise type(error)(
            error.message.replace("input[", f"{field}[", 1),
            field=error.field.replace("input[", f"{field}[", 1),
            limit=error.details.get("limit"),
            given=error.details.get("given"),
        ) from None


def _check(field: str, texts: list[str], truncate: int | None) -> None:
    if len(texts) > MAX_INPUTS:
        too_many(field, len(texts))
    empty = [index for index, text in enumerate(texts) if not text]
    if empty or not texts:
        where = f"{field}[{empty[0]}]" if empty else field
        refuse([Issue(where, f"{where} must not be empty")])
    refuse_zero(truncate)


def _as_list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _scores(scored: Embeddings) -> list[float]:
    return [floats(vector)[0] for vector in scored.vectors]


def _usage(scored: Embeddings) -> EmbeddingUsage:
    return EmbeddingUsage(prompt_tokens=scored.prompt_tokens, total_tokens=scored.prompt_tokens)
