"""Scripts of other origins, in browsers: refused by them, unless their origin is allowed."""

from __future__ import annotations

from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_serving.server.http.response_headers import EXPOSED

_ASKED_AGAIN_AFTER_S = 600


class CrossOrigin:
    """ASGI layer. `origins` may be others from one request to the next; without any, browsers get no permission.

    Keys are sent in headers by scripts that know them, so cookies are never allowed, and `*` gives nothing away.
    """

    def __init__(self, inner: ASGIApp, origins: Callable[[], tuple[str, ...]]) -> None:
        self._inner = inner
        self._origins = origins
        self._allowing: tuple[tuple[str, ...], ASGIApp] = ((), inner)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = self._origins()
        if origins != self._allowing[0]:
            self._allowing = (origins, self._layer(origins))
        await self._allowing[1](scope, receive, send)

    def _layer(self, origins: tuple[str, ...]) -> ASGIApp:
        if not origins:
            return self._inner
        return CORSMiddleware(
            self._inner,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
            max_age=_ASKED_AGAIN_AFTER_S,
        )
