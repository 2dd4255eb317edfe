"""What it costs running streams that what they compute is written to disk, behind them.

    python benchmarks/write_behind.py                       # a random two-layer model
    python benchmarks/write_behind.py --layers 24 --width 512 --tokens 300    # with more to write for each token
    python benchmarks/write_behind.py --model smollm2-135m --tokens 280 --rounds 3
    python benchmarks/write_behind.py --json

The worker's step, without its pipe, in this process: streams of fresh prompts decode to their end, once with the prefix
cache in memory only and once with its folder on disk, in turns, after a round that warms up. Figures are medians over
rounds, ratios those of one round: with the disk to without.

    rate           tokens a second, from the first step to the last
    step_cpu       processor time of the thread that makes the steps
    process_cpu    processor time of the whole process, until the last byte is written
    longest_steps  the step that one in a hundred is longer than
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.reference import parse_reference
from mlx_serving.catalog.store import cache_directory
from mlx_serving.machine import blas

SIZES = (1, 8)
PROMPT_TOKENS = 64
VOCABULARY = 250
PATIENCE_S = 60.0


class Worker:
    """Call it on the thread that made it. Without a `folder` it keeps nothing on disk."""

    def __init__(self, directory: Path, folder: Path | None) -> None:
        from mlx_serving.core.generation import SamplingParams
        from mlx_serving.core.prefix.disk import DiskPolicy
        from mlx_serving.core.prefix.index import PrefixCachePolicy
        from mlx_serving.core.sampling_defaults import SamplingDefaults, resolve
        from mlx_serving.core.schedule.scheduling import SchedulerPolicy
        from mlx_serving.core.scheduler import Scheduler
        from mlx_serving.wire.methods import LoadModelParams
        from mlx_serving.worker.generation import Generation
        from mlx_serving.worker.loading import loader
        from mlx_serving.worker.loop import Inbox
        from mlx_serving.worker.model_runner import ModelRunner
        from mlx_serving.worker.prefix.cache import PrefixCache
        from mlx_serving.worker.prefix.disk import PrefixDisk
        from mlx_serving.worker.prefix.files import PrefixFiles

        def report(what: str, *, path: str, reason: str, count: int = 1) -> None:
            raise SystemExit(f"{path}: {what}: {reason}")

        params = LoadModelParams(model_id=str(directory))
        self._model = loader.load(params, ModelRunner, lambda stage, done, total: None)
        prefixes = PrefixCache(PrefixCachePolicy(memory_bytes=1 << 30))
        scheduler = Scheduler(SchedulerPolicy(), prefixes)
        self._generation = Generation(scheduler, prefixes)
        self._generation.models.add(self._model)
        self._sampling = resolve(SamplingParams(temperature=0.0), {}, SamplingDefaults())
        self._inbox = Inbox()
        self.disk = None
        if folder is not None:
            files = PrefixFiles(folder, DiskPolicy(), self._inbox.put, self._inbox.wake, report)
            self.disk = PrefixDisk(files, folder, prefixes, scheduler.prefill_s, self._inbox.put)
            self.disk.add_model(self._model)

    def run(self, streams: int, tokens: int, draw: random.Random) -> Mapping[str, float]:
        from mlx_serving.worker.job import Job, Terms
        from mlx_serving.worker.sequence import Ending, RunningSequence

        self._obey()
        began, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
        for number in range(streams):
            name = str(number)
            prompt = [draw.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)]
            sequence = RunningSequence(name, prompt, Ending(tokens, (), ()), self._model.decode, began)
            self._generation.submit(self._model, sequence, Job(name, prompt, self._sampling, 0), Terms(tokens))
        steps: list[float] = []
        while len(self._generation):
            since = time.perf_counter()
            self._obey()
            self._generation.step()
            if self.disk is not None and self.disk.is_due:
                self.disk.work()
            steps.append(time.perf_counter() - since)
        seconds, thread_s = time.perf_counter() - began, time.thread_time() - thread
        if self.disk is not None:
            self.disk.flush(PATIENCE_S)
        return {
            "rate": streams * tokens / seconds,
            "step_cpu": thread_s,
            "process_cpu": time.process_time() - process,
            "longest_steps": sorted(steps)[len(steps) * 99 // 100],
        }

    def _obey(self) -> None:
        for command in self._inbox.take(0):
            assert callable(command)
            command()

    def settle(self) -> None:
        """Until the folder was looked into, so that it is written to."""
        if self.disk is not None:
            self.disk.flush(PATIENCE_S)
            self._obey()
            self.disk.flush(PATIENCE_S)


def measure(directory: Path, folder: Path, tokens: int, rounds: int) -> list[dict[str, object]]:
    workers = {"memory": Worker(directory, None), "disk": Worker(directory, folder)}
    for worker in workers.values():
        worker.settle()
    draw = random.Random(0)
    results: list[dict[str, object]] = []
    for streams in SIZES:
        pairs: list[Mapping[str, Mapping[str, float]]] = []
        for number in range(rounds + 1):
            order = sorted(workers, reverse=bool(number % 2))
            pair = {name: workers[name].run(streams, tokens, draw) for name in order}
            if number > 0:  # the first round warms up
                pairs.append(pair)
        result: dict[str, object] = {"streams": streams, "tokens": tokens}
        for figure in pairs[0]["disk"]:
            ratios = [pair["disk"][figure] / pair["memory"][figure] for pair in pairs]
            result[figure] = round(statistics.median(ratios), 3)
        result["tokens_per_second"] = round(statistics.median(pair["disk"]["rate"] for pair in pairs), 1)
        results.append(result)
        print(json.dumps(result), file=sys.stderr)
    disk = workers["disk"].disk
    assert disk is not None
    results.append({"records_written": disk.telemetry().written, "given_up": disk.telemetry().given_up})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: a random model, made on the spot")
    parser.add_argument("--layers", type=int, default=2, help="of the random model")
    parser.add_argument("--width", type=int, default=64, help="of the random model")
    parser.add_argument("--tokens", type=int, default=700, help="of each reply")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="to write to, on the disk in question (default: a temporary one)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    blas.settle(cache_directory() / "blas")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        if arguments.model is None:
            directory = Path(scratch) / "tiny"
            shape = ["--layers", str(arguments.layers), "--width", str(arguments.width)]
            maker = [sys.executable, "-m", "tests.tiny_models", str(directory), "--printable", *shape]
            subprocess.run(maker, cwd=Path(__file__).parent.parent, check=True)
        else:
            directory = prepare(parse_reference(arguments.model), lambda _: None)
        results = measure(directory, Path(scratch) / "prefixes", arguments.tokens, arguments.rounds)
    print(json.dumps(results) if arguments.json else json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
