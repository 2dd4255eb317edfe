"""OpenAI's endpoints under /v1."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.core.generation import GenerationRequest
from mlx_serving.core.serving import ServedModel
from mlx_serving.server.access_log import access_record
from mlx_serving.server.auth import require_api_key
from mlx_serving.server.body import read_json_object
from mlx_serving.server.generation import Generation, StreamedResponse, whole_response
from mlx_serving.server.openai_chunks import Answer, ChatAnswer, Heading, TextAnswer
from mlx_serving.server.openai_documents import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ModelDocument,
    ModelList,
)
from mlx_serving.server.openai_requests import Asked, parse_chat, parse_completion
from mlx_serving.server.openai_schema import ChatCompletionRequest, CompletionRequest
from mlx_serving.server.openapi import GENERATION_ERRORS, body_of, error_responses, streamed_or_whole
from mlx_serving.server.service import Service


class _Wording(Protocol):
    def __call__(self, heading: Heading, *, include_usage: bool, logprobs: bool) -> Answer: ...


def openai_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(require_api_key(service))])

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        openapi_extra=body_of(ChatCompletionRequest),
        responses=streamed_or_whole(ChatCompletion, ChatCompletionChunk) | error_responses(*GENERATION_ERRORS),
    )
    async def chat_completions(request: Request) -> Response:
        return await _generate(service, request, parse_chat, "chatcmpl-", ChatAnswer)

    @router.post(
        "/completions",
        summary="Continue a text",
        openapi_extra=body_of(CompletionRequest),
        responses=streamed_or_whole(Completion, Completion) | error_responses(*GENERATION_ERRORS),
    )
    async def completions(request: Request) -> Response:
        return await _generate(service, request, parse_completion, "cmpl-", TextAnswer)

    @router.get("/models", summary="The models that may be named", responses=error_responses(401))
    async def models() -> ModelList:
        default = service.default_model()
        return ModelList(data=[_document(model, default) for model in service.engine.served_models()])

    # Names may be hub ids, which contain a slash.
    @router.get("/models/{model_id:path}", summary="One model", responses=error_responses(401, 404))
    async def model(model_id: str) -> ModelDocument:
        return _document(service.model(model_id), service.default_model())

    return router


async def _generate(
    service: Service,
    request: Request,
    parse: Callable[[Mapping[str, object]], Asked],
    id_prefix: str,
    wording: _Wording,
) -> Response:
    record = access_record(request)
    asked = parse(await read_json_object(request, service.settings))
    record.stream, record.user = asked.stream, asked.user
    model = service.model(asked.model)
    record.model = model.name
    heading = Heading(id_prefix + record.request_id, int(time.time()), model.name, service.settings.system_fingerprint)
    wanted = GenerationRequest(
        request_id=heading.completion_id,
        model=model.name,
        prompt=asked.prompts[0],
        sampling=asked.sampling,
        caller=asked.user or "",
        timeout_s=service.settings.request_timeout_s,
    )
    generation = Generation(
        requests=asked.choices.expand(wanted, asked.prompts),
        choices=asked.choices,
        backend=service.engine,
        in_flight=service.in_flight,
        answer=wording(heading, include_usage=asked.include_usage, logprobs=asked.sampling.logprobs is not None),
        record=record,
    )
    if asked.stream:
        return StreamedResponse(generation, service.keep_alive)
    return await whole_response(generation, request.receive)


def _document(model: ServedModel, default: ServedModel | None) -> ModelDocument:
    return ModelDocument(
        id=model.name,
        created=model.created,
        state=model.state,
        context_length=model.context_length,
        default=model == default,
    )
