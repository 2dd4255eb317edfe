"""/openapi.json: what FastAPI finds, and the request bodies that we read ourselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mlx_serving.server.openai_documents import ErrorDocument

# JSON trees, typed as FastAPI types them.
_Json: TypeAlias = dict[str, Any]
_Responses: TypeAlias = dict[int | str, dict[str, Any]]

GENERATION_ERRORS = (400, 401, 404, 408, 413, 500, 503, 504)
_REF = "#/components/schemas/{model}"


def body_of(model: type[BaseModel]) -> _Json:
    """The `openapi_extra` of an operation whose body is read without FastAPI."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def error_responses(*statuses: int) -> _Responses:
    return {status: {"model": ErrorDocument} for status in statuses}


def streamed_or_whole(whole: type[BaseModel], chunk: type[BaseModel]) -> _Responses:
    """The success of a generation. In the stream, each event is `data: ` and one `chunk`; the last is `[DONE]`."""
    events = {"schema": {"type": "string", "description": f"Server-sent events, each a {chunk.__name__} as JSON."}}
    return {200: {"model": whole, "content": {"text/event-stream": events}}}


def describe(app: FastAPI, models: Sequence[type[BaseModel]]) -> _Json:
    """The document, with the schemas of `models`, which operations refer to by name."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schemas: _Json = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions.get("$defs", {}))
    # FastAPI promises its own error shape wherever there is a parameter; ours is the only one that is sent.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    return document
