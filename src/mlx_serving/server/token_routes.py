"""Text to tokens and back, as vLLM words it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request

from mlx_serving.core.generation import ChatPrompt
from mlx_serving.core.serving import ServedModel
from mlx_serving.server.http.access_log import access_record
from mlx_serving.server.http.body import read_json_object
from mlx_serving.server.issues import Issue, refuse
from mlx_serving.server.keys.auth import require_allowed, require_api_key
from mlx_serving.server.openai.documents import Document
from mlx_serving.server.openai.requests import parse_chat
from mlx_serving.server.openapi import body_of, error_responses
from mlx_serving.server.parsing import parse_body
from mlx_serving.server.request_fields import Body
from mlx_serving.server.service import Service
from mlx_serving.server.unsupported import NeutralValues
from mlx_serving.wire.methods import MAX_TEXT_CHARS

_MAX_TOKENS = 1_000_000
_OF_CHATS: NeutralValues = {
    "add_generation_prompt": (True,),
    "chat_template": (),
    "continue_final_message": (False,),
    "mm_processor_kwargs": ({},),
}


class TokenizeRequest(Body):
    """Body of POST /tokenize: either `prompt`, or `messages` with what a chat completion has besides."""

    model: str | None = Field(default=None, description="A name that GET /v1/models lists; the default model if none.")
    prompt: str | None = Field(default=None, description="Text, which no template is applied to.")
    messages: list[dict[str, object]] | None = Field(default=None, description="As in /v1/chat/completions.")
    tools: list[dict[str, object]] | None = Field(default=None, description="As in /v1/chat/completions.")
    chat_template_kwargs: dict[str, object] | None = Field(default=None, description="As in /v1/chat/completions.")
    add_special_tokens: bool | None = Field(
        default=None,
        description="Of a `prompt`: with the tokens that the model's texts begin and end with; true if not given.",
    )
    return_token_strs: bool | None = Field(default=None, description="With the tokens as the vocabulary writes them.")


class TokenizeDocument(Document):
    count: int
    max_model_len: int | None = Field(description="Of the model's context, in tokens.")
    tokens: list[int]
    token_strs: list[str] | None = Field(description="null unless asked for.")


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: str | None = Field(default=None, description="A name that GET /v1/models lists; the default model if none.")
    tokens: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(max_length=_MAX_TOKENS)


class DetokenizeDocument(Document):
    prompt: str


BODIES = (TokenizeRequest, DetokenizeRequest)


def token_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Tokens"], dependencies=[Depends(require_api_key(service))])

    @router.post(
        "/tokenize",
        summary="The tokens of a text or of a conversation",
        openapi_extra=body_of(TokenizeRequest),
        responses=error_responses(400, 401, 403, 404, 408, 413, 500, 503, 504),
    )
    async def tokenize(request: Request) -> TokenizeDocument:
        body = await read_json_object(request, service.settings)
        asked, chat = _parse_tokenize(body)
        model = _model(service, request, asked.model)
        if chat is not None:
            found = await service.engine.tokenize_chat(model.name, chat)
        else:
            with_special = asked.add_special_tokens is not False
            found = await service.engine.tokenize(model.name, asked.prompt or "", add_special_tokens=with_special)
        return TokenizeDocument(
            count=len(found.tokens),
            max_model_len=service.model(model.name).context_length,  # now it is loaded
            tokens=found.tokens,
            token_strs=found.token_strings if asked.return_token_strs else None,
        )

    @router.post(
        "/detokenize",
        summary="The text of tokens",
        openapi_extra=body_of(DetokenizeRequest),
        responses=error_responses(400, 401, 403, 404, 408, 413, 500, 503, 504),
    )
    async def detokenize(request: Request) -> DetokenizeDocument:
        asked = parse_body(DetokenizeRequest, await read_json_object(request, service.settings))
        model = _model(service, request, asked.model)
        return DetokenizeDocument(prompt=await service.engine.detokenize(model.name, asked.tokens))

    return router


def _parse_tokenize(body: Mapping[str, object]) -> tuple[TokenizeRequest, ChatPrompt | None]:
    """Raises `InvalidRequest` with every issue there is."""
    asked = parse_body(TokenizeRequest, body, _OF_CHATS)
    if (asked.prompt is None) == (asked.messages is None):
        given = "neither" if asked.prompt is None else "both"
        refuse([Issue("prompt", f"one of prompt and messages is required, got {given}", "missing_required_parameter")])
    if asked.messages is None:
        issues = [
            Issue(name, f"{name} is only allowed with messages")
            for name in ("tools", "chat_template_kwargs")
            if getattr(asked, name) is not None
        ]
        if asked.prompt is not None and len(asked.prompt) > MAX_TEXT_CHARS:
            message = f"prompt may have at most {MAX_TEXT_CHARS} characters, got {len(asked.prompt)}"
            issues.append(Issue("prompt", message, limit=MAX_TEXT_CHARS))
        refuse(issues)
        return asked, None
    if asked.add_special_tokens:
        message = "add_special_tokens is not supported with messages: their template writes what it needs"
        refuse([Issue("add_special_tokens", message, "unsupported_parameter")])
    chat = {name: body[name] for name in ("messages", "tools", "chat_template_kwargs") if name in body}
    (prompt,) = parse_chat(chat).prompts
    assert isinstance(prompt, ChatPrompt)
    return asked, prompt


def _model(service: Service, request: Request, name: str | None) -> ServedModel:
    model = require_allowed(service.model(name))
    access_record(request).model = model.name
    return model
