"""OpenAI's Responses API under /v1/responses."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.core.generation import GenerationRequest
from mlx_serving.core.output.answer_parts import Part
from mlx_serving.errors import InvalidRequest, UnsupportedParameter
from mlx_serving.server.client_fields import ClientFields
from mlx_serving.server.errors import json_response
from mlx_serving.server.http.access_log import access_record
from mlx_serving.server.http.body import read_json_object
from mlx_serving.server.keys.auth import owner_of, require_allowed, require_api_key
from mlx_serving.server.keys.metering import granted
from mlx_serving.server.openapi import (
    GENERATION_ERRORS,
    body_of,
    error_responses,
    named_events_or_whole,
    query_parameters,
)
from mlx_serving.server.responses.answer import ResponseAnswer
from mlx_serving.server.responses.documents import DeletedResponse, InputItemList, InputTokens, ResponseDocument
from mlx_serving.server.responses.requests import FIELD_NAMES, AskedResponse, parse_response
from mlx_serving.server.responses.schema import ResponsesRequest
from mlx_serving.server.resume.answers import ResponseFacts, noting, storage
from mlx_serving.server.service import Service
from mlx_serving.server.service_tier import ServedTier, priority_of, tier_of
from mlx_serving.server.single_generation import SingleGeneration, SingleStream

_MAX_LISTED = 100
_LISTED = 20
_PAGING = query_parameters(
    limit={"type": "integer", "minimum": 1, "maximum": _MAX_LISTED, "default": _LISTED},
    order={"type": "string", "enum": ["asc", "desc"], "default": "desc"},
    after={"type": "string"},
)


def responses_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/responses", tags=["OpenAI"], dependencies=[Depends(require_api_key(service))])
    stored = service.responses

    @router.post(
        "",
        summary="Answer a conversation, in items",
        openapi_extra=body_of(ResponsesRequest),
        responses=named_events_or_whole(ResponseDocument) | error_responses(*GENERATION_ERRORS),
    )
    async def create(request: Request) -> Response:
        return await _answer(service, request)

    @router.post(
        "/input_tokens",
        summary="Count the tokens of a conversation, in items",
        openapi_extra=body_of(ResponsesRequest),
        responses=error_responses(*GENERATION_ERRORS),
    )
    async def input_tokens(request: Request) -> InputTokens:
        asked = parse_response(await read_json_object(request, service.settings))
        earlier = await stored.earlier(asked.request.previous_response_id, owner_of(request.headers))
        model = require_allowed(service.model(asked.request.model))
        access_record(request).model = model.name
        counted = await service.engine.tokenize_chat(model.name, asked.prompt(earlier))
        return InputTokens(input_tokens=len(counted.tokens))

    @router.get(
        "/{response_id}",
        summary="A stored response",
        responses={200: {"model": ResponseDocument}, **error_responses(400, 401, 404)},
    )
    async def get(request: Request, response_id: str) -> Response:
        _only_known(request, ())
        return json_response((await stored.get(response_id, owner_of(request.headers))).body)

    @router.delete("/{response_id}", summary="Forget a stored response", responses=error_responses(401, 404))
    async def delete(request: Request, response_id: str) -> DeletedResponse:
        await stored.delete(response_id, owner_of(request.headers))
        return DeletedResponse(id=response_id)

    @router.get(
        "/{response_id}/input_items",
        summary="What a stored response answered",
        openapi_extra=_PAGING,
        responses=error_responses(400, 401, 404),
    )
    async def input_items(request: Request, response_id: str) -> InputItemList:
        _only_known(request, ("limit", "order", "after"))
        return _page(request.query_params, (await stored.get(response_id, owner_of(request.headers))).inputs)

    return router


async def _answer(service: Service, request: Request) -> Response:
    record = access_record(request)
    asked = parse_response(await read_json_object(request, service.settings))
    record.stream, record.user = asked.request.stream or False, asked.user
    owner = owner_of(request.headers)
    earlier = await service.responses.earlier(asked.request.previous_response_id, owner)
    model = service.model(asked.request.model)
    record.model = model.name
    response_id = "resp_" + record.request_id
    priority = granted(priority_of(asked.request.service_tier), record.holder)

    def keep(_document: Mapping[str, object], body: bytes, parts: Iterable[Part]) -> None:
        if asked.stored:
            service.responses.keep(response_id, owner, body, earlier, asked.items, parts)

    logprobs = asked.sampling.logprobs is not None
    facts = _facts(asked, response_id, model.name, tier_of(priority))
    encode_reasoning = "reasoning.encrypted_content" in (asked.request.include or ())

    def kept() -> ResponseFacts:
        stored = storage(owner, earlier, asked.items) if asked.stored else None
        return ResponseFacts(dict(facts), record.request_id, encode_reasoning, logprobs, stored)

    wanted, noted = noting(
        service,
        request.headers,
        GenerationRequest(
            request_id=response_id,
            model=model.name,
            prompt=asked.prompt(earlier),
            sampling=asked.sampling,
            priority=priority,
            caller=asked.user or "",
            cache_salt=asked.request.cache_salt or "",
            timeout_s=service.settings.request_timeout_s,
            structure=asked.structure,
            parse_output=True,
            tool_choice=asked.tool_choice,
            reasoning_budget=asked.thought.budget,
        ),
        "responses",
        kept,
        stream=asked.request.stream or False,
    )
    generation = SingleGeneration(
        request=wanted,
        backend=ClientFields(service.engine, FIELD_NAMES),
        in_flight=service.in_flight,
        answer=ResponseAnswer(facts, record.request_id, keep, encode_reasoning=encode_reasoning, logprobs=logprobs),
        record=record,
        journal=None if service.handover is None else service.handover.journal,
        noted=noted,
    )
    if asked.request.stream:
        return SingleStream(generation, service.keep_alive)
    return await generation.whole_response(request.receive)


def _facts(asked: AskedResponse, response_id: str, model: str, tier: ServedTier) -> Mapping[str, object]:
    """What a response repeats of its request."""
    request = asked.request
    told = request.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "error": None,
        "incomplete_details": None,
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": told.get("reasoning", {}),
        "safety_identifier": request.safety_identifier,
        "service_tier": tier,
        "store": asked.stored,
        "temperature": request.temperature,
        "text": {"format": {"type": "text"}, **told.get("text", {})},
        "tool_choice": told.get("tool_choice", "auto"),
        "tools": told.get("tools", []),
        "top_logprobs": asked.sampling.logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _only_known(request: Request, known: Iterable[str]) -> None:
    """Raise `UnsupportedParameter` for any other parameter in the URL."""
    for name in request.query_params:
        if name not in known:
            raise UnsupportedParameter(f"{name[:80]} is not supported by this server", field=name[:80])


def _page(params: Mapping[str, str], items: tuple[Mapping[str, object], ...]) -> InputItemList:
    limit, order, after = params.get("limit", str(_LISTED)), params.get("order", "desc"), params.get("after")
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 3 and 1 <= int(limit) <= _MAX_LISTED):
        rule = f"limit must be a whole number from 1 to {_MAX_LISTED}"
        raise InvalidRequest(f"{rule}, got {limit[:80]!r}", field="limit", limit=_MAX_LISTED)
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order must be asc or desc, got {order[:80]!r}", field="order")
    listed = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        ids = [item["id"] for item in listed]
        if after not in ids:
            raise InvalidRequest(f"after must be the id of an item, got {after[:80]!r}", field="after")
        listed = listed[ids.index(after) + 1 :]
    page = [dict(item) for item in listed[: int(limit)]]
    return InputItemList(
        data=page,
        first_id=str(page[0]["id"]) if page else None,
        last_id=str(page[-1]["id"]) if page else None,
        has_more=len(listed) > len(page),
    )
