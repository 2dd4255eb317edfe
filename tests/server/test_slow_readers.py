"""A client that does not read what it asked for holds nothing that grows, and nothing for ever."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psutil
import pytest

from mlx_serving.server import generation
from mlx_serving.server.app import create_app
from mlx_serving.server.http import unread
from mlx_serving.server.http.listening import ListenAddress
from mlx_serving.server.settings import ServerSettings

from ..event_log import until
from .conftest import running
from .raw_http import post
from .scripted_engine import Run, Script, ScriptedEngine

PIECE = "x" * 1000
PIECES = 20_000
"""20 MB: many times what a socket whose client reads nothing could take."""

REQUEST = post("/v1/completions", json.dumps({"prompt": "Hi", "stream": True}).encode())


@asynccontextmanager
async def deaf(address: ListenAddress) -> AsyncGenerator[socket.socket]:
    """A connection that sends a request and reads nothing by itself."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, (address.host, address.port))
        await loop.sock_sendall(connection, REQUEST)
        yield connection


async def beginning(connection: socket.socket) -> bytes:
    """The first bytes of the answer, and no more."""
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 100), 10)


async def rest(connection: socket.socket) -> bytes:
    loop, received = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(10):
        while data := await loop.sock_recv(connection, 1 << 16):
            received += data
    return bytes(received)


def is_held(address: ListenAddress, connection: socket.socket) -> bool:
    """Whether the server, which runs in this process, has the connection's other end."""
    ends = psutil.Process().net_connections("tcp4")
    return any(end.laddr[1:] == (address.port,) and end.raddr == connection.getsockname() for end in ends)


async def stands_still(run: Run) -> int:
    """How far the delivery has come, when it goes on no more."""
    taken = -1
    while run.taken != taken:
        taken = run.taken
        for _ in range(100):
            await asyncio.sleep(0)
    return taken


@pytest.fixture
def long(engine: ScriptedEngine) -> ScriptedEngine:
    engine.script = Script(pieces=(PIECE,) * PIECES)
    return engine


async def test_nothing_is_taken_from_the_engine_that_the_client_does_not_read(
    address: ListenAddress, long: ScriptedEngine
) -> None:
    async with deaf(address) as connection:
        run = await long.next_run()
        answer = await beginning(connection)
        assert await stands_still(run) < PIECES / 20
        answer += await rest(connection)
    assert answer.count(PIECE.encode()) == PIECES
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert run.finished


async def test_closing_without_having_read_aborts_the_generation(address: ListenAddress, long: ScriptedEngine) -> None:
    async with deaf(address) as connection:
        run = await long.next_run()
        await beginning(connection)
        await stands_still(run)
    await asyncio.wait_for(run.left.wait(), 10)
    assert run.aborted


async def test_the_deadline_holds_and_the_connection_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_LAST_WORDS_S", 0.01)
    monkeypatch.setattr(unread, "LINGER_S", 0.01)
    engine = ScriptedEngine()
    engine.script = Script(pieces=(PIECE,) * PIECES)

    async def is_dropped() -> bool:
        return not is_held(address, connection)

    async with (
        running(create_app(engine, ServerSettings(request_timeout_s=0.3))) as address,
        deaf(address) as connection,
    ):
        run = await engine.next_run()
        await asyncio.wait_for(run.left.wait(), 10)
        assert run.aborted
        await until(is_dropped)
