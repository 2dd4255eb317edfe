"""Prompts that arrive together, from the request to the last token: the worker against mlx-lm's `BatchGenerator`.

    python benchmarks/prefill.py                   # a random two-layer model, where everything but arithmetic shows
    python benchmarks/prefill.py --model smollm2-135m --tokens 16 --rounds 5
    python benchmarks/prefill.py --json

Both in this process, greedy. Prompts are of one length (64 tokens), or of different ones (5 to 64). A round runs each
side once, in turn; figures are medians of tokens a second, from the request to the last token, and of the ratio ours /
mlx-lm's within a round. Ours is all that the worker does but the pipe: scheduler, step, detokenizer, frames; mlx-lm's
side computes tokens only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.reference import parse_reference
from mlx_serving.catalog.store import cache_directory
from mlx_serving.machine import blas

SIZES = (1, 8, 16)
LONGEST, SHORTEST = 64, 5


class Ours:
    def __init__(self, directory: Path) -> None:
        from mlx_serving.core.generation import SamplingParams
        from mlx_serving.core.sampling_defaults import SamplingDefaults, resolve
        from mlx_serving.core.schedule.scheduling import SchedulerPolicy
        from mlx_serving.core.scheduler import Scheduler
        from mlx_serving.wire.methods import LoadModelParams
        from mlx_serving.worker.generation import Generation
        from mlx_serving.worker.loading import loader
        from mlx_serving.worker.model_runner import ModelRunner

        params = LoadModelParams(model_id=str(directory))
        self.model = loader.load(params, ModelRunner, lambda stage, done, total: None)
        self._generation = Generation(Scheduler(SchedulerPolicy()))
        self._generation.models.add(self.model)
        self._sampling = resolve(SamplingParams(temperature=0.0), {}, SamplingDefaults())

    def run(self, prompts: Sequence[list[int]], tokens: int) -> float:
        from mlx_serving.worker.job import Job, Terms
        from mlx_serving.worker.sequence import Ending, RunningSequence

        began = time.perf_counter()
        for number, prompt in enumerate(prompts):
            name = str(number)
            sequence = RunningSequence(name, prompt, Ending(tokens, (), ()), self.model.decode, began)
            job = Job(name, prompt, self._sampling, 0)
            self._generation.submit(self.model, sequence, job, Terms(tokens))
        while len(self._generation):
            self._generation.step()
        return len(prompts) * tokens / (time.perf_counter() - began)


class Theirs:
    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, prompts: Sequence[list[int]], tokens: int) -> float:
        from mlx_lm.generate import BatchGenerator

        size = max(SIZES)
        generator = BatchGenerator(self._model, completion_batch_size=size, prefill_batch_size=size)
        began = time.perf_counter()
        generator.insert([list(prompt) for prompt in prompts], [tokens] * len(prompts))
        left = len(prompts)
        while left:
            left -= sum(response.finish_reason is not None for response in generator.next()[1])
        rate = len(prompts) * tokens / (time.perf_counter() - began)
        generator.close()
        return rate


def prompts_of(kind: str, count: int) -> list[list[int]]:
    lengths = [LONGEST] * count
    if kind == "different":
        step = (LONGEST - SHORTEST) / max(1, count - 1)
        lengths = [round(SHORTEST + step * (7 * number % count)) for number in range(count)]
    return [[(7 * row + 3 * i + 1) % 250 for i in range(length)] for row, length in enumerate(lengths)]


def measure(directory: Path, tokens: int, rounds: int) -> list[dict[str, object]]:
    ours = Ours(directory)
    theirs = Theirs(ours.model.model)
    results: list[dict[str, object]] = []
    for kind in ("equal", "different"):
        for size in SIZES:
            prompts = prompts_of(kind, size)
            pairs: list[tuple[float, float]] = []
            for number in range(rounds + 1):
                pair = (ours.run(prompts, tokens), theirs.run(prompts, tokens))
                if number > 0:  # the first round warms up
                    pairs.append(pair)
            results.append(
                {
                    "lengths": kind,
                    "prompts": size,
                    "tokens_per_second": round(statistics.median(pair[0] for pair in pairs), 1),
                    "mlx_lm_tokens_per_second": round(statistics.median(pair[1] for pair in pairs), 1),
                    "ratio": round(statistics.median(pair[0] / pair[1] for pair in pairs), 3),
                }
            )
            print(json.dumps(results[-1]), file=sys.stderr)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: a random two-layer model, made on the spot")
    parser.add_argument("--tokens", type=int, default=64, help="of each reply")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    blas.settle(cache_directory() / "blas")
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model is None:
            directory = Path(scratch) / "tiny"
            root = Path(__file__).parent.parent
            subprocess.run([sys.executable, "-m", "tests.tiny_models", str(directory)], cwd=root, check=True)
        else:
            directory = prepare(parse_reference(arguments.model), lambda _: None)
        results = measure(directory, arguments.tokens, arguments.rounds)
    print(json.dumps(results) if arguments.json else json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
