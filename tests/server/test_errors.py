from __future__ import annotations

import json

import httpx2
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mlx_serving import errors
from mlx_serving.errors import EngineError
from mlx_serving.server.errors import encode_error, error_code, error_headers
from mlx_serving.server.http.access_log import AccessLog
from mlx_serving.server.http.error_handlers import handle_http_exception


def _classes(root: type[EngineError]) -> list[type[EngineError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _classes(child))]


@pytest.mark.parametrize("cls", _classes(EngineError), ids=lambda cls: cls.__name__)
def test_every_error_has_a_code_and_a_type(cls: type[EngineError]) -> None:
    error = errors.Overloaded("full", retry_after=3) if issubclass(cls, errors.Overloaded) else cls("what happened")
    body = json.loads(encode_error(error))["error"]
    assert body["message"] == error.message
    assert body["code"] == error_code(error)
    assert body["code"].islower()
    assert body["type"].endswith("_error")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidRequest("x"), "invalid_request_error"),
        (errors.Unauthenticated("x"), "authentication_error"),
        (errors.Forbidden("x"), "permission_error"),
        (errors.ModelNotFound("x"), "not_found_error"),
        (errors.Overloaded("x", retry_after=1), "overloaded_error"),
        (errors.WorkerDied("x"), "server_error"),
        (errors.DeadlineExceeded("x"), "server_error"),
    ],
)
def test_the_type_says_who_must_act(error: EngineError, kind: str) -> None:
    assert json.loads(encode_error(error))["error"]["type"] == kind


def test_the_field_is_the_param_and_facts_are_details() -> None:
    error = errors.ContextLengthExceeded("too long", field="messages", limit=10, given=12)
    assert json.loads(encode_error(error))["error"] == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
        "details": {"limit": 10, "given": 12},
    }


def test_details_that_json_does_not_know_become_text() -> None:
    error = EngineError("x", where=ValueError("inner"))
    assert json.loads(encode_error(error))["error"]["details"] == {"where": "inner"}


@pytest.mark.parametrize(("retry_after", "header"), [(0.0, "1"), (0.2, "1"), (1.2, "2"), (30.0, "30")])
def test_retry_after_is_whole_seconds_rounded_up(retry_after: float, header: str) -> None:
    assert error_headers(errors.Overloaded("x", retry_after=retry_after))["retry-after"] == header


async def test_every_refusal_of_the_framework_has_the_shape() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handle_http_exception(Request(scope), HTTPException(418, "short and stout"))
        await response(scope, receive, send)

    transport = httpx2.ASGITransport(app=AccessLog(refuse, enabled=lambda: False))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as http:
        response = await http.get("/")
    assert response.status_code == 418
    assert response.json()["error"] == {
        "message": "short and stout",
        "type": "invalid_request_error",
        "param": None,
        "code": "im_a_teapot",
    }
