"""A server that says what it is told to, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

CLOSE = b""
"""In a script: the connection is closed here."""


@dataclass(slots=True)
class CannedServer:
    """`script` is what is sent for each request of a connection, in order; `requests` what was asked."""

    script: Sequence[Sequence[bytes]]
    origin: str = ""
    requests: list[bytes] = field(default_factory=list[bytes])
    connections: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                for part in self.script[len(self.requests) - 1]:
                    if part == CLOSE:
                        return
                    writer.write(part)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def canned(*script: Sequence[bytes]) -> AsyncGenerator[CannedServer]:
    """A server on a free port; the first request is answered with the first of `script`, and so on."""
    server = CannedServer(script)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.origin = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()


def answer(body: bytes, status: str = "200 OK", *, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status.encode(), headers, len(body), body)


def chunked(*parts: bytes) -> list[bytes]:
    """A streamed answer, a write for each part."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n"
    return [head, *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"]
