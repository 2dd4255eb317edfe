"""Every failure as OpenAI's error object: `{"error": {"message", "type", "param", "code", "details"?}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from mlx_serving import errors
from mlx_serving.errors import EngineError
from mlx_serving.server.json_values import as_array, as_object

_TYPE_BY_STATUS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class BodyTimedOut(errors.InvalidEnvelope):
    """The client did not send its body in time."""

    http_status = 408


class ConfigRefused(errors.InvalidConfig):
    """The operator asked for a configuration that is not valid."""

    http_status = 400


# The nearest class in the error's ancestry counts, so every error has a code.
_CODE_BY_CLASS: Mapping[type[EngineError], str] = {
    EngineError: "internal_error",
    errors.InvalidRequest: "invalid_value",
    errors.MalformedMessage: "invalid_json",
    errors.InvalidEnvelope: "invalid_request",
    errors.MessageTooLarge: "request_too_large",
    BodyTimedOut: "request_timeout",
    errors.UnsupportedParameter: "unsupported_parameter",
    errors.ContextLengthExceeded: "context_length_exceeded",
    errors.GuidanceError: "invalid_structure",
    errors.ImageEncodingError: "image_encoding_failed",
    errors.InvalidImageInput: "invalid_image_input",
    errors.ImageFileNotFound: "image_file_not_found",
    errors.UnsupportedImageFormat: "unsupported_image_format",
    errors.ImageFetchFailed: "image_fetch_failed",
    errors.UnsafeImagePath: "unsafe_image_path",
    errors.Unauthenticated: "invalid_api_key",
    errors.Forbidden: "permission_denied",
    errors.NotFound: "not_found",
    errors.ModelNotFound: "model_not_found",
    errors.ModelNotLoaded: "model_not_loaded",
    errors.Overloaded: "overloaded",
    errors.CircuitOpen: "circuit_open",
    errors.RateLimited: "rate_limit_exceeded",
    errors.QuotaExceeded: "insufficient_quota",
    errors.Aborted: "aborted",
    errors.DeadlineExceeded: "timeout",
    errors.ModelLoadError: "model_load_failed",
    errors.HubRefused: "hub_refused",
    errors.HubUnreachable: "hub_unreachable",
    errors.InsufficientMemory: "insufficient_memory",
    errors.GenerationError: "generation_failed",
    errors.TokenizerError: "tokenizer_failed",
    errors.WorkerDied: "worker_died",
    errors.WorkerHung: "worker_hung",
    errors.RequestCrashedWorker: "request_crashed_worker",
    errors.EngineClosed: "shutting_down",
    errors.InvalidConfig: "invalid_config",
}

# What a worker printed before it died is for the operator (GET /health), not for every client.
_PRIVATE_DETAILS = frozenset({"stderr_tail"})
_OWN_KEYS = frozenset({"field"})  # is `param`

_MAX_MESSAGE_CHARS = 4000

_encoder = msgspec.json.Encoder(enc_hook=str)


def error_code(error: EngineError) -> str:
    """The code of OpenAI's error object. The first of several issues speaks for all of them."""
    issues = as_array(error.details.get("issues"))
    first = as_object(issues[0]) if issues else None
    if first is not None and "code" in first:
        return str(first["code"])
    return next(_CODE_BY_CLASS[cls] for cls in type(error).__mro__ if cls in _CODE_BY_CLASS)


def encode_error(error: EngineError) -> bytes:
    """The JSON body for an error."""
    param = error.field if isinstance(error, errors.InvalidRequest) else None
    return _encode(error.message, _kind_of(error), param, error_code(error), told_details(error))


def told_details(error: EngineError) -> Mapping[str, object]:
    """What a client may know of an error, beside its message and its field."""
    return {key: value for key, value in error.details.items() if key not in _PRIVATE_DETAILS | _OWN_KEYS}


def _kind_of(error: EngineError) -> str:
    if isinstance(error, errors.QuotaExceeded):
        return "insufficient_quota"
    overloaded = isinstance(error, errors.Overloaded) and not isinstance(error, errors.RateLimited)
    return "overloaded_error" if overloaded else _type_of(error.http_status)


def encode_status(status: int, message: str, code: str) -> bytes:
    """The JSON body for a failure that is no `EngineError`: wrong path, wrong method, a defect of ours."""
    return _encode(message, _type_of(status), None, code, {})


def _type_of(status: int) -> str:
    return _TYPE_BY_STATUS.get(status, "invalid_request_error" if status < 500 else "server_error")


def _encode(message: str, kind: str, param: str | None, code: str, details: Mapping[str, object]) -> bytes:
    body: dict[str, object] = {"message": bearable(message), "type": kind, "param": param, "code": code}
    if details:
        body["details"] = details
    return _encoder.encode({"error": body})


def bearable(message: str) -> str:
    """A message that may repeat what was sent, cut to a length that people read."""
    return message if len(message) <= _MAX_MESSAGE_CHARS else f"{message[:_MAX_MESSAGE_CHARS]}…"


def error_headers(error: EngineError) -> Mapping[str, str]:
    """What official clients look at before they ask again, and how to authenticate."""
    headers: dict[str, str] = {}
    if error.http_status >= 500 and error.http_status != HTTPStatus.SERVICE_UNAVAILABLE and not error.retryable:
        headers["x-should-retry"] = "false"
    if isinstance(error, errors.Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, errors.QuotaExceeded):
        headers["x-should-retry"] = "false"  # the official clients would, within seconds
    if isinstance(error, errors.Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


DEFECT_MESSAGE = "Internal error; the server's log tells more"
DEFECT = encode_status(500, DEFECT_MESSAGE, "internal_error")
"""The body for a defect of ours: the log has it, the client learns only that much."""
