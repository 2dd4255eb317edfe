"""A client that does not read is paused. The server has one slot: while it held that, nobody else was served."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from ..command_line import LIMIT_S
from ..tiny_models import VOCABULARY
from .served_process import ServedProcess, serving
from .tiny_server import ENDLESS, HELLO, config_of

SEEDED: dict[str, Any] = {
    "model": "tiny",
    "messages": HELLO,
    "max_tokens": 3000,
    "temperature": 1.0,
    "seed": 7,
    "logit_bias": {str(token): -100 for token in range(256, VOCABULARY)},
    "stream": True,
}
"""Long enough to fill every buffer on the way to a client that reads nothing."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow(tmp_path_factory: pytest.TempPathFactory, random_llama: Path) -> AsyncGenerator[ServedProcess]:
    config = config_of(random_llama, scheduler={"max_num_seqs": 1})
    async with serving(tmp_path_factory.mktemp("narrow"), config=config) as served:
        yield served


@asynccontextmanager
async def deaf(served: ServedProcess, body: dict[str, Any]) -> AsyncGenerator[socket.socket]:
    """A connection that sends a request and reads nothing by itself."""
    loop, url, content = asyncio.get_running_loop(), urlsplit(served.url), json.dumps(body).encode()
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(connection, (url.hostname, url.port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: s\r\nconnection: close\r\ncontent-length: {len(content)}"
        await loop.sock_sendall(connection, f"{head}\r\n\r\n".encode() + content)
        yield connection


async def text_of(connection: socket.socket) -> str:
    loop, received = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(LIMIT_S):
        while data := await loop.sock_recv(connection, 1 << 16):
            received += data
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    events = [line[6:] for line in received.split(b"\n") if line.startswith(b"data: {")]
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)


async def others_are_served(served: ServedProcess) -> None:
    async with asyncio.timeout(LIMIT_S), served.openai() as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1)
    assert answer.usage is not None


async def test_it_holds_no_slot_and_gets_the_same_text_when_it_reads(narrow: ServedProcess) -> None:
    async with deaf(narrow, SEEDED) as undisturbed:
        expected = await text_of(undisturbed)
    async with deaf(narrow, SEEDED) as connection:
        await narrow.healthy_when(lambda health: health["active_streams"] == 1)
        await others_are_served(narrow)
        assert (await narrow.health())["active_streams"] == 1
        assert await text_of(connection) == expected


async def test_its_leaving_frees_what_is_left(narrow: ServedProcess) -> None:
    async with deaf(narrow, {**ENDLESS, "model": "tiny", "messages": HELLO, "stream": True}):
        await narrow.healthy_when(lambda health: health["active_streams"] == 1)
        await others_are_served(narrow)
    await narrow.healthy_when(lambda health: health["active_streams"] == 0)


async def test_its_time_is_bounded_all_the_same(tmp_path: Path, random_llama: Path) -> None:
    config = config_of(random_llama, generation={"timeout_s": 2.0})
    async with serving(tmp_path, config=config) as served:
        async with deaf(served, {**ENDLESS, "model": "tiny", "messages": HELLO, "stream": True}):
            await served.healthy_when(lambda health: health["active_streams"] == 1)
            await served.healthy_when(lambda health: health["active_streams"] == 0)
        await others_are_served(served)
