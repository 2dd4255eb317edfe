"""One log line per request, and the request id that ties it to the answer. Never bodies, never keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_serving.core.choices import Usage
from mlx_serving.core.generation import Served
from mlx_serving.server.anthropic.errors import is_anthropics
from mlx_serving.server.http import response_headers
from mlx_serving.server.http.response_headers import usable_id
from mlx_serving.server.keys.ring import KeyHolder
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.server")
_SCOPE_KEY = "mlx_serving.access"
_MAX_PATH_CHARS = 200
_MAX_USER_CHARS = 64


@dataclass(slots=True)
class AccessRecord:
    """What becomes known of one request while it is answered. `error` is the code of what ended it early.

    `request_id` is ours and unique, `given_id` the one that the client gave. `holder` is whose API key it came with, if
    that has limits. `accepted_s` is when the worker accepted it, in seconds after `started`, which is monotonic time.
    `answer_bytes` counts the text so far.
    """

    request_id: str = field(default_factory=lambda: uuid4().hex)
    given_id: str | None = None
    holder: KeyHolder | None = None
    served: Served = field(default_factory=Served)
    started: float = field(default_factory=time.monotonic)
    accepted_s: float | None = None
    answer_bytes: int = 0
    status: int | None = None
    model: str | None = None
    stream: bool | None = None
    user: str | None = None
    metadata: Mapping[str, str] | None = None
    usage: Usage | None = None
    error: str | None = None

    def facts(self) -> dict[str, object]:
        """What is known, for the log."""
        known = {
            "request_id": self.given_id or self.request_id,
            "own_id": None if self.given_id is None else self.request_id,
            "key": None if self.holder is None else self.holder.name,
            "status": self.status,
            "model": self.model,
            "stream": self.stream,
            "user": None if self.user is None else self.user[:_MAX_USER_CHARS],
            "metadata": self.metadata,
            **_cost(self.usage),
            "cache": self.served.cache,
            "error": self.error,
        }
        return {name: value for name, value in known.items() if value is not None}


def _cost(usage: Usage | None) -> dict[str, object]:
    if usage is None:
        return {}
    told: dict[str, object] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "speculation": usage.speculation,
    }
    if usage.drafted_tokens:
        told |= {"drafted_tokens": usage.drafted_tokens, "accepted_tokens": usage.accepted_tokens}
    return told


_current: ContextVar[AccessRecord | None] = ContextVar("access_record", default=None)


def current_record() -> AccessRecord | None:
    """The record of the request that this task, or the one that made it, answers."""
    return _current.get()


def begin_record() -> AccessRecord:
    """The same; where there is none, a new one, for what is no HTTP request."""
    record = _current.get()
    if record is None:
        record = AccessRecord()
        _current.set(record)
    return record


def set_record(record: AccessRecord) -> None:
    """From now on, this task answers that request."""
    _current.set(record)


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
        record = AccessRecord(given_id=usable_id(Headers(scope=scope).get("x-request-id")))
        scope[_SCOPE_KEY] = record
        token = _current.set(record)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                response_headers.add(message, _headers(record, scope["path"]))
            await send(message)

        try:
            await self._inner(scope, receive, send_named)
        except Exception:  # noqa: BLE001  the process boundary: the answer is sent, the defect must be seen
            record.error = "internal_error"
            _log.exception("request failed", request_id=record.request_id)
        finally:
            _current.reset(token)
            if self._enabled():
                log_request(scope["method"], scope["path"], record)


def log_request(method: str, path: str, record: AccessRecord) -> None:
    """The line of a request that has ended."""
    seconds = time.monotonic() - record.started
    _log.info("request", method=method, path=path[:_MAX_PATH_CHARS], duration_s=round(seconds, 4), **record.facts())


def _headers(record: AccessRecord, path: str) -> Iterator[tuple[str, str]]:
    now = time.monotonic()
    yield "x-request-id", record.given_id or record.request_id
    if is_anthropics(path):
        yield "request-id", record.given_id or record.request_id
    yield from response_headers.timing(now - record.started, record.accepted_s)
    yield from response_headers.cache(record.served)
    yield from response_headers.speculation(record.usage)
    if record.holder is not None:
        yield from response_headers.rates(record.holder.usage.allowances(now))
