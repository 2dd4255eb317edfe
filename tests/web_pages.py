"""A web server on this machine that answers as a test tells it to, and a resolver that says what a test wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


def answer(body: bytes, media_type: str | None = "image/png", status: int = 200, **headers: str) -> bytes:
    """A whole response. Underscores in the names of headers are hyphens."""
    told = {"content_length": str(len(body)), **headers}
    if media_type is not None:
        told["content_type"] = media_type
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name.replace('_', '-')}: {value}" for name, value in told.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    return answer(b"", None, status, location=location)


@dataclass
class Web:
    """`pages` by their path; a page that ends with `HANGING` stays open. `requests` are what came."""

    port: int
    pages: dict[str, bytes | Callable[[], bytes]] = field(default_factory=dict[str, "bytes | Callable[[], bytes]"])
    requests: list[str] = field(default_factory=list[str])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


HANGING = b"\0and then nothing"


@asynccontextmanager
async def web(tls: ssl.SSLContext | None = None) -> AsyncGenerator[Web]:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        served.requests.append(head)
        page = served.pages.get(head.split(" ")[1], answer(b"nothing", "text/plain", 404))
        data = page() if callable(page) else page
        writer.write(data.removesuffix(HANGING))
        if not data.endswith(HANGING):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    served = Web(server.sockets[0].getsockname()[1])
    try:
        yield served
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


@dataclass
class Names:
    """A resolver: each name has a list of answers, of which the last is given again and again."""

    answers: dict[str, list[Sequence[str]]]
    asked: list[str] = field(default_factory=list[str])

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        known = self.answers.get(host)
        if known is None:
            return [host]
        return known.pop(0) if len(known) > 1 else known[0]
