"""uvicorn's WebSocket protocol with a bound on what a closed connection holds for a client that does not read."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from mlx_serving.server.http.unread import UnreadCheck


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """See `UnreadCheck`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  as in uvicorn
        super().connection_made(transport)
        self._unread = UnreadCheck(self.loop, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.begin()

    def resume_writing(self) -> None:
        self._unread.end()
        super().resume_writing()
