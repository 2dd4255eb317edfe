"""HEAD, which health checks and `curl --head` send, wherever there is a GET."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_serving.server.resume.routes import PREFIX as FETCHED_ONCE


class HeadAsGet:
    """ASGI layer: answers HEAD as GET, without the body; not where a GET is more than a look."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"].startswith(FETCHED_ONCE):
            await self._inner(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._inner({**scope, "method": "GET"}, receive, send_head)
