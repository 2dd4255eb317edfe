"""What a log of `core.resumption` must hold so that another process words the answers of APIs that have parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from pydantic import TypeAdapter

from mlx_serving.core.choices import Choices
from mlx_serving.core.generation import GenerationRequest
from mlx_serving.core.output.answer_parts import Part
from mlx_serving.core.resumption import Api, RequestLog, SequenceLog
from mlx_serving.server.anthropic.answer import MessageAnswer
from mlx_serving.server.keys.auth import api_key_of
from mlx_serving.server.responses.answer import ResponseAnswer
from mlx_serving.server.responses.schema import InputItem
from mlx_serving.server.resume.journal import Noted, is_lasting, seeded
from mlx_serving.server.service import Service
from mlx_serving.server.single_generation import SingleAnswer


class MessageFacts(msgspec.Struct, frozen=True):
    """Of a message: see `MessageAnswer`."""

    request_id: str
    show_thinking: bool
    max_tokens: int


class Storage(msgspec.Struct, frozen=True):
    """Whose response it is, what was asked, and what was said before."""

    owner: str
    earlier: tuple[dict[str, Any], ...]
    items: tuple[dict[str, Any], ...]


class ResponseFacts(msgspec.Struct, frozen=True):
    """Of a response: see `ResponseAnswer`. It is stored where `storage` says so."""

    response: dict[str, Any]
    request_id: str
    encode_reasoning: bool
    logprobs: bool
    storage: Storage | None


_items: TypeAdapter[tuple[InputItem, ...]] = TypeAdapter(tuple[InputItem, ...])


def storage(owner: str, earlier: tuple[InputItem, ...], items: tuple[InputItem, ...]) -> Storage:
    """With the items as plain data."""
    before, asked = (tuple(_items.dump_python(each, mode="json", exclude_none=True)) for each in (earlier, items))
    return Storage(owner, before, asked)


def noting(
    service: Service,
    headers: Mapping[str, str],
    request: GenerationRequest,
    api: Api,
    facts: Callable[[], MessageFacts | ResponseFacts],
    *,
    stream: bool,
) -> tuple[GenerationRequest, Noted | None]:
    """The request, and what is noted of it while it runs, if that is wanted; then with these facts."""
    if service.handover is None or not is_lasting(request.prompt):
        return request, None
    [request] = seeded((request,))
    log = RequestLog(
        completion_id=request.request_id,
        api=api,
        created=int(time.time()),
        model=request.model,
        system_fingerprint=service.settings.system_fingerprint,
        stream=stream,
        include_usage=True,
        logprobs=request.sampling.logprobs is not None,
        choices=Choices(1, 1),
        sequences=[SequenceLog(request)],
        facts=msgspec.to_builtins(facts()),
    )
    return request, Noted(log, api_key_of(service, headers))


def message_answer(service: Service, message_id: str, model: str, facts: MessageFacts) -> MessageAnswer:
    return MessageAnswer(
        message_id,
        model,
        facts.request_id,
        show_thinking=facts.show_thinking,
        max_tokens=facts.max_tokens,
        context_length=lambda: service.context_length(model),
    )


def response_answer(service: Service, response_id: str, facts: ResponseFacts) -> ResponseAnswer:
    def keep(_document: Mapping[str, object], body: bytes, parts: Iterable[Part]) -> None:
        if facts.storage is not None:
            earlier, items = map(_items.validate_python, (facts.storage.earlier, facts.storage.items))
            service.responses.keep(response_id, facts.storage.owner, body, earlier, items, parts)

    return ResponseAnswer(
        facts.response,
        facts.request_id,
        keep,
        encode_reasoning=facts.encode_reasoning,
        logprobs=facts.logprobs,
    )


def kept_answer(service: Service, log: RequestLog) -> SingleAnswer | None:
    """How the rest is worded of an answer that has parts; None for the others."""
    match log.api:
        case "messages":
            return message_answer(service, log.completion_id, log.model, msgspec.convert(log.facts, MessageFacts))
        case "responses":
            return response_answer(service, log.completion_id, msgspec.convert(log.facts, ResponseFacts))
        case "chat" | "completions":
            return None
