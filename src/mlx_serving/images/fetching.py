"""Pictures from the web, for people who may not use this machine to look at what only it can reach.

A connection is made to an address that was checked, not to a name that may mean another one by then. There are no
proxies, no cookies, no credentials, and nothing is unpacked. Everything together has one time limit.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import TypeAlias

import h11

from mlx_serving.core.images.addresses import WebAddress, redirected, require_reachable, web_address
from mlx_serving.core.images.rules import ImagePolicy, named_format, require_bytes
from mlx_serving.core.images.sources import Inline
from mlx_serving.errors import ImageFetchFailed

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, as numbers. Raises OSError."""

_MAX_HEADER_BYTES = 32 * 1024
_READ_BYTES = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_AT_A_TIME = 16


async def system_addresses(host: str, port: int) -> Sequence[str]:
    """What the system's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))


class Fetcher:
    def __init__(self, resolve: Resolve = system_addresses, trusted: ssl.SSLContext | None = None) -> None:
        """`trusted` says which certificates count; by default those that the system trusts."""
        self._resolve = resolve
        self._trusted = trusted
        self._places = asyncio.Semaphore(_AT_A_TIME)

    async def fetch(self, url: str, policy: ImagePolicy, where: str) -> Inline:
        """The file behind a URL, and its type as its server says. Raises `ImageFetchFailed`, and what is wrong with
        the file already: `UnsupportedImageFormat`, `InvalidImageInput`. Of the URL, messages name the host only."""
        address = web_address(url, policy.fetch, where)
        try:
            async with self._places, asyncio.timeout(policy.fetch.timeout_s):
                for _ in range(policy.fetch.max_redirects + 1):
                    answer = await self._ask(address, policy, where)
                    if isinstance(answer, Inline):
                        return answer
                    address = redirected(address, answer, policy.fetch, where)
        except TimeoutError:
            raise ImageFetchFailed(
                f"{where} did not come from {address.host} within {policy.fetch.timeout_s:g} s",
                field=where,
                limit=policy.fetch.timeout_s,
            ) from None
        except (OSError, h11.ProtocolError, UnicodeError) as error:
            raise ImageFetchFailed(
                f"{where} could not be fetched from {address.host}: {type(error).__name__}", field=where
            ) from None
        raise ImageFetchFailed(
            f"{where} may be redirected at most {policy.fetch.max_redirects} times",
            field=where,
            limit=policy.fetch.max_redirects,
        )

    async def _ask(self, address: WebAddress, policy: ImagePolicy, where: str) -> Inline | str:
        """The file, or where it is to be had instead."""
        found = await self._resolve(address.host, address.port)
        for each in found:
            require_reachable(address, each, policy.fetch, where)
        reader, writer = await self._connect(address, found)
        try:
            return await _converse(reader, writer, address, policy, where)
        finally:
            writer.transport.abort()

    async def _connect(
        self, address: WebAddress, found: Sequence[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the first of the addresses that answers. Raises OSError."""
        context = None
        if address.secure:
            if self._trusted is None:
                self._trusted = await asyncio.to_thread(ssl.create_default_context)
            context = self._trusted
        failure = OSError("it has no address")
        for each in found:
            try:
                return await asyncio.open_connection(
                    each,
                    address.port,
                    ssl=context,
                    server_hostname=address.host if context else None,
                    flags=socket.AI_NUMERICHOST,
                )
            except OSError as error:
                failure = error
        raise failure


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: WebAddress, policy: ImagePolicy, where: str
) -> Inline | str:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEADER_BYTES)
    request = h11.Request(method="GET", target=address.path, headers=_headers(address))
    writer.write(connection.send(request) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()
    media_type: str | None = None
    parts: list[bytes] = []
    size = 0
    while True:
        match event := connection.next_event():
            case h11.NEED_DATA:
                connection.receive_data(await reader.read(_READ_BYTES))
            case h11.Response():
                told = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                if event.status_code in _REDIRECTS and "location" in told:
                    return told["location"]
                media_type = _accepted(event.status_code, told, address, policy, where)
            case h11.Data():
                size += len(event.data)
                require_bytes(size, where, policy)
                parts.append(bytes(event.data))
            case h11.EndOfMessage():
                return Inline(b"".join(parts), media_type)
            case h11.ConnectionClosed() | h11.PAUSED:
                raise h11.RemoteProtocolError("the connection was closed before the answer")
            case _:  # 100 Continue, and the like
                pass


def _headers(address: WebAddress) -> list[tuple[str, str]]:
    return [
        ("Host", address.host_header),
        ("User-Agent", f"mlx-serving/{version('mlx-serving')}"),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]


def _accepted(status: int, told: dict[str, str], address: WebAddress, policy: ImagePolicy, where: str) -> str | None:
    """The media type of what follows. Raises for what need not be read."""
    if status != 200:
        raise ImageFetchFailed(f"{where} could not be fetched: {address.host} answered {status}", field=where)
    encoding = told.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise ImageFetchFailed(f"{where} could not be fetched: {address.host} has packed its answer", field=where)
    announced = told.get("content-length", "")
    if announced.isdecimal():
        require_bytes(int(announced), where, policy)
    media_type = told.get("content-type")
    named_format(media_type, where)
    return media_type
