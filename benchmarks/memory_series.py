"""Memory over a mixed run: what the worker's device holds, and what its process and ours take, against the budget.

    python benchmarks/memory_series.py --seconds 60
    python benchmarks/memory_series.py --seconds 3600 --plot memory.png
    python benchmarks/memory_series.py --model smollm2-135m --model other=DIRECTORY --limit-mib 4096

Clients that send short and long prompts to several models in turns, at the pace that the device allows: an hour of a
user's mixed day in minutes. Some leave in mid-answer, some are cancelled while they wait, and now and then a model is
unloaded, to be loaded again with the next request for it. Without --model, three random llamas with large KV caches,
and a budget that their caches do not fit into.

Every half second: MLX's active memory and freed buffers, and the resident size of the worker and of this process. Exits
with 1 when MLX's, or what the worker's process took besides its own, was ever more than 5 % above the budget.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from mlx_serving import Engine, ErrorChunk, TokenChunk
from mlx_serving.bench.plot import require_matplotlib
from mlx_serving.errors import EngineError

MIB = 1 << 20
TOLERANCE = 1.05
_MAKE = (
    "import sys, pathlib; from tests.tiny_models import make_llama as make; "
    "make(pathlib.Path(sys.argv[1]), seed=int(sys.argv[2]), layers=24, head_dim=128, context_length=8192)"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes; `worker` and `parent` are resident, `budget` is what models may take as things are."""

    seconds: float
    active: int
    buffers: int
    worker: int
    parent: int
    budget: int
    streams: int


class Run:
    def __init__(self, engine: Engine, models: Sequence[str], seconds: float, longest: int) -> None:
        self._engine = engine
        self._models = models
        self._seconds = seconds
        self._longest = longest
        self._random = random.Random(0)
        self._began = time.perf_counter()
        self.series: list[Reading] = []
        self.outcomes = {"finished": 0, "left": 0, "cancelled": 0, "refused": 0, "unloaded": 0}

    @property
    def _is_over(self) -> bool:
        return time.perf_counter() - self._began > self._seconds

    async def run(self, clients: int) -> None:
        await self._read()
        watching = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._client() for _ in range(clients)), self._unload_now_and_then())
        await watching

    async def _watch(self) -> None:
        while not self._is_over:
            await self._read()
            await asyncio.sleep(0.5)

    async def _read(self) -> None:
        info = await self._engine.get_runtime_info()
        memory = info.memory
        state = await self._engine.core.runtime_state()
        self.series.append(
            Reading(
                seconds=round(time.perf_counter() - self._began, 2),
                active=memory.active,
                buffers=memory.cache,
                worker=memory.rss,
                parent=psutil.Process().memory_info().rss,
                budget=memory.capacity,
                streams=state.active_streams,
            )
        )

    async def _unload_now_and_then(self) -> None:
        while not self._is_over:
            await asyncio.sleep(max(2.0, self._seconds / 30))
            await self._engine.unload_model(self._random.choice(self._models))
            self.outcomes["unloaded"] += 1

    async def _client(self) -> None:
        while not self._is_over:
            try:
                outcome = await self._request()
            except EngineError as error:  # too much at a time, or the model went
                outcome = "refused"
                await asyncio.sleep(0.1 if error.retryable else 0)
            self.outcomes[outcome] += 1

    async def _request(self) -> str:
        chance = self._random
        most = self._longest if chance.random() < 0.3 else 60
        params: dict[str, object] = {
            "model": chance.choice(self._models),
            "prompt": {"tokens": [chance.randrange(250) for _ in range(chance.randint(1, most))]},
            "max_tokens": chance.randint(1, 120),
            "temperature": chance.choice([0.0, 1.0]),
            "seed": chance.randrange(1000),
        }
        fate = chance.random()
        if fate < 0.1:
            task = asyncio.ensure_future(self._tokens(params, 1000))
            await asyncio.sleep(chance.random() * 0.2)
            task.cancel()
            try:
                return await task
            except asyncio.CancelledError:
                return "cancelled"
        return await self._tokens(params, chance.randint(0, 20) if fate < 0.3 else 1000)

    async def _tokens(self, params: dict[str, object], most: int) -> str:
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


def verdict(series: Sequence[Reading]) -> dict[str, object]:
    """The largest part of the budget that was ever taken, by what MLX reports and by the worker's resident size without
    that of the process itself: what it had at the start beside MLX's memory. On a CPU both see the same memory."""
    start = _own(series)
    device = max((one.active + one.buffers) / one.budget for one in series)
    resident = max((one.worker - start) / one.budget for one in series)
    return {
        "device_of_budget": round(device, 3),
        "resident_of_budget": round(resident, 3),
        "held": max(device, resident) <= TOLERANCE,
    }


def _own(series: Sequence[Reading]) -> int:
    """What the worker takes without models, as far as it can be told once they have generated a token."""
    return series[0].worker - series[0].active - series[0].buffers


def plot(series: Sequence[Reading], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.5), layout="constrained")
    axes, below = figure.subplots(1, 2)
    times = [one.seconds for one in series]
    start = _own(series)
    curves = {
        "budget": [one.budget for one in series],
        "MLX: active and freed buffers": [one.active + one.buffers for one in series],
        "MLX: active": [one.active for one in series],
        "worker, resident beyond its own": [one.worker - start for one in series],
        "parent, resident": [one.parent for one in series],
    }
    for number, (name, values) in enumerate(curves.items()):
        style = "--" if name == "budget" else "-"
        axes.plot(times, [value / MIB for value in values], style, marker="", color=f"C{number}", label=name)
    axes.set(xlabel="seconds", ylabel="MiB")
    axes.legend()
    below.plot(times, [one.streams for one in series], "-", marker="", color="C0", label="streams")
    below.set(xlabel="seconds", ylabel="streams")
    figure.savefig(path, format="png", dpi=120)


async def measure(models: Sequence[str], arguments: argparse.Namespace) -> Run:
    config = {"memory": {"limit_bytes": arguments.limit_mib * MIB}, "generation": {"timeout_s": None}}
    async with Engine(config) as engine:
        for name in models:
            await engine.warmup_model(name)
        run = Run(engine, models, arguments.seconds, arguments.longest)
        await run.run(arguments.clients)
        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="hub id, alias or directory; repeatable")
    parser.add_argument("--limit-mib", type=int, default=1024, help="memory for models at most, in MiB")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--longest", type=int, default=1500, help="tokens of a long prompt at most")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG")
    parser.add_argument("--json", action="store_true", help="print the series, too")
    arguments = parser.parse_args()
    if arguments.plot is not None:
        require_matplotlib()
    with tempfile.TemporaryDirectory() as scratch:
        models: list[str] = arguments.model
        for number in range(0 if models else 3):
            directory = Path(scratch) / f"model-{number}"
            root = Path(__file__).parent.parent
            subprocess.run([sys.executable, "-c", _MAKE, str(directory), str(number)], cwd=root, check=True)
            models = [*models, str(directory)]
        run = asyncio.run(measure(models, arguments))
    result = {"outcomes": run.outcomes, "readings": len(run.series), **verdict(run.series)}
    if arguments.json:
        print(json.dumps({**result, "series": [asdict(one) for one in run.series]}))
    else:
        step = max(1, len(run.series) // 20)
        for one in run.series[::step]:
            sizes = (one.active, one.buffers, one.worker, one.parent, one.budget)
            print(f"{one.seconds:8.1f} s", *(f"{size / MIB:9.1f}" for size in sizes), f"{one.streams:4d}")
        print(json.dumps(result, indent=2))
    if arguments.plot is not None:
        plot(run.series, arguments.plot)
    sys.exit(0 if result["held"] else 1)


if __name__ == "__main__":
    main()
