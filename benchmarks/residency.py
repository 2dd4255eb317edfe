"""Models that share memory: switching between more of them than fit, moving a name, loading beside a stream.

    python benchmarks/residency.py                              # all of them, on models made on the spot
    python benchmarks/residency.py switching --clients 8 --turns 20
    python benchmarks/residency.py swapping --seconds 20
    python benchmarks/residency.py loading --layers 40

switching   three models, memory for two, clients that name any of them at random. Counts what failed, what was
            evicted, and streams that lost their model. Then one model is switched back to with its files in the page
            cache and, where the system can be told to forget them, without: the ratio of the times to its first token.
swapping    eight clients stream from an alias that is moved to and fro. Every answer must be one model's, whole.
loading     one stream of a small model while a large one is loaded: the longest gap between two tokens of it then,
            against the longest of the same stream alone.

One engine in this process, one worker, one device. Every figure but the counts is a ratio within the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from pathlib import Path

import uvloop

from mlx_serving import Engine, ErrorChunk, TokenChunk
from mlx_serving.errors import EngineError
from mlx_serving.machine import page_cache
from mlx_serving.telemetry.events import Event, ModelEvicted, ModelLoaded, StreamRecovered

HERE = Path(__file__).parent
NAMES = ("one", "two", "three")


def make_model(directory: Path, seed: int, layers: int, width: int) -> Path:
    """A random llama that writes text and never ends its turn."""
    command = [sys.executable, "-m", "tests.tiny_models", str(directory), "--printable", "--seed", str(seed)]
    subprocess.run([*command, "--layers", str(layers), "--width", str(width)], cwd=HERE.parent, check=True)
    return directory


def weights_of(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def size_of(model: Path) -> int:
    return sum(file.stat().st_size for file in weights_of(model))


async def answer(engine: Engine, model: str, tokens: int, prompt: str = "once upon a time") -> tuple[str, float]:
    """The text, and the seconds to its first token."""
    began = time.perf_counter()
    first: float | None = None
    text = ""
    params = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    async for chunk in engine.create_generator(params):
        if isinstance(chunk, TokenChunk):
            first = time.perf_counter() - began if first is None else first
            text += chunk.token
        elif isinstance(chunk, ErrorChunk):
            raise chunk.error
    assert first is not None
    return text, first


class Tally:
    """What an engine told."""

    def __init__(self, engine: Engine) -> None:
        self.counts: Counter[str] = Counter()
        self.load_s: dict[str, float] = {}
        engine.on("*", self._hear)

    def _hear(self, event: Event) -> None:
        self.counts[event.name] += 1
        if isinstance(event, ModelLoaded):
            self.load_s[event.model_id] = event.seconds


async def switching(scratch: Path, arguments: argparse.Namespace) -> dict[str, object]:
    models = {
        name: make_model(scratch / name, seed, arguments.layers, arguments.width) for seed, name in enumerate(NAMES)
    }
    size = size_of(models["one"])
    served = [{"model": str(path), "name": name, "preload": False} for name, path in models.items()]
    memory = {"limit_bytes": int(2.9 * size), "prefill_bytes": size // 5, "buffer_cache_bytes": size // 5}
    chance = random.Random(1)
    failed: Counter[str] = Counter()
    async with Engine({"models": {"served": served}, "memory": memory}) as engine:
        tally = Tally(engine)

        async def client() -> None:
            for _ in range(arguments.turns):
                length = chance.randint(8, 48)
                try:
                    text, _ = await answer(engine, chance.choice(NAMES), length)
                except EngineError as error:
                    failed[type(error).__name__] += 1
                else:
                    failed["cut short"] += int(not text)

        await asyncio.gather(*(client() for _ in range(arguments.clients)))
        counts = {
            "requests": arguments.clients * arguments.turns,
            "failed": sum(failed.values()),
            "failures": {name: count for name, count in failed.items() if count},
            "loads": tally.counts[ModelLoaded.name],
            "evictions": tally.counts[ModelEvicted.name],
            "streams_that_lost_their_model": tally.counts[StreamRecovered.name],
        }
        files = weights_of(models["one"])
        warm = [await _switch_back(engine, lambda: True) for _ in range(arguments.rounds)]
        cold = [
            await _switch_back(engine, lambda: all(page_cache.drop(file) for file in files))
            for _ in range(arguments.rounds)
        ]
    warm_s = [seconds for seconds in warm if seconds is not None]
    cold_s = [seconds for seconds in cold if seconds is not None]
    ratio = round(statistics.median(cold_s) / statistics.median(warm_s), 2) if cold_s else None
    return {**counts, "model_mib": size >> 20, "first_token_after_a_cold_switch_over_a_warm_one": ratio}


async def _switch_back(engine: Engine, prepare: Callable[[], bool]) -> float | None:
    """Seconds to the first token of a model that was evicted; None if its files could not be prepared."""
    await engine.unload_model("one")
    if not await asyncio.to_thread(prepare):
        return None
    _, first = await answer(engine, "one", 2)
    return first


async def swapping(scratch: Path, arguments: argparse.Namespace) -> dict[str, object]:
    names = NAMES[:2]
    models = {name: make_model(scratch / name, seed, 2, 64) for seed, name in enumerate(names)}
    section = {
        "served": [{"model": str(path), "name": name, "preload": False} for name, path in models.items()],
        "aliases": [{"name": "alias", "model": "one"}],
    }
    async with Engine({"models": section}) as engine:
        whole = {name: (await answer(engine, name, arguments.tokens))[0] for name in names}
        until = time.perf_counter() + arguments.seconds
        results: Counter[str] = Counter()

        async def client() -> None:
            while time.perf_counter() < until:
                try:
                    text, _ = await answer(engine, "alias", arguments.tokens)
                except EngineError as error:
                    results[f"failed: {type(error).__name__}"] += 1
                else:
                    known = [name for name in names if whole[name] == text]
                    results[f"from {known[0]}" if known else "mixed"] += 1

        async def swap() -> int:
            swaps = 0
            while time.perf_counter() < until:
                await asyncio.sleep(arguments.seconds / 20)
                if swaps % 2:
                    await engine.rollback_alias("alias")
                else:
                    await engine.set_alias("alias", "two")
                swaps += 1
            return swaps

        *_, swaps = await asyncio.gather(*(client() for _ in range(arguments.streams)), swap())
    return {"swaps": swaps, "streams_at_a_time": arguments.streams, **results}


async def loading(scratch: Path, arguments: argparse.Namespace) -> dict[str, object]:
    small = make_model(scratch / "small", 0, 2, 64)
    large = make_model(scratch / "large", 1, arguments.layers, arguments.width)
    served = [{"model": str(path), "name": path.name, "preload": False} for path in (small, large)]
    alone: list[float] = []
    beside: list[float] = []
    ratios: list[float] = []
    load_s: list[float] = []
    async with Engine({"models": {"served": served}}) as engine:
        tally = Tally(engine)
        await answer(engine, "small", 32)
        for number in range(arguments.rounds + 1):
            arrivals, _ = await _watched(engine, lambda: asyncio.sleep(1.0))
            quiet = max(_gaps(arrivals))
            arrivals, (began, ended) = await _watched(engine, lambda: engine.load_model("large"))
            loud = max(_gaps([at for at in arrivals if began <= at <= ended + 0.1]))
            await engine.unload_model("large")
            if number > 0:  # the first load finds out what the model can do, and imports
                alone.append(quiet)
                beside.append(loud)
                ratios.append(loud / quiet)
                load_s.append(tally.load_s["large"])
            told = f"load {ended - began:.2f} s, longest gap {1000 * loud:.0f} ms, alone {1000 * quiet:.0f} ms"
            print(f"round {number}: {told}", file=sys.stderr)
    return {
        "model_mib": size_of(large) >> 20,
        "rounds": arguments.rounds,
        "longest_gap_beside_a_load_ms": round(1000 * max(beside), 1),
        "longest_gap_alone_ms": round(1000 * max(alone), 1),
        "longest_gap_beside_over_alone": round(statistics.median(ratios), 2),
        "longest_gap_beside_over_the_load": round(max(beside) / statistics.median(load_s), 3),
    }


async def _watched(engine: Engine, work: Callable[[], Awaitable[object]]) -> tuple[list[float], tuple[float, float]]:
    """When tokens of a stream came while some work was done, and when that began and ended."""
    arrivals: list[float] = []
    enough = asyncio.Event()

    async def watch() -> None:
        params = {"model": "small", "prompt": "once", "max_tokens": 4000, "temperature": 0}
        async for _ in engine.create_generator(params):
            arrivals.append(time.perf_counter())
            if len(arrivals) > 20:
                enough.set()

    watching = asyncio.create_task(watch())
    await enough.wait()
    began = time.perf_counter()
    await work()
    ended = time.perf_counter()
    await asyncio.sleep(0.1)
    watching.cancel()
    await asyncio.wait((watching,))
    return arrivals, (began, ended)


def _gaps(arrivals: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(arrivals)] or [0.0]


SHOWS = {"switching": switching, "swapping": swapping, "loading": loading}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shows", nargs="*", choices=[*SHOWS, []], help="default: all")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--turns", type=int, default=12, help="of each client")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer while the alias moves")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which the alias moves")
    parser.add_argument("--layers", type=int, default=20, help="of the larger models")
    parser.add_argument("--width", type=int, default=512, help="of the larger models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, object] = {}
    for name in arguments.shows or SHOWS:
        with tempfile.TemporaryDirectory() as directory:
            results[name] = uvloop.run(SHOWS[name](Path(directory), arguments))
    print(json.dumps(results, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
