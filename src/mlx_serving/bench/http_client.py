"""An HTTP/1.1 client that costs next to nothing, so that what is measured is the server.

Connections are kept and used again. The bytes of a body are handed on in the callback that received them: no task
switch, no queue and no copy stands between the socket and the clock.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import urlsplit

import httptools

OnBody = Callable[[int, bytes], None]
"""Called with the status and the next bytes of the body."""

OnHeader = Callable[[bytes, bytes], None]
"""Called with the name of a header, in small letters, and its value."""


class ConnectionFailed(Exception):
    """The connection could not be made, or ended before the answer did."""


class HttpClient:
    """Sends requests to one `http` or `https` origin, as many at once as are asked for."""

    def __init__(self, origin: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(origin)
        assert parts.hostname is not None  # checked where addresses are read
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (80 if self._tls is None else 443)
        given = {"host": parts.netloc.rpartition("@")[2], "accept": "*/*", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in given.items()).encode()
        self._idle: list[_Connection] = []

    async def exchange(
        self, method: str, path: str, body: bytes, on_body: OnBody, on_header: OnHeader | None = None
    ) -> int:
        """Send one request; returns its status when the answer is complete. Raises `ConnectionFailed`.

        Leaving early, by cancellation say, closes the connection.
        """
        head = f"{method} {path} HTTP/1.1\r\n".encode() + self._headers
        if body:
            head += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        request = head + b"\r\n" + body
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                try:
                    return await self._exchange(connection, request, on_body, on_header)
                except _Stale:
                    continue  # closed by the server while it was idle: nothing of the request was looked at
        return await self._exchange(await self._connect(), request, on_body, on_header)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, protocol = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except OSError as error:
            raise ConnectionFailed(f"cannot connect to {self._host}, port {self._port}: {error}") from None
        return protocol

    async def _exchange(
        self, connection: _Connection, request: bytes, on_body: OnBody, on_header: OnHeader | None
    ) -> int:
        try:
            status = await connection.exchange(request, on_body, on_header)
        except BaseException:
            connection.close()
            raise
        if connection.usable:
            self._idle.append(connection)
        return status


class _Stale(ConnectionFailed):
    """A connection that was used before ended before a byte of the next answer."""


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. The methods without an underscore are asyncio's and httptools'."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._done: asyncio.Future[int] | None = None
        self._on_body: OnBody | None = None
        self._on_header: OnHeader | None = None
        self._used = False
        self._began = False
        self._until_end = False
        self._keep = False
        self._status = 0

    @property
    def usable(self) -> bool:
        return self._keep and self._transport is not None and not self._transport.is_closing()

    async def exchange(self, request: bytes, on_body: OnBody, on_header: OnHeader | None) -> int:
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._on_body, self._on_header = on_body, on_header
        self._began = self._keep = False
        self._until_end = True
        self._status = 0
        self._transport.write(request)
        try:
            return await self._done
        finally:
            self._used = True
            self._done = self._on_body = self._on_header = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._done is None:
            self.close()  # nobody asked
            return
        self._began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionFailed(f"the answer is no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if self._status and self._until_end and exc is None:
            self._done.set_result(self._status)  # the end of the connection is the end of such a body
        elif self._used and not self._began:
            self._fail(_Stale("closed while it was idle"))
        else:
            self._fail(
                ConnectionFailed(f"the connection ended before the answer did{'' if exc is None else f': {exc}'}")
            )

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    # -- httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._until_end = False
        if self._on_header is not None:
            self._on_header(name.lower(), value)

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if self._on_body is None or self._done is None or self._done.done():
            return
        try:
            self._on_body(self._status, data)
        except Exception as error:  # noqa: BLE001  what the reader of the body raises ends its request
            self._fail(error)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._done is None or self._done.done() or 100 <= self._status < 200:
            return
        self._keep = self._parser.should_keep_alive()
        self._done.set_result(self._status)
