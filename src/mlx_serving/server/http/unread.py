"""What becomes of a connection that was closed while its client was behind with reading."""

from __future__ import annotations

import asyncio

LINGER_S = 5.0


class UnreadCheck:
    """While a client is behind, look now and then whether its connection was closed meanwhile: then it has had
    `LINGER_S` to take the rest, and loses it. An open one may be behind for as long as its requests may take."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The client has fallen behind."""
        self.end()
        self._timer = self._loop.call_later(LINGER_S, self._look)

    def end(self) -> None:
        """It has caught up, or is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._transport.is_closing():
            self._transport.abort()
        else:
            self.begin()
