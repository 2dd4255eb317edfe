"""Request bodies, read with a bound on their size, on their time and on their depth."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_serving.errors import Aborted, InvalidEnvelope, MalformedMessage, MessageTooLarge
from mlx_serving.server.errors import BodyTimedOut
from mlx_serving.server.issues import refuse, screen
from mlx_serving.server.json_values import as_object, has_more_parts, kind_of
from mlx_serving.server.settings import ServerSettings

_LINGER_S = 2.0
_LINGER_BYTES = 64 * 1024**2
# Each is looked at one by one, while everybody else waits. A conversation of thousands of turns has fewer.
_MAX_PARTS = 32_768
# Before it is known how many there are, they must be made: so many at most. Text may have brackets, too.
_MAX_BRACKETS = 1_000_000


async def read_json_object(request: Request, settings: ServerSettings) -> Mapping[str, object]:
    """The body as a JSON object, whatever its content type.

    Raises `MessageTooLarge` as soon as the size is known to be over the limit, `BodyTimedOut`, `MalformedMessage`, also
    when it is compressed, `InvalidEnvelope` when the JSON is no object, and `Aborted` when the client leaves before the
    end.
    """
    return parse_json_object(await _read_in_time(request, settings))


async def refuse_parameters(request: Request, settings: ServerSettings) -> None:
    """For what takes no parameters: its body is empty or an empty object. Raises as `read_json_object` otherwise, and
    `InvalidRequest` with all names."""
    body = await _read_in_time(request, settings)
    if body.strip():
        refuse(screen(parse_json_object(body), (), {})[1])


async def _read_in_time(request: Request, settings: ServerSettings) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise MalformedMessage(f"The request body must be JSON as it is, got the content-encoding {encoding[:80]!r}")
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _read(request, settings.max_body_bytes)
    except TimeoutError:
        raise BodyTimedOut(
            f"The request body did not arrive within {settings.body_timeout_s:g} s", limit=settings.body_timeout_s
        ) from None
    except ClientDisconnect:
        raise Aborted("The client left before its request was complete") from None


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit, int(announced))
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit, None)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int, given: int | None) -> MessageTooLarge:
    size = "more" if given is None else f"{given} bytes"
    return MessageTooLarge(f"The request body may have at most {limit} bytes, got {size}", limit=limit, given=given)


def parse_json_object(body: bytes) -> Mapping[str, object]:
    """Raises `MalformedMessage` and `InvalidEnvelope`."""
    if not body:
        raise MalformedMessage("The request body is empty; it must be a JSON object")
    if body.count(b"[") + body.count(b"{") > _MAX_BRACKETS:
        raise InvalidEnvelope(f"The request body may have at most {_MAX_BRACKETS} brackets", limit=_MAX_BRACKETS)
    try:
        document: object = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"The request body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise MalformedMessage("The request body is nested too deeply") from None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise MalformedMessage(f"The request body is not valid JSON: {error}") from None
    if has_more_parts(document, _MAX_PARTS):
        raise InvalidEnvelope(f"The request body may have at most {_MAX_PARTS} objects and lists", limit=_MAX_PARTS)
    given = as_object(document)
    if given is None:
        raise InvalidEnvelope(f"The request body must be a JSON object, got {kind_of(document)}")
    return given


class LingeringResponse(Response):
    """Refuses a body that is still arriving.

    Closing a connection with unread input resets it, and the client may never see the answer. So the answer goes out at
    once, then what keeps arriving is thrown away for a bounded while, then the connection is closed.
    """

    def __init__(self, body: bytes, status: int) -> None:
        super().__init__(body, status, {"connection": "close"}, media_type="application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    left = _LINGER_BYTES
    try:
        async with asyncio.timeout(_LINGER_S):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return
