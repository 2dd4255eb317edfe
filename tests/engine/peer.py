"""The worker's end of the pipe, in the hands of a test."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from mlx_serving.engine.worker_client import WorkerClient
from mlx_serving.errors import ProtocolError, WorkerDied
from mlx_serving.wire.notifications import Heartbeat, MemoryWanted, ModelProgress


class Peer:
    """The worker's end, and what the client told about it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.beats: list[Heartbeat] = []
        self.progress: list[ModelProgress] = []
        self.wishes: list[MemoryWanted] = []
        self.broken: list[ProtocolError] = []
        self.broke = asyncio.Event()

    def on_broken(self, error: ProtocolError) -> None:
        self.broken.append(error)
        self.broke.set()

    async def request(self) -> dict[str, Any]:
        return json.loads(await asyncio.wait_for(self._reader.readline(), 30))

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    def answer(self, request: dict[str, Any], **fields: object) -> None:
        self.say(json.dumps({"jsonrpc": "2.0", "id": request["id"], **fields}).encode() + b"\n")

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(max_message_bytes: int = 65536) -> AsyncGenerator[tuple[WorkerClient, Peer]]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    peer = Peer(reader, writer)
    client = await WorkerClient.connect(
        ours,
        max_message_bytes,
        on_heartbeat=peer.beats.append,
        on_model_progress=peer.progress.append,
        on_memory_wanted=peer.wishes.append,
        on_broken=peer.on_broken,
    )
    try:
        yield client, peer
    finally:
        client.abandon(WorkerDied("the test is over"))
        peer.close()
        await writer.wait_closed()
