"""One log line per request, and the request id that ties it to the answer. Never bodies, never keys."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.server")
_SCOPE_KEY = "mlx_serving.access"
_MAX_PATH_CHARS = 200
_MAX_USER_CHARS = 64


@dataclass(slots=True)
class AccessRecord:
    """What becomes known of one request while it is answered. `error` is the code of what ended it early."""

    request_id: str = field(default_factory=lambda: uuid4().hex)
    status: int | None = None
    model: str | None = None
    stream: bool | None = None
    user: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None

    def facts(self) -> dict[str, object]:
        """What is known, for the log."""
        known = {
            "request_id": self.request_id,
            "status": self.status,
            "model": self.model,
            "stream": self.stream,
            "user": None if self.user is None else self.user[:_MAX_USER_CHARS],
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "error": self.error,
        }
        return {name: value for name, value in known.items() if value is not None}


def access_record(request: Request) -> AccessRecord:
    """The record of the request that is being answered."""
    return _record(request.scope)


def _record(scope: MutableMapping[str, object]) -> AccessRecord:
    record = scope[_SCOPE_KEY]
    assert isinstance(record, AccessRecord)
    return record


class AccessLog:
    """ASGI layer around everything: names the request, logs how it ended, and contains what nobody caught."""

    def __init__(self, inner: ASGIApp, enabled: Callable[[], bool]) -> None:
        self._inner = inner
        self._enabled = enabled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        record = AccessRecord()
        scope[_SCOPE_KEY] = record
        started = time.monotonic()

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message).append("x-request-id", record.request_id)
            await send(message)

        try:
            await self._inner(scope, receive, send_named)
        except Exception:  # noqa: BLE001  the process boundary: the answer is sent, the defect must be seen
            record.error = "internal_error"
            _log.exception("request failed", request_id=record.request_id)
        finally:
            if self._enabled():
                self._write(scope, record, time.monotonic() - started)

    def _write(self, scope: Scope, record: AccessRecord, seconds: float) -> None:
        path: str = scope["path"]
        _log.info(
            "request",
            method=scope["method"],
            path=path[:_MAX_PATH_CHARS],
            duration_s=round(seconds, 4),
            **record.facts(),
        )
