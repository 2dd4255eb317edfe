"""/openapi.json: what FastAPI finds, and the request bodies that we read ourselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import compile_path

from mlx_serving.server.openai.documents import ErrorDocument

# JSON trees, typed as FastAPI types them.
_Json: TypeAlias = dict[str, Any]
_Responses: TypeAlias = dict[int | str, dict[str, Any]]

GENERATION_ERRORS = (400, 401, 404, 408, 413, 500, 503, 504)
_REF = "#/components/schemas/{model}"


def body_of(model: type[BaseModel]) -> _Json:
    """The `openapi_extra` of an operation whose body is read without FastAPI."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def query_parameters(**schemas: _Json) -> _Json:
    """The `openapi_extra` of an operation whose query is read without FastAPI."""
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in schemas.items()
        ]
    }


def error_responses(*statuses: int, document: type[BaseModel] = ErrorDocument) -> _Responses:
    return {status: {"model": document} for status in statuses}


def streamed_or_whole(whole: type[BaseModel], chunk: type[BaseModel]) -> _Responses:
    """The success of a generation. In the stream, each event is `data: ` and one `chunk`; the last is `[DONE]`."""
    events = _events(f"`data` is a {chunk.__name__} as JSON; in the last event it is `[DONE]`.", "data")
    return {200: {"model": whole, "content": {"text/event-stream": events}}}


def named_events_or_whole(whole: type[BaseModel]) -> _Responses:
    """The success of a generation whose stream has named events, which the API's own documentation lists."""
    events = _events("`data` is a JSON object whose `type` is the name of the event.", "event", "data")
    return {200: {"model": whole, "content": {"text/event-stream": events}}}


def _events(description: str, *fields: str) -> _Json:
    """A stream of server-sent events: before OpenAPI 3.2, the schema is that of each."""
    properties = {name: {"type": "string"} for name in fields}
    return {"schema": {"type": "object", "description": description, "required": fields, "properties": properties}}


def methods_of(document: _Json, path: str) -> Sequence[str]:
    """The methods that a document has for a path."""
    templates: _Json = document["paths"]
    if path in templates:  # goes before those that it is an example of
        templates = {path: templates[path]}
    matching = (operations for template, operations in templates.items() if compile_path(template)[0].match(path))
    return sorted({method.upper() for operations in matching for method in operations})


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
