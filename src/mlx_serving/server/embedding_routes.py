"""Texts to vectors, as OpenAI words it."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Literal, TypeAlias

import msgspec
from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.core.choices import Usage
from mlx_serving.core.embedding.embeddings import Embeddings, floats, gather
from mlx_serving.core.generation import EmbeddingInputs, GenerationRequest
from mlx_serving.core.serving import ServedModel
from mlx_serving.server.errors import json_response
from mlx_serving.server.http.access_log import access_record
from mlx_serving.server.http.body import read_json_object
from mlx_serving.server.issues import Issue, refuse
from mlx_serving.server.keys.auth import require_allowed, require_api_key
from mlx_serving.server.openai.documents import Document
from mlx_serving.server.openai.schema import PromptValue
from mlx_serving.server.openapi import GENERATION_ERRORS, body_of, error_responses
from mlx_serving.server.parsing import parse_body
from mlx_serving.server.request_fields import Body
from mlx_serving.server.service import Service
from mlx_serving.server.unsupported import NeutralValues

MAX_INPUTS = 2048
"""OpenAI's limit of inputs in one request."""

OF_OTHERS: NeutralValues = {"add_special_tokens": (True,), "mm_processor_kwargs": ({},), "priority": (0,)}
"""Parameters of vLLM's that are refused unless they ask for nothing."""

Truncate: TypeAlias = Annotated[
    int | None,
    Field(
        ge=-1,
        description="Cut longer inputs to so many tokens, special ones included; -1 is as many as the model takes. "
        "Without it, a longer input is an error.",
    ),
]
_AT_ONCE = 64  # vectors that are encoded before others get their turn


class EmbeddingsRequest(Body):
    """Body of POST /v1/embeddings."""

    model: str | None = Field(default=None, description="A name that GET /v1/models lists; the default model if none.")
    input: PromptValue = Field(description=f"Of a list, each gets an embedding of its own; at most {MAX_INPUTS}.")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="The first so many of the model's; what is left has the length 1 again, if the model's have.",
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        default="float", description="base64 is of little-endian 32-bit floats."
    )
    truncate_prompt_tokens: Truncate = None
    user: str | None = None


class EmbeddingDocument(Document):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="A text where base64 was asked for.")


class EmbeddingUsage(Document):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsDocument(Document):
    object: Literal["list"] = "list"
    data: list[EmbeddingDocument] = Field(description="In the order of the inputs.")
    model: str
    usage: EmbeddingUsage


BODIES = (EmbeddingsRequest,)


def embedding_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Embeddings"], dependencies=[Depends(require_api_key(service))])

    @router.post(
        "/v1/embeddings",
        summary="The embeddings of texts",
        openapi_extra=body_of(EmbeddingsRequest),
        response_model=EmbeddingsDocument,
        responses=error_responses(*GENERATION_ERRORS),
    )
    async def embeddings(request: Request) -> Response:
        asked = parse_body(EmbeddingsRequest, await read_json_object(request, service.settings), OF_OTHERS)
        inputs = _inputs(asked.input)
        if len(inputs) > MAX_INPUTS:
            too_many("input", len(inputs))
        refuse_zero(asked.truncate_prompt_tokens)
        model = named_model(service, request, asked.model, asked.user)
        wanted = EmbeddingInputs(inputs, dimensions=asked.dimensions, truncate_to=asked.truncate_prompt_tokens)
        made = await computed(service, request, model, wanted)
        return json_response(await _document(made, model.name, asked.encoding_format or "float"))

    return router


def named_model(service: Service, request: Request, name: str | None, user: str | None) -> ServedModel:
    """Raises `ModelNotFound` and `Forbidden`."""
    model = require_allowed(service.model(name))
    record = access_record(request)
    record.model, record.user, record.stream = model.name, user, False
    return model


async def computed(service: Service, request: Request, model: ServedModel, inputs: EmbeddingInputs) -> Embeddings:
    """Raises what a generation raises; ends at once when the client leaves."""
    record = access_record(request)
    wanted = GenerationRequest(
        request_id=f"embd-{record.request_id}",
        model=model.name,
        prompt=inputs,
        caller=record.user or "",
        timeout_s=service.settings.request_timeout_s,
    )
    async with (
        service.in_flight.admit(request.receive, wanted.timeout_s, wanted.request_id),
        service.engine.generate(wanted) as deltas,
    ):
        made = await gather(deltas, len(inputs.inputs))
    record.usage = Usage(made.prompt_tokens, 0)
    return made


def too_many(field: str, given: int) -> None:
    """Raises `InvalidRequest`."""
    message = f"{field} may have at most {MAX_INPUTS} entries, got {given}"
    refuse([Issue(field, message, limit=MAX_INPUTS)])


def refuse_zero(truncate: int | None) -> None:
    """Raises `InvalidRequest`."""
    if truncate == 0:
        field = "truncate_prompt_tokens"
        refuse([Issue(field, f"{field} must be -1 or at least 1, got 0", limit=1)])


def _inputs(given: str | list[int] | list[str] | list[list[int]]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str):
        return (given,)
    tokens = tuple(each for each in given if isinstance(each, int))
    if tokens:
        return (tokens,)
    return tuple(each if isinstance(each, str) else tuple(each) for each in given if not isinstance(each, int))


async def _document(made: Embeddings, model: str, encoding: Literal["float", "base64"]) -> bytes:
    data: list[msgspec.Raw] = []
    for index, vector in enumerate(made.vectors):
        embedding = base64.b64encode(vector).decode() if encoding == "base64" else floats(vector)
        told = {"object": "embedding", "index": index, "embedding": embedding}
        data.append(msgspec.Raw(msgspec.json.encode(told)))
        if index % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
    usage = {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})
