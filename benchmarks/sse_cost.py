"""What a chunk of a stream costs on its way out: our server, with an engine that answers from memory, against a bare
ASGI application that sends ready-made bytes from the same HTTP server.

    python benchmarks/sse_cost.py
    python benchmarks/sse_cost.py --connections 1 64 --chunks 20000 --rounds 5

Each side is a process of its own; both let the event loop have a turn before each chunk, as an engine does that waits
for tokens. A round runs every side once, in an order that changes. Figures are medians over the rounds: of the
processor time of the server for one chunk, of the time that passes for one, and of the ratios within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
import uvloop
from starlette.types import Receive, Scope, Send

from mlx_serving.core.generation import Delta, FinishReason, GenerationRequest, GenerationStats
from mlx_serving.core.serving import ServedModel
from mlx_serving.server.app import ServerApp, create_app
from mlx_serving.server.http.in_flight import InFlight
from mlx_serving.server.run import serve
from mlx_serving.server.settings import ServerSettings

_TEXT = " word"
_MESSAGES = [{"role": "user", "content": "Hello"}]
_MODEL = ServedModel("tiny", "tiny", 1_700_000_000, "ready", context_length=1 << 20)
_CHUNK = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "tiny",
    "system_fingerprint": "mlx-serving-0.1.0",
    "choices": [{"index": 0, "logprobs": None, "delta": {"content": _TEXT}, "finish_reason": None}],
}
_BARE = b"data: " + json.dumps(_CHUNK, separators=(",", ":")).encode() + b"\n\n"
BARE = "bare ASGI"


@dataclass(frozen=True, slots=True)
class Api:
    """An endpoint, how its stream of `tokens` is asked for, and what is in every event with text, and in no other."""

    path: str
    limit: str
    body: Mapping[str, object]
    mark: bytes = b" word"

    def request(self, tokens: int) -> bytes:
        body = json.dumps({**self.body, self.limit: tokens, "stream": True}).encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: server\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        return head.encode() + body


APIS: Mapping[str, Api] = {
    BARE: Api("/", "max_tokens", {}),
    "chat": Api("/v1/chat/completions", "max_tokens", {"messages": _MESSAGES}),
    "completions": Api("/v1/completions", "max_tokens", {"prompt": "Hello"}),
    "messages": Api("/v1/messages", "max_tokens", {"messages": _MESSAGES}, b'"text_delta"'),
    "responses": Api("/v1/responses", "max_output_tokens", {"input": "Hello", "store": False}, b'output_text.delta",'),
}


class Memory:
    """An engine that says the same word for every token. What it does not need to know, it does not."""

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)

    def served_models(self) -> Sequence[ServedModel]:
        return (_MODEL,)

    def progress(self) -> int:
        return 0

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncGenerator[AsyncIterator[Delta]]:
        yield self._deltas(request.sampling.max_tokens or 1)

    async def _deltas(self, tokens: int) -> AsyncIterator[Delta]:
        for number in range(tokens):
            await asyncio.sleep(0)
            yield Delta(_TEXT, (number,))
        yield Delta("", (), FinishReason.LENGTH, GenerationStats(1, tokens, 0.0, 0.0, 0.0))


class Bare:
    """What the HTTP server needs of an application, and nothing else."""

    def __init__(self) -> None:
        self.settings = ServerSettings()
        self.in_flight = InFlight()
        self.handover = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokens = int(json.loads((await receive())["body"])["max_tokens"])
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for _ in range(tokens):
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": _BARE, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _serve(side: str) -> None:
    app = Bare() if side == BARE else create_app(cast("Any", Memory()), ServerSettings(access_log=False))
    await serve(
        cast("ServerApp", app), "127.0.0.1", 0, on_started=lambda addresses: print(addresses[0].url, flush=True)
    )


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    pid: int


@asynccontextmanager
async def started(side: str) -> AsyncGenerator[Server]:
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", side, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield Server((await process.stdout.readline()).decode().strip(), process.pid)
    finally:
        process.terminate()
        await process.wait()


async def _read_stream(server: Server, api: Api, chunks: int) -> None:
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(api.request(chunks))
    seen, rest = 0, b""
    while part := await reader.read(1 << 18):
        rest += part
        whole, _, rest = rest.rpartition(b"\n\n")
        seen += whole.count(api.mark)
    writer.close()
    if seen != chunks:
        raise SystemExit(f"{api.path} sent {seen} chunks of {chunks}")


async def cost(server: Server, api: Api, connections: int, chunks: int) -> tuple[float, float]:
    """Of one chunk: the processor time of the server, and the time that passes, in microseconds."""
    each = max(1, chunks // connections)
    process = psutil.Process(server.pid)
    before, began = process.cpu_times(), time.perf_counter()
    await asyncio.gather(*(_read_stream(server, api, each) for _ in range(connections)))
    passed, after = time.perf_counter() - began, process.cpu_times()
    spent = after.user - before.user + after.system - before.system
    return 1e6 * spent / (each * connections), 1e6 * passed / (each * connections)


async def measure(sides: Sequence[str], connections: Sequence[int], chunks: int, rounds: int) -> None:
    async with AsyncExitStack() as stack:
        servers = {side: await stack.enter_async_context(started(side)) for side in sides}
        for server, side in zip(servers.values(), sides, strict=True):
            await cost(server, APIS[side], 1, chunks // 10)
        print(f"{'connections':>11}  {'side':12}  {'cpu us':>7}  {'ratio':>5}  {'wall us':>7}  {'ratio':>5}")
        for count in connections:
            found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
            for number in range(rounds):
                turn = number % len(sides)
                for side in (*sides[turn:], *sides[:turn]):
                    found[side].append(await cost(servers[side], APIS[side], count, chunks))
            for side in sides:
                told: list[float] = []
                for kind in (0, 1):
                    told.append(statistics.median(each[kind] for each in found[side]))
                    pairs = zip(found[side], found[BARE], strict=True)
                    told.append(statistics.median(ours[kind] / bare[kind] for ours, bare in pairs))
                print(f"{count:11}  {side:12}  {told[0]:7.1f}  {told[1]:5.2f}  {told[2]:7.1f}  {told[3]:5.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--chunks", type=int, default=20_000, help="in a run, over all connections")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=[side for side in APIS if side != BARE], default=None)
    parser.add_argument("--serve", choices=list(APIS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        uvloop.run(_serve(arguments.serve))
        return
    sides = (BARE, *(arguments.sides or [side for side in APIS if side != BARE]))
    uvloop.run(measure(sides, arguments.connections, arguments.chunks, arguments.rounds))


if __name__ == "__main__":
    main()
