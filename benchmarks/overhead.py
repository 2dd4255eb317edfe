"""What the process boundary and HTTP cost: single-stream decode through `Engine` and through HTTP streaming.

Both as ratios to in-process `mlx_lm.stream_generate` on the same model, interleaved in the same run.

    python benchmarks/overhead.py                         # the embedded model
    python benchmarks/overhead.py --tiny                  # a random two-layer model, where overhead shows
    python benchmarks/overhead.py --model DIRECTORY --rounds 9 --tokens 128 --json

A round runs each path once, in turn; the ratio of a path is the median over the rounds of (its tokens a second) /
(the reference's in that round). Decoding is timed from the first token to the last, as the consumer sees them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2

from mlx_serving import Engine, MetadataChunk, TokenChunk
from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.reference import parse_reference

HERE = Path(__file__).parent
PROMPT = "Once upon a time, in a small village at the edge of a great forest, there lived"


@dataclass(frozen=True, slots=True)
class Sample:
    """One generation: how many tokens, and when the first and the last of them arrived (seconds from the request)."""

    tokens: int
    first: float
    last: float

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens - 1) / (self.last - self.first)


Path_ = Callable[[list[int], int], Awaitable[Sample]]


class Reference:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def __aenter__(self) -> Reference:
        script = str(HERE / "in_process_reference.py")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, script, str(self._directory), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        await self._answer()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())

    async def run(self, prompt: list[int], max_tokens: int) -> Sample:
        assert self._process.stdin is not None
        job = {"prompt": prompt, "max_tokens": max_tokens}
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        times = await self._answer()
        return Sample(int(times["tokens"]), times["first"], times["last"])


class Embedded:
    """`Engine` in this process, its worker in another."""

    def __init__(self, directory: Path) -> None:
        self._model = str(directory)
        self.engine = Engine()

    async def __aenter__(self) -> Embedded:
        await self.engine.load_model(self._model)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.dispose()

    async def run(self, prompt: list[int], max_tokens: int) -> Sample:
        params = {"model": self._model, "prompt": {"tokens": prompt}, "max_tokens": max_tokens, "temperature": 0.0}
        times: list[float] = []
        began = time.perf_counter()
        async for chunk in self.engine.create_generator(params):
            if isinstance(chunk, TokenChunk):
                times.append(time.perf_counter() - began)
            elif not isinstance(chunk, MetadataChunk):
                raise chunk.error
        return Sample(len(times), times[0], times[-1])


class Http:
    """`mlx-serving serve` in a process of its own, its worker in another, and a client here."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def __aenter__(self) -> Http:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(
                "-m",
                "mlx_serving",
                "serve",
                "--model",
                str(self._directory),
                "--port",
                "0",
                "--json",
                "--set",
                "logging.level=error",
            ),
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        told = json.loads(await self._process.stdout.readline())
        self._client = httpx2.AsyncClient(base_url=told["url"], timeout=600)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        self._process.terminate()
        await self._process.wait()

    async def run(self, prompt: list[int], max_tokens: int) -> Sample:
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        times: list[float] = []
        began = time.perf_counter()
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {") and '"finish_reason":null' in line:
                    times.append(time.perf_counter() - began)
        # Several tokens may share a chunk (the bytes of one character); the count comes from what was asked for.
        return Sample(max_tokens, times[0], times[-1])


async def measure(directory: Path, max_tokens: int, rounds: int) -> dict[str, object]:
    async with AsyncExitStack() as stack:
        reference = await stack.enter_async_context(Reference(directory))
        embedded = await stack.enter_async_context(Embedded(directory))
        http = await stack.enter_async_context(Http(directory))
        prompt = (await embedded.engine.tokenize({"model": str(directory), "text": PROMPT})).tokens
        paths: dict[str, Path_] = {"mlx_lm": reference.run, "engine": embedded.run, "http": http.run}
        rates: dict[str, list[float]] = {name: [] for name in paths}
        for number in range(rounds + 1):
            for name, run in paths.items():
                sample = await run(prompt, max_tokens)
                if sample.tokens < max_tokens:
                    raise SystemExit(
                        f"{name} ended after {sample.tokens} of {max_tokens} tokens: choose another prompt"
                    )
                if number > 0:  # the first round warms up
                    rates[name].append(sample.tokens_per_second)
            if number > 0:
                print(f"round {number}: " + "  ".join(f"{n} {r[-1]:.1f}" for n, r in rates.items()), file=sys.stderr)
    return {
        "model": directory.name,
        "tokens": max_tokens,
        "rounds": rounds,
        "tokens_per_second": {name: round(statistics.median(values), 2) for name, values in rates.items()},
        "ratio_to_mlx_lm": {
            name: round(statistics.median(a / b for a, b in zip(rates[name], rates["mlx_lm"], strict=True)), 4)
            for name in ("engine", "http")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tiny", action="store_true", help="a random two-layer model instead, made on the spot")
    parser.add_argument("--tokens", type=int, default=None, help="default: 64, with --tiny 256")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tokens = arguments.tokens or (256 if arguments.tiny else 64)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.tiny:
            directory = Path(scratch) / "tiny"
            subprocess.run([sys.executable, "-m", "tests.tiny_models", str(directory)], cwd=HERE.parent, check=True)
        else:
            directory = prepare(parse_reference(arguments.model), lambda _: None)
        result = asyncio.run(measure(directory, tokens, arguments.rounds))
    if arguments.json:
        print(json.dumps(result))
    else:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
