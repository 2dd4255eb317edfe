"""What becomes of a connection that was closed while its client was behind with reading."""

from __future__ import annotations

import asyncio
from typing import cast

LINGER_S = 5.0


class ChecksUnread(asyncio.Protocol):
    """Comes before the protocol that it is to hold for. While a client is behind, look now and then whether its
    connection was closed meanwhile: then it has had `LINGER_S` to take the rest, and loses it. An open one may be
    behind for as long as its requests may take."""

    _connection: asyncio.WriteTransport
    _next_look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # uvloop's transports do not inherit from asyncio's classes.
        self._connection = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_no_more()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        self._look_no_more()
        super().resume_writing()

    def _look_later(self) -> None:
        self._look_no_more()
        self._next_look = asyncio.get_running_loop().call_later(LINGER_S, self._look)

    def _look_no_more(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _look(self) -> None:
        if self._connection.is_closing():
            self._connection.abort()
        else:
            self._look_later()
