"""uvicorn's HTTP protocol with bounds on what a client can make the server hold: of the part of a request that comes
before the application sees it, and of an answer that the client does not read."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlx_serving.server.http.unread import ChecksUnread

HEADERS_TIMEOUT_S = 15.0
MAX_HEADERS_BYTES = 64 * 1024
# The kernel would take megabytes for a client that reads nothing: a whole answer, made for nobody.
_UNSENT_BYTES = 16 * 1024


class BoundedHttpProtocol(ChecksUnread, HttpToolsProtocol):
    """Closes a connection whose request line and headers take too long or are too large. Writing waits as soon as a
    few thousand bytes are more than the client takes; for a connection closed that far behind see `ChecksUnread`.

    Without this, a client that sends one byte an hour, headers without end, or reads nothing, holds a connection and
    memory for ever.
    """

    _headers_deadline: asyncio.TimerHandle | None = None
    _headers_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_headers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._headers_deadline is not None:
            self._headers_bytes += len(data)
        super().data_received(data)
        if self._headers_deadline is not None and self._headers_bytes > MAX_HEADERS_BYTES:
            self._have_headers()
            self.send_400_response(f"Request headers may have at most {MAX_HEADERS_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        self._have_headers()
        super().on_headers_complete()

    def _expect_headers(self) -> None:
        if self._headers_deadline is None:
            self._headers_bytes = 0
            self._headers_deadline = self.loop.call_later(HEADERS_TIMEOUT_S, self._give_up)

    def _have_headers(self) -> None:
        if self._headers_deadline is not None:
            self._headers_deadline.cancel()
            self._headers_deadline = None

    def _give_up(self) -> None:
        self._headers_deadline = None
        if not self.transport.is_closing():
            self.transport.close()
