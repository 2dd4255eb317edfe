"""Ten thousand short requests with random cancellations through `Engine`: what is left of them.

    python benchmarks/soak.py
    python benchmarks/soak.py --requests 100000 --clients 32 --json

A random two-layer model; clients that each send a request, read it to its end, leave it after some tokens, or are
cancelled while they wait. Resident memory of this process and of the worker, what MLX holds and what it keeps for
reuse, and open handles are printed after a warm-up, at a fifth of the requests and at the end. Exits with 1 when from a
fifth to the end

    resident memory of either process grows by more than 4 MiB, without the buffers that MLX keeps for reuse,
    what MLX holds grows by more than 64 KiB,
    the number of open handles of either process grows, or
    a stream is left in the worker.

Buffers for reuse are bounded by the worker; how many sizes of them there are depends on chance.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from mlx_serving import Engine, ErrorChunk, TokenChunk

WARM_UP = 300
MOST_TOKENS = 24
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """Memory in bytes: `parent_bytes` and `worker_bytes` are resident, the worker's without `mlx_cache`."""

    requests: int
    seconds: float
    parent_bytes: int
    worker_bytes: int
    mlx_active: int
    mlx_cache: int
    parent_handles: int
    worker_handles: int
    streams: int

    def complaints(self, earlier: Reading) -> list[str]:
        found: list[str] = []
        for name in ("parent_bytes", "worker_bytes"):
            before, now = getattr(earlier, name), getattr(self, name)
            if now - before > 4 * MIB:
                found.append(f"{name} grew from {before / MIB:.1f} to {now / MIB:.1f} MiB")
        if self.mlx_active > earlier.mlx_active + 65536:
            found.append(f"mlx_active grew from {earlier.mlx_active} to {self.mlx_active} bytes")
        for name in ("parent_handles", "worker_handles"):
            before, now = getattr(earlier, name), getattr(self, name)
            if now > before:
                found.append(f"{name} grew from {before} to {now}")
        if self.streams:
            found.append(f"{self.streams} streams are left in the worker")
        return found


class Soak:
    def __init__(self, engine: Engine, model: str, seed: int) -> None:
        self._engine = engine
        self._model = model
        self._random = random.Random(seed)
        self._began = time.perf_counter()
        self.outcomes = {"finished": 0, "left": 0, "cancelled": 0}
        self.sent = 0

    async def run(self, until: int, clients: int) -> Reading:
        await asyncio.gather(*(self._client(until) for _ in range(clients)))
        return await self._reading()

    async def _client(self, until: int) -> None:
        while self.sent < until:
            self.sent += 1
            await self._request()

    async def _request(self) -> None:
        chance = self._random
        params: dict[str, object] = {
            "model": self._model,
            "prompt": {"tokens": [chance.randrange(250) for _ in range(chance.randint(1, 80))]},
            "max_tokens": chance.randint(1, MOST_TOKENS),
            "temperature": chance.choice([0.0, 1.0]),
            "seed": chance.randrange(1000),
        }
        fate = chance.random()
        if fate < 0.15:
            task = asyncio.ensure_future(self._read(params, MOST_TOKENS))
            await asyncio.sleep(chance.random() * 0.02)
            task.cancel()
            try:
                outcome = await task
            except asyncio.CancelledError:
                outcome = "cancelled"
        elif fate < 0.4:
            outcome = await self._read(params, chance.randint(0, 6))
        else:
            outcome = await self._read(params, MOST_TOKENS)
        self.outcomes[outcome] += 1

    async def _read(self, params: dict[str, object], most: int) -> str:
        stream = self._engine.create_generator(params)
        tokens = 0
        try:
            async for chunk in stream:
                if isinstance(chunk, ErrorChunk):
                    raise chunk.error
                tokens += isinstance(chunk, TokenChunk)
                if tokens > most:
                    return "left"
        finally:
            await stream.aclose()
        return "finished"

    async def _reading(self) -> Reading:
        state = await self._engine.core.runtime_state()
        info = await self._engine.get_runtime_info()
        gc.collect()
        parent, worker = psutil.Process(), psutil.Process(info.pid)
        return Reading(
            requests=self.sent,
            seconds=round(time.perf_counter() - self._began, 1),
            parent_bytes=parent.memory_info().rss,
            worker_bytes=info.memory.rss - info.memory.cache,
            mlx_active=info.memory.active,
            mlx_cache=info.memory.cache,
            parent_handles=parent.num_fds(),
            worker_handles=worker.num_fds(),
            streams=state.active_streams,
        )


async def soak(directory: Path, requests: int, clients: int) -> tuple[list[Reading], dict[str, int]]:
    async with Engine() as engine:
        await engine.load_model(str(directory))
        run = Soak(engine, str(directory), seed=0)
        readings: list[Reading] = []
        for until in (WARM_UP, requests // 5, requests):
            readings.append(await run.run(until, clients))
            print(json.dumps(asdict(readings[-1])), file=sys.stderr)
        return readings, run.outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "tiny"
        root = Path(__file__).parent.parent
        subprocess.run([sys.executable, "-m", "tests.tiny_models", str(directory)], cwd=root, check=True)
        readings, outcomes = asyncio.run(soak(directory, arguments.requests, arguments.clients))
    complaints = readings[-1].complaints(readings[1])
    result = {"readings": [asdict(one) for one in readings], "outcomes": outcomes, "complaints": complaints}
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
