"""uvicorn's HTTP protocol with bounds on the part of a request that comes before the application sees it."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_TIMEOUT_S = 15.0
MAX_HEADERS_BYTES = 64 * 1024


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers take too long or are too large.

    Without this, a client that sends one byte an hour, or headers without end, holds a connection and memory for ever.
    """

    _headers_deadline: asyncio.TimerHandle | None = None
    _headers_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  as in uvicorn
        super().connection_made(transport)
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
