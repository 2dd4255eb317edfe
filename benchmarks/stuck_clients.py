"""Clients that open streams and never read them, beside healthy ones: what the healthy ones lose, and what is held.

    python benchmarks/stuck_clients.py                                    # a random two-layer model with 512 tokens
    python benchmarks/stuck_clients.py --model smollm2-135m --tokens 16 --requests 16 --rounds 3

A round measures the healthy clients twice, in an order that changes: alone, and beside the stuck ones, once all of
these are paused (they are clients like any other until then). Each healthy client sends its next request when the last
one is answered. Prints the output tokens a second of both, the ratio (the median of the ratios within a round), and the
memory that the two processes hold: when all are paused, at the end of the round, and the most between. The worker's
memory is without the buffers that MLX keeps for reuse, which are bounded.

Exits with 1 when the ratio is below --least, when memory grew by more than --most-growth MiB from when all were paused
to the end of the round, or from the first round's end to the last one's, or when a stuck stream failed or was left
behind. (The most between is what the healthy clients take for their prompts.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import uvloop

from mlx_serving.bench.prompts import make_prompts
from peers import Peer, counter, forbidden_ends, model_directory, our_server, rate

ADMIN_KEY = "benchmark"
MIB = 1 << 20
PROMPT_TOKENS = 64
STUCK_TOKENS = 3000
"""More than all buffers on the way to a client that reads nothing, with what may wait before a stream is paused."""
_RECEIVE_BUFFER = 4096
_SAMPLE_S = 0.25
_PAUSED_WITHIN_S = 900.0


@dataclass(slots=True)
class Held:
    """MiB that a process held while clients were stuck."""

    paused: float
    end: float = 0.0
    most: float = 0.0

    def note(self, mib: float) -> None:
        self.end, self.most = mib, max(self.most, mib)


@dataclass(slots=True)
class Phase:
    """One time with stuck clients. `until_paused_s` is how long the last of them took to be paused."""

    until_paused_s: float
    parent: Held
    worker: Held


@dataclass(slots=True)
class Outcome:
    alone: list[float] = field(default_factory=list[float])
    beside: list[float] = field(default_factory=list[float])
    phases: list[Phase] = field(default_factory=list[Phase])

    @property
    def ratio(self) -> float:
        return statistics.median(beside / alone for beside, alone in zip(self.beside, self.alone, strict=True))

    def complaints(self, least: float, most_growth: float) -> list[str]:
        found: list[str] = []
        if self.ratio < least:
            found.append(f"healthy clients have {self.ratio:.2f} of their speed, less than {least}")
        for name in ("parent", "worker"):
            held: list[Held] = [getattr(phase, name) for phase in self.phases]
            grown = max(max(one.end - one.paused for one in held), held[-1].end - held[0].end)
            if grown > most_growth:
                found.append(f"the {name} grew by {grown:.1f} MiB, more than {most_growth}")
        return found


class Server:
    """The server as its operator sees it."""

    def __init__(self, peer: Peer, http: httpx2.AsyncClient) -> None:
        self.peer = peer
        self._http = http

    async def runtime(self) -> dict[str, Any]:
        response = await self._http.get("/admin/telemetry", headers={"authorization": f"Bearer {ADMIN_KEY}"})
        return response.raise_for_status().json()["runtime"]

    async def streams(self) -> int:
        return (await self._http.get("/health")).json()["active_streams"]

    async def memory(self) -> tuple[float, float]:
        """MiB of the parent and of the worker."""
        runtime = await self.runtime()
        worker = runtime["process"]["rss_bytes"] - runtime["memory"]["cache_bytes"]
        return round(psutil.Process(self.peer.pid).memory_info().rss / MIB, 1), round(worker / MIB, 1)


@asynccontextmanager
async def stuck(url: str, body: Mapping[str, object]) -> AsyncGenerator[socket.socket]:
    """A client that sends a request and reads nothing."""
    loop, address, content = asyncio.get_running_loop(), urlsplit(url), json.dumps(body).encode()
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        await loop.sock_connect(connection, (address.hostname, address.port))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: benchmark\r\ncontent-length: {len(content)}\r\n\r\n"
        await loop.sock_sendall(connection, head.encode() + content)
        yield connection


async def all_paused(server: Server, clients: int) -> float:
    """Seconds until every stuck stream is paused."""
    began = time.perf_counter()
    async with asyncio.timeout(_PAUSED_WITHIN_S):
        while (await server.runtime())["scheduler"]["paused"] < clients:  # noqa: ASYNC110  nobody tells of it
            await asyncio.sleep(_SAMPLE_S)
    return round(time.perf_counter() - began, 1)


async def watch(server: Server, phase: Phase) -> None:
    while True:
        await asyncio.sleep(_SAMPLE_S)
        await note(server, phase)


async def note(server: Server, phase: Phase) -> None:
    parent, worker = await server.memory()
    phase.parent.note(parent)
    phase.worker.note(worker)


async def measure(model: Path, arguments: argparse.Namespace) -> Outcome:
    extra = forbidden_ends(arguments.model, model)
    settings = (f"server.admin_key={ADMIN_KEY}", "generation.timeout_s=3600")
    async with our_server([model], extra, settings) as peer, httpx2.AsyncClient(base_url=peer.url, timeout=60) as http:
        server, outcome, count = Server(peer, http), Outcome(), counter(model)

        async def healthy(number: int) -> float:
            prompts = await make_prompts(arguments.requests, PROMPT_TOKENS, str(number), count_tokens=count)
            return await rate(peer.target, prompts, arguments.tokens, arguments.healthy)

        async def alone(number: int) -> None:
            outcome.alone.append(await healthy(number))

        async def beside(number: int) -> None:
            async with AsyncExitStack() as stack:
                for seed in range(arguments.stuck):
                    body = {"model": model.name, "prompt": "Tell me", "max_tokens": STUCK_TOKENS, "stream": True}
                    await stack.enter_async_context(stuck(peer.url, {**body, **extra, "seed": seed}))
                until_paused = await all_paused(server, arguments.stuck)
                parent, worker = await server.memory()
                phase = Phase(until_paused, Held(parent, most=parent), Held(worker, most=worker))
                watching = asyncio.create_task(watch(server, phase))
                outcome.beside.append(await healthy(number))
                watching.cancel()
                await note(server, phase)
                outcome.phases.append(phase)
                if (alive := await server.streams()) != arguments.stuck:
                    raise SystemExit(f"{arguments.stuck - alive} of the stuck streams ended by themselves")
            async with asyncio.timeout(_PAUSED_WITHIN_S):
                while await server.streams():  # noqa: ASYNC110  nobody tells of it
                    await asyncio.sleep(_SAMPLE_S)

        await healthy(-1)  # warms up
        for number in range(arguments.rounds):
            for part in (alone, beside) if number % 2 else (beside, alone):
                await part(number)
            phase = outcome.phases[-1]
            print(
                f"round {number}: alone {outcome.alone[-1]:.0f} beside {outcome.beside[-1]:.0f} tokens/s, paused after "
                f"{phase.until_paused_s} s, parent {phase.parent}, worker {phase.worker}",
                file=sys.stderr,
            )
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: a random two-layer model, made on the spot")
    parser.add_argument("--stuck", type=int, default=64, help="clients that never read")
    parser.add_argument("--healthy", type=int, default=8, help="clients that do")
    parser.add_argument("--requests", type=int, default=32, help="of the healthy clients, in half a round")
    parser.add_argument("--tokens", type=int, default=256, help="of each of their answers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--least", type=float, default=0.9, help="ratio of the speeds")
    parser.add_argument("--most-growth", type=float, default=8.0, help="in MiB")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        outcome = uvloop.run(measure(model_directory(arguments.model, Path(scratch)), arguments))
    complaints = outcome.complaints(arguments.least, arguments.most_growth)
    result: dict[str, object] = {
        "model": arguments.model or "tiny",
        "stuck": arguments.stuck,
        "healthy": arguments.healthy,
        "rounds": arguments.rounds,
        "output_tokens_per_s": {
            "alone": round(statistics.median(outcome.alone), 1),
            "beside": round(statistics.median(outcome.beside), 1),
        },
        "ratio": round(outcome.ratio, 3),
        "phases": [asdict(phase) for phase in outcome.phases],
        "complaints": complaints,
    }
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
