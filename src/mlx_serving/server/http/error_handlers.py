"""What is raised while a request is answered becomes a response, in the words of the API that was asked."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlx_serving.errors import EngineError, MessageTooLarge
from mlx_serving.server.anthropic import errors as anthropic_errors
from mlx_serving.server.errors import (
    DEFECT,
    DEFECT_MESSAGE,
    encode_error,
    encode_status,
    error_code,
    error_headers,
    json_response,
)
from mlx_serving.server.http.access_log import access_record
from mlx_serving.server.http.body import LingeringResponse
from mlx_serving.server.openapi import methods_of


async def handle_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return json_response(*_told(request, error), error_headers(error))


async def handle_too_large(request: Request, error: Exception) -> Response:
    assert isinstance(error, MessageTooLarge)
    return LingeringResponse(*_told(request, error))


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    headers = error.headers
    match error.status_code:
        case 404:
            message, code = f"There is no {asked}; GET / lists what there is", "unknown_url"
        case 405:
            # Starlette only tells of the first route that has the path.
            allowed = _allowed(request) or (headers or {}).get("Allow", "another method")
            headers = {"allow": allowed}
            message, code = f"{asked} is not served; this path takes {allowed}", "method_not_allowed"
        case status:
            message, code = error.detail, HTTPStatus(status).name.lower()
    record = access_record(request)
    record.error = code
    if anthropic_errors.is_anthropics(request.url.path):
        body = anthropic_errors.encode_status(error.status_code, message, record.request_id)
    else:
        body = encode_status(error.status_code, message, code)
    return json_response(body, error.status_code, headers)


def _allowed(request: Request) -> str:
    """The methods that are described for the path."""
    api = request.scope.get("app")
    return ", ".join(methods_of(api.openapi(), request.url.path)) if isinstance(api, FastAPI) else ""


async def handle_defect(request: Request, _error: Exception) -> Response:
    if not anthropic_errors.is_anthropics(request.url.path):
        return json_response(DEFECT, 500)
    return json_response(anthropic_errors.encode_status(500, DEFECT_MESSAGE, access_record(request).request_id), 500)


def _told(request: Request, error: EngineError) -> tuple[bytes, int]:
    """The body and the status."""
    record = access_record(request)
    record.error = error_code(error)
    if anthropic_errors.is_anthropics(request.url.path):
        return anthropic_errors.encode_error(error, record.request_id), anthropic_errors.status_of(error)
    return encode_error(error), error.http_status
