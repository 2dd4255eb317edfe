"""Anthropic's endpoints under /v1/messages."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.core.generation import GenerationRequest
from mlx_serving.server.anthropic.documents import AnthropicErrorDocument, MessageDocument, TokenCount
from mlx_serving.server.anthropic.errors import OVERLOADED_STATUS
from mlx_serving.server.anthropic.requests import parse_count, parse_messages
from mlx_serving.server.anthropic.schema import CountTokensRequest, MessagesRequest
from mlx_serving.server.http.access_log import access_record
from mlx_serving.server.http.body import read_json_object
from mlx_serving.server.keys.auth import require_allowed, require_api_key
from mlx_serving.server.openapi import GENERATION_ERRORS, body_of, error_responses, named_events_or_whole
from mlx_serving.server.resume.answers import MessageFacts, message_answer, noting
from mlx_serving.server.service import Service
from mlx_serving.server.single_generation import SingleGeneration, SingleStream

_ERRORS = error_responses(*GENERATION_ERRORS, OVERLOADED_STATUS, document=AnthropicErrorDocument)


def anthropic_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/messages", tags=["Anthropic"], dependencies=[Depends(require_api_key(service))])

    @router.post(
        "",
        summary="Answer a conversation, for Anthropic's clients",
        openapi_extra=body_of(MessagesRequest),
        responses=named_events_or_whole(MessageDocument) | _ERRORS,
    )
    async def messages(request: Request) -> Response:
        return await _answer(service, request)

    @router.post(
        "/count_tokens",
        summary="Count the tokens of a conversation",
        openapi_extra=body_of(CountTokensRequest),
        responses=_ERRORS,
    )
    async def count_tokens(request: Request) -> TokenCount:
        name, prompt = parse_count(await read_json_object(request, service.settings))
        model = require_allowed(service.model(name))
        access_record(request).model = model.name
        return TokenCount(input_tokens=len((await service.engine.tokenize_chat(model.name, prompt)).tokens))

    return router


async def _answer(service: Service, request: Request) -> Response:
    record = access_record(request)
    asked = parse_messages(await read_json_object(request, service.settings))
    record.stream, record.user = asked.stream, asked.user
    model = service.model(asked.model)
    record.model = model.name
    message_id = "msg_" + record.request_id
    facts = MessageFacts(record.request_id, asked.show_thinking, asked.max_tokens)
    wanted, noted = noting(
        service,
        request.headers,
        GenerationRequest(
            request_id=message_id,
            model=model.name,
            prompt=asked.prompt,
            sampling=asked.sampling,
            caller=asked.user or "",
            cache_salt=asked.cache_salt,
            timeout_s=service.settings.request_timeout_s,
            structure=asked.structure,
            parse_output=True,
            tool_choice=asked.tool_choice,
            reasoning_budget=asked.reasoning_budget,
            cut_to_fit=True,
        ),
        "messages",
        lambda: facts,
        stream=asked.stream,
    )
    generation = SingleGeneration(
        request=wanted,
        backend=service.engine,
        in_flight=service.in_flight,
        answer=message_answer(service, message_id, model.name, facts),
        record=record,
        journal=None if service.handover is None else service.handover.journal,
        noted=noted,
    )
    if asked.stream:
        return SingleStream(generation, service.keep_alive)
    return await generation.whole_response(request.receive)
