"""Eight clients over HTTP, streaming: our server against `mlx_lm.server`, and against `BatchGenerator` without HTTP.

    python benchmarks/http_throughput.py                          # a random two-layer model with 512 tokens
    python benchmarks/http_throughput.py --model smollm2-135m --tokens 32 --requests 8 --rounds 3

Each client sends its next request when the last one is answered; all is greedy. A round runs each side once, in an
order that changes; rates are output tokens a second from the first request to the last answer, prefill included.
Figures are medians over the rounds, of the rates and of the ratios within a round, and of the processor time that each
side takes for a token in all its processes; the client's is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from mlx_serving.bench.prompts import make_prompts
from peers import HERE, counter, cpu_seconds, forbidden_ends, mlx_lm_server, model_directory, our_server, rate

PROMPT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Side:
    """What is measured: `rate` gives the tokens a second for these prompts, `pid` is the process that does the work."""

    pid: int
    rate: Callable[[Sequence[str]], Awaitable[float]]


class BatchReference:
    """mlx-lm's `BatchGenerator` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())

    async def rate(self, prompts: Sequence[str], tokens: int, concurrency: int) -> float:
        assert self._process.stdin is not None
        job = {"prompts": list(prompts), "max_tokens": tokens, "concurrency": concurrency}
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        done = await self.answer()
        return done["tokens"] / done["seconds"]


@asynccontextmanager
async def batch_reference(model: Path) -> AsyncGenerator[BatchReference]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "batch_reference.py"), str(model), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        reference = BatchReference(process)
        await reference.answer()
        yield reference
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def measure(model: Path, arguments: argparse.Namespace) -> dict[str, object]:
    tokens, concurrency = arguments.tokens, arguments.concurrency
    extra = forbidden_ends(arguments.model, model)
    async with (
        our_server([model], extra) as ours,
        mlx_lm_server(model, extra) as theirs,
        batch_reference(model) as reference,
    ):
        sides: dict[str, Side] = {
            "mlx_serving": Side(ours.pid, lambda prompts: rate(ours.target, prompts, tokens, concurrency)),
            "mlx_lm_server": Side(theirs.pid, lambda prompts: rate(theirs.target, prompts, tokens, concurrency)),
            "batch_generator": Side(reference.pid, lambda prompts: reference.rate(prompts, tokens, concurrency)),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(arguments.rounds + 1):
            prompts = await make_prompts(arguments.requests, PROMPT_TOKENS, str(number), count_tokens=counter(model))
            for name in list(sides) if number % 2 else reversed(list(sides)):
                before = cpu_seconds(sides[name].pid)
                measured = await sides[name].rate(prompts)
                if number > 0:  # the first round warms up
                    rates[name].append(measured)
                    spent = cpu_seconds(sides[name].pid) - before
                    cpu[name].append(spent / (arguments.requests * tokens) * 1e6)
            if number > 0:
                print(f"round {number}: " + "  ".join(f"{n} {r[-1]:.0f}" for n, r in rates.items()), file=sys.stderr)
    return {
        "model": arguments.model or "tiny",
        "clients": concurrency,
        "rounds": arguments.rounds,
        "output_tokens_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "cpu_us_per_token": {name: round(statistics.median(values), 1) for name, values in cpu.items()},
        "ratio_to": {
            name: round(statistics.median(a / b for a, b in zip(rates["mlx_serving"], rates[name], strict=True)), 3)
            for name in ("mlx_lm_server", "batch_generator")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: a random two-layer model, made on the spot")
    parser.add_argument("--concurrency", type=int, default=8, help="clients")
    parser.add_argument("--requests", type=int, default=32, help="in a round")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = uvloop.run(measure(model_directory(arguments.model, Path(scratch)), arguments))
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
