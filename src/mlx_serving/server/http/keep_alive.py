"""Server-sent events that do not fall silent while the worker works: comments in between, which clients skip.

Within the first interval nothing is sent, so what fails by then is still an ordinary HTTP error. After that, a first
comment opens the stream with 200, and later failures are its last event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from starlette.types import Message, Send

from mlx_serving.core.keep_alive import Look, comment_due
from mlx_serving.server.http import sse


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """`progress` is a count that rises while work gets on. Without `interval_s` (seconds) there are no comments."""

    interval_s: float | None
    progress: Callable[[], int]


class EventStream:
    """What one streamed answer is sent through, by one task. Leaving the block ends the comments."""

    def __init__(self, send: Send, keep_alive: KeepAlive) -> None:
        self._send = send
        self._keep_alive = keep_alive
        self._sent = 0
        self._begun = False
        self._commenting = asyncio.Lock()  # held while the head or a comment is sent: they are sent whole, and once
        self._comments: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether the status is out: what fails now cannot become another response."""
        return self._begun

    async def open(self) -> None:
        """Send the head of the response, unless a comment has done so."""
        async with self._commenting:
            await self._open()

    async def write(self, body: bytes) -> None:
        """Send events; the stream must be open."""
        self._sent += 1
        await self._send(_body(body, more=True))

    async def close(self, body: bytes) -> None:
        """Send the last events."""
        async with self._commenting:
            self._stop()
        await self._send(_body(body, more=False))

    async def __aenter__(self) -> Self:
        if self._keep_alive.interval_s is not None:
            self._comments = asyncio.create_task(self._comment_every(self._keep_alive.interval_s), name="keep-alive")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    async def _open(self) -> None:
        if not self._begun:
            await self._send({"type": "http.response.start", "status": 200, "headers": list(sse.RESPONSE_HEADERS)})
            self._begun = True

    async def _comment_every(self, interval_s: float) -> None:
        last = self._look()
        while True:
            await asyncio.sleep(interval_s)
            now = self._look()
            if comment_due(last, now):
                try:
                    await self._comment()
                except OSError:
                    return  # the client has left, which its answer is told otherwise
            last = now

    async def _comment(self) -> None:
        async with self._commenting:
            await self._open()
            await self._send(_body(sse.COMMENT, more=True))

    def _look(self) -> Look:
        return Look(self._sent, self._keep_alive.progress())

    def _stop(self) -> None:
        if self._comments is not None:
            self._comments.cancel()


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
