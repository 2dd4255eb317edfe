"""The ASGI application: routes, error shapes, and the access log around them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, cast

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_serving.engine.response_store import DiskBodies
from mlx_serving.errors import EngineError, MessageTooLarge
from mlx_serving.server.admin_routes import LoadModelRequest, UnloadModelRequest, admin_routes
from mlx_serving.server.alias_routes import BODIES as ALIAS_BODIES
from mlx_serving.server.alias_routes import alias_routes
from mlx_serving.server.anthropic.routes import anthropic_routes
from mlx_serving.server.anthropic.schema import CountTokensRequest, MessagesRequest
from mlx_serving.server.embedding_routes import BODIES as EMBEDDING_BODIES
from mlx_serving.server.embedding_routes import embedding_routes
from mlx_serving.server.health_routes import health_routes
from mlx_serving.server.http.access_log import AccessLog
from mlx_serving.server.http.cross_origin import CrossOrigin
from mlx_serving.server.http.error_handlers import (
    handle_defect,
    handle_engine_error,
    handle_http_exception,
    handle_too_large,
)
from mlx_serving.server.http.head import HeadAsGet
from mlx_serving.server.http.in_flight import InFlight
from mlx_serving.server.keys.metering import MeteredEngine
from mlx_serving.server.keys.ring import KeyRing
from mlx_serving.server.openai.documents import ChatCompletionChunk, Document
from mlx_serving.server.openai.routes import openai_routes
from mlx_serving.server.openai.schema import ChatCompletionRequest, CompletionRequest
from mlx_serving.server.openapi import describe
from mlx_serving.server.ports import ServingEngine
from mlx_serving.server.reload import Reloader
from mlx_serving.server.rerank_routes import BODIES as RERANK_BODIES
from mlx_serving.server.rerank_routes import rerank_routes
from mlx_serving.server.responses.routes import responses_routes
from mlx_serving.server.responses.schema import ResponsesRequest
from mlx_serving.server.responses.stored import StoredResponses
from mlx_serving.server.resume.handover import Handover
from mlx_serving.server.resume.routes import resumed_routes
from mlx_serving.server.service import Service
from mlx_serving.server.settings import ServerSettings
from mlx_serving.server.token_routes import BODIES as TOKEN_BODIES
from mlx_serving.server.token_routes import token_routes
from mlx_serving.server.websocket.routes import PATH as WEBSOCKET_PATH
from mlx_serving.server.websocket.routes import websocket_routes

_OUTSIDE_FASTAPI = (
    ChatCompletionRequest,
    CompletionRequest,
    ChatCompletionChunk,
    MessagesRequest,
    CountTokensRequest,
    ResponsesRequest,
    LoadModelRequest,
    UnloadModelRequest,
    *ALIAS_BODIES,
    *TOKEN_BODIES,
    *EMBEDDING_BODIES,
    *RERANK_BODIES,
)


class VersionDocument(Document):
    version: str


class ServerApp:
    """The ASGI application. `in_flight` is what a server closes and empties before it stops."""

    def __init__(self, api: FastAPI, service: Service) -> None:
        self.in_flight = service.in_flight
        self._api = api
        self._service = service
        self._asgi = AccessLog(
            HeadAsGet(CrossOrigin(api, lambda: service.settings.cors_origins)), lambda: service.settings.access_log
        )

    @property
    def settings(self) -> ServerSettings:
        return self._service.settings

    @property
    def handover(self) -> Handover | None:
        return self._service.handover

    def reconfigure(self, settings: ServerSettings) -> None:
        """Go on with these settings; what is being answered keeps the ones it began with.

        Raises `InvalidConfig`, before anything has changed, for API keys that cannot be read.
        """
        self._service.keys.reconfigure(settings.keys)
        self._service.settings = settings

    async def close(self) -> None:
        """Write what is to be remembered."""
        self._service.keys.save()
        await self._service.responses.close()

    def reload_with(self, reloader: Reloader) -> None:
        """Let the operator ask for it over HTTP."""
        self._service.reloader = reloader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._asgi(scope, receive, send)

    def openapi(self) -> Mapping[str, Any]:
        """The document of /openapi.json."""
        return self._api.openapi()


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = describe(self, _OUTSIDE_FASTAPI)
        return self.openapi_schema


def create_app(engine: ServingEngine, settings: ServerSettings, handover: Handover | None = None) -> ServerApp:
    """Serve `engine`. Starting and stopping it is the caller's, and so is starting the `handover`, through which
    requests outlive the server. Raises `InvalidConfig` for API keys that cannot be read."""
    keys = KeyRing(settings.keys)
    metered = MeteredEngine(engine, keys, lambda: service.settings.max_response_bytes)
    file = settings.stored_responses_file
    bodies = None if file is None else DiskBodies(file, "stored responses")
    stored = StoredResponses(settings.stored_responses, bodies)
    service = Service(
        cast("ServingEngine", metered), settings, InFlight(), handover=handover, keys=keys, responses=stored
    )
    api = _Api(
        title="mlx-serving",
        version=version("mlx-serving"),
        description="OpenAI-compatible text generation on MLX.",
        # The pages of Swagger and ReDoc load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            MessageTooLarge: handle_too_large,
            EngineError: handle_engine_error,
            HTTPException: handle_http_exception,
            Exception: handle_defect,
        },
    )
    api.include_router(openai_routes(service))
    api.include_router(responses_routes(service))
    api.include_router(anthropic_routes(service))
    api.include_router(websocket_routes(service))
    api.include_router(resumed_routes(service))
    api.include_router(embedding_routes(service))
    api.include_router(rerank_routes(service))
    api.include_router(token_routes(service))
    api.include_router(health_routes(service))
    api.include_router(admin_routes(service))
    api.include_router(alias_routes(service))

    @api.get("/version", summary="Which version this is", tags=["Health"])
    async def version_of_server() -> VersionDocument:
        return VersionDocument(version=api.version)

    @api.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return Response(_index(api, str(request.base_url).rstrip("/")), media_type="text/plain; charset=utf-8")

    return ServerApp(api, service)


def _index(api: FastAPI, base_url: str) -> str:
    lines = [
        f"mlx-serving {api.version}",
        f"OpenAI clients: base_url={base_url}/v1",
        f"Anthropic clients: base_url={base_url}",
        "",
    ]
    for path, operations in api.openapi()["paths"].items():
        lines += [f"{method.upper():7}{path}  {operation['summary']}" for method, operation in operations.items()]
    lines.append(f"GET    {WEBSOCKET_PATH}  Chats over a WebSocket, several at a time")
    return "\n".join([*lines, "GET    /openapi.json  The description of all of these", ""])
