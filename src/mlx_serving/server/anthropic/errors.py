"""Every failure as Anthropic's error object: `{"type": "error", "error": {"type", "message", "details"?}, …}`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mlx_serving import errors
from mlx_serving.errors import EngineError
from mlx_serving.server.errors import bearable, told_details

OVERLOADED_STATUS = 529
"""Anthropic's own for "try again later"; its clients know it."""

_TYPE_BY_STATUS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED_STATUS: "overloaded_error",
}
_encode = msgspec.json.Encoder(enc_hook=str).encode


def is_anthropics(path: str) -> bool:
    """Whether what is asked for is one of Anthropic's endpoints."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def status_of(error: EngineError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, errors.RateLimited):
        return error.http_status
    return OVERLOADED_STATUS if isinstance(error, errors.Overloaded | errors.EngineClosed) else error.http_status


def encode_error(error: EngineError, request_id: str) -> bytes:
    """The JSON body for an error."""
    return _body(status_of(error), error.message, request_id, told_details(error))


def encode_status(status: int, message: str, request_id: str) -> bytes:
    """The JSON body for a failure that is no `EngineError`: wrong path, wrong method, a defect of ours."""
    return _body(status, message, request_id, {})


def _body(status: int, message: str, request_id: str, details: Mapping[str, object]) -> bytes:
    kind = _TYPE_BY_STATUS.get(status, "invalid_request_error" if status < 500 else "api_error")
    error: dict[str, object] = {"type": kind, "message": bearable(message)}
    if details:
        error["details"] = details
    return _encode({"type": "error", "error": error, "request_id": request_id})
