"""uvicorn's WebSocket protocol with a bound on what a closed connection holds for a client that does not read."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from mlx_serving.server.http_protocol import LINGER_S


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """When a connection is closed while its client is behind, the client has `LINGER_S` to take the rest."""

    _unread_check: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_checking()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._check_later()

    def resume_writing(self) -> None:
        self._stop_checking()
        super().resume_writing()

    def _check_later(self) -> None:
        self._unread_check = self.loop.call_later(LINGER_S, self._drop_if_closed)

    def _stop_checking(self) -> None:
        if self._unread_check is not None:
            self._unread_check.cancel()
            self._unread_check = None

    def _drop_if_closed(self) -> None:
        if self.transport.is_closing():
            self.transport.abort()
        else:  # an answer may be waited for as long as its request may take
            self._check_later()
