"""HTTP as bytes, for what no well-behaved client sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mlx_serving.server.http.listening import ListenAddress


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_all(self) -> bytes:
        """Everything until the server closes the connection."""
        return await asyncio.wait_for(self.reader.read(-1), 10)

    async def read_until(self, mark: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(mark), 10)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def connect(address: ListenAddress) -> AsyncGenerator[Connection]:
    connection = Connection(*await asyncio.open_connection(address.host, address.port))
    try:
        yield connection
    finally:
        connection.writer.close()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A complete request that closes its connection."""
    return _head("POST", path, f"content-length: {len(body)}", "connection: close", *headers) + body


def chunked_post(path: str) -> bytes:
    """The start of a request whose body follows in chunks."""
    return _head("POST", path, "transfer-encoding: chunked")


def post_announcing(path: str, size: int) -> bytes:
    """The start of a request that promises a body of that size."""
    return _head("POST", path, f"content-length: {size}")


def _head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: server", *headers, "", ""]).encode()
