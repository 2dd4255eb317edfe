"""OpenAI's endpoints under /v1."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.core.generation import GenerationRequest
from mlx_serving.core.resumption import RequestLog, SequenceLog
from mlx_serving.core.serving import ServedModel
from mlx_serving.server.anthropic.models import (
    AnthropicModel,
    AnthropicModelList,
    anthropic_model,
    anthropic_models,
    is_from_anthropics_client,
)
from mlx_serving.server.client_fields import ClientFields
from mlx_serving.server.generation import Generation, StreamedResponse, whole_response
from mlx_serving.server.http.access_log import AccessRecord, access_record
from mlx_serving.server.http.body import read_json_object
from mlx_serving.server.keys.auth import api_key_of, is_allowed, require_allowed, require_api_key
from mlx_serving.server.keys.metering import granted
from mlx_serving.server.openai.chunks import ID_PREFIXES, ChunkedApi, Heading, answer_of
from mlx_serving.server.openai.documents import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    LoadProgressDocument,
    ModelDocument,
    ModelList,
)
from mlx_serving.server.openai.requests import Asked, parse_chat, parse_completion
from mlx_serving.server.openai.schema import ChatCompletionRequest, CompletionRequest
from mlx_serving.server.openapi import GENERATION_ERRORS, body_of, error_responses, streamed_or_whole
from mlx_serving.server.resume.journal import Noted, is_lasting, seeded
from mlx_serving.server.service import Service
from mlx_serving.server.service_tier import priority_of, tier_of


def openai_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(require_api_key(service))])

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        openapi_extra=body_of(ChatCompletionRequest),
        responses=streamed_or_whole(ChatCompletion, ChatCompletionChunk) | error_responses(*GENERATION_ERRORS),
    )
    async def chat_completions(request: Request) -> Response:
        return await _generate(service, request, parse_chat, "chat")

    @router.post(
        "/completions",
        summary="Continue a text",
        openapi_extra=body_of(CompletionRequest),
        responses=streamed_or_whole(Completion, Completion) | error_responses(*GENERATION_ERRORS),
    )
    async def completions(request: Request) -> Response:
        return await _generate(service, request, parse_completion, "completions")

    @router.get("/models", summary="The models that may be named", responses=error_responses(400, 401))
    async def models(request: Request) -> ModelList | AnthropicModelList:
        listed = [model for model in service.engine.served_models() if is_allowed(model)]
        if is_from_anthropics_client(request):
            return anthropic_models(listed, request.query_params)
        default = service.default_model()
        return ModelList(data=[_document(model, default) for model in listed])

    # Names may be hub ids, which contain a slash.
    @router.get("/models/{model_id:path}", summary="One model", responses=error_responses(401, 404))
    async def model(request: Request, model_id: str) -> ModelDocument | AnthropicModel:
        if not model_id:  # which would be the default model elsewhere
            raise HTTPException(404)
        found = require_allowed(service.model(model_id))
        if is_from_anthropics_client(request):
            return anthropic_model(found)
        return _document(found, service.default_model())

    return router


async def _generate(
    service: Service,
    request: Request,
    parse: Callable[[Mapping[str, object]], Asked],
    api: ChunkedApi,
) -> Response:
    record = access_record(request)
    asked = parse(await read_json_object(request, service.settings))
    generation = _prepared(service, record, request.headers, asked, api)
    if asked.stream:
        return StreamedResponse(generation, service.keep_alive)
    return await whole_response(generation, request.receive)


def prepared_chat(
    service: Service, record: AccessRecord, headers: Mapping[str, str], body: Mapping[str, object]
) -> tuple[Generation, bool]:
    """What a chat's body asks for, and whether its answer is to be streamed. Raises `InvalidRequest`, and
    `ModelNotFound`."""
    asked = parse_chat(body)
    return _prepared(service, record, headers, asked, "chat"), asked.stream


def _prepared(
    service: Service, record: AccessRecord, headers: Mapping[str, str], asked: Asked, api: ChunkedApi
) -> Generation:
    record.stream, record.user, record.metadata = asked.stream, asked.user, asked.metadata
    model = service.model(asked.model)
    record.model = model.name
    priority = granted(priority_of(asked.service_tier), record.holder)
    heading = Heading(
        ID_PREFIXES[api] + record.request_id,
        int(time.time()),
        model.name,
        service.settings.system_fingerprint,
        None if asked.service_tier is None else tier_of(priority),
    )
    wanted = GenerationRequest(
        request_id=heading.completion_id,
        model=model.name,
        prompt=asked.prompts[0],
        sampling=asked.sampling_with(model.profile),
        structure=asked.structure,
        parse_output=asked.parse_output,
        tool_choice=asked.tool_choice,
        reasoning_budget=asked.reasoning_budget,
        priority=priority,
        caller=asked.user or "",
        cut_to_fit=asked.default_max_tokens is not None,
        cache_salt=asked.cache_salt,
        speculation=asked.speculation,
        timeout_s=service.settings.request_timeout_s,
    )
    requests = asked.choices.expand(wanted, asked.prompts)
    noted = None
    if service.handover is not None and all(map(is_lasting, asked.prompts)):
        requests = seeded(requests)
        noted = Noted(_log_of(heading, api, asked, requests), api_key_of(service, headers))
    return Generation(
        requests=requests,
        choices=asked.choices,
        backend=ClientFields(service.engine, asked.names),
        in_flight=service.in_flight,
        answer=answer_of(api, heading, include_usage=asked.include_usage, logprobs=asked.sampling.logprobs is not None),
        record=record,
        journal=None if service.handover is None else service.handover.journal,
        noted=noted,
    )


def _log_of(heading: Heading, api: ChunkedApi, asked: Asked, requests: Sequence[GenerationRequest]) -> RequestLog:
    return RequestLog(
        completion_id=heading.completion_id,
        api=api,
        created=heading.created,
        model=heading.model,
        system_fingerprint=heading.system_fingerprint,
        service_tier=heading.service_tier,
        stream=asked.stream,
        include_usage=asked.include_usage,
        logprobs=asked.sampling.logprobs is not None,
        choices=asked.choices,
        sequences=[SequenceLog(request) for request in requests],
    )


def _document(model: ServedModel, default: ServedModel | None) -> ModelDocument:
    return ModelDocument(
        id=model.name,
        created=model.created,
        state=model.state,
        context_length=model.context_length,
        max_model_len=model.context_length,
        root=model.reference,
        capabilities=None if model.abilities is None else list(model.abilities),
        default=model == default,
        parent=model.alias_of,
        profile=dict(model.profile),
        progress=progress_document(model),
    )


def progress_document(model: ServedModel) -> LoadProgressDocument | None:
    """How far the load of a model is, if one is under way."""
    told = model.progress
    return None if told is None else LoadProgressDocument(stage=told.stage, done=told.done, total=told.total)
