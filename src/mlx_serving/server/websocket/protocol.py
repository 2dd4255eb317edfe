"""uvicorn's WebSocket protocol with a bound on what a closed connection holds for a client that does not read."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from mlx_serving.server.http.unread import ChecksUnread


class BoundedWebSocketProtocol(ChecksUnread, WebSocketsSansIOProtocol):
    """See `ChecksUnread`."""
