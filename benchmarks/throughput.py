"""Decoding many sequences at once: the worker's own step against mlx-lm's `BatchGenerator`, both in this process.

    python benchmarks/throughput.py                   # a random two-layer model, where everything but arithmetic shows
    python benchmarks/throughput.py --model smollm2-135m --tokens 32 --rounds 5
    python benchmarks/throughput.py --sampling mixed --sequences 4 16 --json

For 1, 4, 8 and 16 sequences of different lengths, greedy and with temperature, top-p and repetition penalty mixed with
greedy rows: three in four are drawn. A round runs each side once, and the side that goes first changes from round to
round; time counts from the first token of the last sequence on. Figures are medians of tokens a second and of the ratio
ours / mlx-lm's within a round. Both sides compute tokens only: no text, no pipe.
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

SAMPLING = ("greedy", "mixed")
SIZES = (1, 4, 8, 16)
PROMPT_TOKENS = 24
WARM_UP_STEPS = 4


def ours(model: Any, prompts: Sequence[list[int]], sampled: Sequence[bool], tokens: int) -> float:
    from mlx_serving.core.schedule.scheduling import PrefillChunk
    from mlx_serving.worker.job import Job
    from mlx_serving.worker.loading.capabilities import probe
    from mlx_serving.worker.model_runner import ModelRunner

    runner = ModelRunner(model, probe(model))
    ids = [str(index) for index in range(len(prompts))]
    chunks: list[PrefillChunk] = []
    for stream_id, prompt, draw in zip(ids, prompts, sampled, strict=True):
        runner.open(Job(stream_id, prompt, _sampling(draw), int(stream_id)))
        runner.admit(stream_id)
        chunks.append(PrefillChunk(stream_id, 0, len(prompt), True))
    runner.run((), chunks, ())
    for _ in range(WARM_UP_STEPS):
        runner.run(ids, (), ())
    began = time.perf_counter()
    for _ in range(tokens):
        runner.run(ids, (), ())
    return len(prompts) * tokens / (time.perf_counter() - began)


def theirs(model: Any, prompts: Sequence[list[int]], sampled: Sequence[bool], tokens: int) -> float:
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_logits_processors, make_sampler

    generator = BatchGenerator(model, completion_batch_size=len(prompts), prefill_batch_size=len(prompts))
    choices: dict[str, Any] = {}
    if any(sampled):
        choices = {
            "samplers": [make_sampler(0.8, top_p=0.95) if draw else make_sampler(0.0) for draw in sampled],
            "logits_processors": [make_logits_processors(repetition_penalty=1.1 if draw else None) for draw in sampled],
        }
    generator.insert([list(prompt) for prompt in prompts], [1 << 30] * len(prompts), **choices)
    while len(generator.next()[1]) < len(prompts):
        pass
    for _ in range(WARM_UP_STEPS):
        generator.next()
    began = time.perf_counter()
    for _ in range(tokens):
        generator.next()
    rate = len(prompts) * tokens / (time.perf_counter() - began)
    generator.close()
    return rate


def _sampling(draw: bool) -> Any:
    from mlx_serving.core.generation import SamplingParams
    from mlx_serving.core.sampling_defaults import SamplingDefaults, resolve

    params = (
        SamplingParams(temperature=0.8, top_p=0.95, repetition_penalty=1.1) if draw else SamplingParams(temperature=0.0)
    )
    return resolve(params, {}, SamplingDefaults())


def measure(
    directory: Path, kinds: Sequence[str], sizes: Sequence[int], tokens: int, rounds: int
) -> list[dict[str, object]]:
    from mlx_lm.utils import load_model

    model, _ = load_model(directory)
    results: list[dict[str, object]] = []
    for kind in kinds:
        for size in sizes:
            prompts = [[(7 * row + 3 * i + 1) % 250 for i in range(PROMPT_TOKENS + row)] for row in range(size)]
            sampled = [kind == "mixed" and (row % 4 != 3) for row in range(size)]
            pairs: list[tuple[float, float]] = []
            for number in range(rounds + 1):
                rates: dict[Any, float] = {}
                for side in (ours, theirs) if number % 2 else (theirs, ours):
                    rates[side] = side(model, prompts, sampled, tokens)
                if number > 0:  # the first round warms up
                    pairs.append((rates[ours], rates[theirs]))
            results.append(
                {
                    "sampling": kind,
                    "sequences": size,
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
    parser.add_argument("--sampling", nargs="+", choices=SAMPLING, default=SAMPLING)
    parser.add_argument("--sequences", nargs="+", type=int, default=SIZES, metavar="N")
    parser.add_argument("--tokens", type=int, default=128, help="steps to time in each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    blas.settle(cache_directory() / "blas")
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.model is None:
            directory = Path(scratch) / "tiny"
            command = [sys.executable, "-m", "tests.tiny_models", str(directory)]
            subprocess.run(command, cwd=Path(__file__).parent.parent, check=True)
        else:
            directory = prepare(parse_reference(arguments.model), lambda _: None)
        results = measure(directory, arguments.sampling, arguments.sequences, arguments.tokens, arguments.rounds)
    if arguments.json:
        print(json.dumps({"model": arguments.model or "tiny", "results": results}))
    else:
        print("  ".join(name.rjust(9) for name in ("sampling", "sequences", "tokens/s", "mlx-lm's", "ratio")))
        for row in results:
            print(
                "{sampling:8}  {sequences:9}  {tokens_per_second:8}  {mlx_lm_tokens_per_second:8}  {ratio:5}".format(
                    **row
                )
            )


if __name__ == "__main__":
    main()
