"""What a generated token costs the worker beside MLX: microseconds of its main thread, by what it is doing.

    python benchmarks/token_cost.py                       # a random two-layer model with 512 tokens
    python benchmarks/token_cost.py --model smollm2-135m --steps 40 --rounds 3
    python benchmarks/token_cost.py --json

The real worker, put together as always, in this process: it loads a model, takes requests from its inbox, and writes
frames into a socket that another process empties. The classes it is made of are replaced by subclasses that look at the
clock when a method begins and ends; a part's time is without the parts that it calls. Only steps in which all
sequences decode are counted, and of those the median, so that other work on the machine shows as little as possible.
Every request has one stop string. Looking at the clock costs about 0.3 us a part, and there are about 3 of them a token
and 10 a step: that much is the measurement's own.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_serving.catalog.store import cache_directory
from mlx_serving.machine import blas
from peers import model_directory

SIZES = (1, 16)
SAMPLINGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "greedy": [{"temperature": 0.0}],
    "mixed": [*[{"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1}] * 3, {"temperature": 0.0}],
}
PROMPT_TOKENS = 24
STOP = "~#~"
WARM_UP_STEPS = 64

DEVICE, FORWARD = "device (waiting for MLX)", "forward pass (mlx-lm and MLX building the graph)"
PARTS = (
    "loop",
    "scheduler",
    "step",
    "batch",
    "sampler",
    "sequence",
    "detokenizer",
    "stop matcher",
    "frame",
)
"""What is ours, from the outside in. `batch` includes reading the tokens, which are there by then."""


class Stopwatch:
    """Whose turn it is, and how long each has had it, in seconds."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._turns = [PARTS[0]]
        self._since = time.perf_counter()

    def push(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[self._turns[-1]] += now - self._since
        self._turns.append(name)
        self._since = time.perf_counter()

    def pop(self) -> None:
        now = time.perf_counter()
        self.seconds[self._turns.pop()] += now - self._since
        self._since = time.perf_counter()

    def watch(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.push(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.pop()

        return watched

    def subclass(self, cls: Any, **parts: str) -> Any:
        """`cls` with these methods watched."""
        return type(cls.__name__, (cls,), {name: self.watch(getattr(cls, name), part) for name, part in parts.items()})

    def replace(self, cls: type, **parts: str) -> None:
        """Let the worker's modules make objects of a watched subclass of `cls`, wherever they know it."""
        substitute(cls, self.subclass(cls, **parts))


def substitute(cls: type, replacement: Any) -> None:
    for name, module in tuple(sys.modules.items()):
        if name.startswith("mlx_serving.worker.") and vars(module).get(cls.__name__) is cls:
            setattr(module, cls.__name__, replacement)


class Worker:
    """One worker whose time is watched. Call `run` on the thread that made it."""

    def __init__(self, model: Path) -> None:
        import mlx.core as mx

        from mlx_serving.core.scheduler import Scheduler
        from mlx_serving.core.text import IncrementalDetokenizer, StopMatcher
        from mlx_serving.worker import assemble
        from mlx_serving.worker.generation import Generation
        from mlx_serving.worker.model_runner import ModelRunner
        from mlx_serving.worker.pipe import Outbox
        from mlx_serving.worker.sampling.sampler import BatchSampler
        from mlx_serving.worker.sequence import RunningSequence

        self._model = model
        self._assemble: Any = assemble
        self.watch = watch = Stopwatch()
        self._sequences = self._in_flight = self._steps = 0
        self._counted: list[Mapping[str, float]] = []
        watch.replace(Scheduler, schedule="scheduler", update="scheduler", expire="scheduler")
        watch.replace(Outbox, notify="frame")
        watch.replace(BatchSampler, __init__="sampler", __call__="sampler")
        watch.replace(RunningSequence, accept="sequence")
        watch.replace(IncrementalDetokenizer, add="detokenizer", finish="detokenizer")
        watch.replace(StopMatcher, feed="stop matcher", finish="stop matcher")
        for name in ("eval", "async_eval"):
            setattr(mx, name, watch.watch(getattr(mx, name), DEVICE))
        self._watch_runner(ModelRunner)
        self._watch_steps(Generation)

    def _watch_runner(self, cls: type) -> None:
        watch = self.watch
        runner_class = watch.subclass(cls, run="batch")
        watched: set[type] = set()

        def make(model: Any, *args: Any) -> Any:
            if model.__class__ not in watched:
                model.__class__ = watch.subclass(model.__class__, __call__=FORWARD)
                watched.add(model.__class__)
            return runner_class(model, *args)

        substitute(cls, make)

    def _watch_steps(self, cls: type) -> None:
        generation_class: Any = self.watch.subclass(cls, step="step")
        worker = self

        class Generation(generation_class):
            def step(self) -> Any:
                worker.begin_step(len(self))
                return generation_class.step(self)

        substitute(cls, Generation)

    def begin_step(self, in_flight: int) -> None:
        """Keep what the step before took, if it was one of all sequences, and not of the first."""
        self.watch.push("measuring")
        self._steps = self._steps + 1 if in_flight == self._in_flight else 0
        self._in_flight = in_flight
        if in_flight == self._sequences and self._steps > WARM_UP_STEPS:
            self._counted.append(self.watch.seconds)
        self.watch.seconds = defaultdict(float)
        self.watch.pop()

    def run(self, sequences: int, sampling: str, steps: int) -> dict[str, float]:
        """Microseconds a token of each part, and of all of it as `total`: of the step in the middle."""
        from mlx_serving.wire import methods
        from mlx_serving.wire.settings import WorkerSettings

        self._sequences, self._steps, self._counted = sequences, 0, []
        chosen = SAMPLINGS[sampling]
        ours, theirs = socket.socketpair()
        with theirs, subprocess.Popen(["cat"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL) as reader, ours:
            theirs.close()
            # The real worker, of the classes that were replaced.
            worker = self._assemble.assemble(WorkerSettings(), ours.fileno(), blas.find(), linger=True)
            requests: list[tuple[str, object]] = [
                ("runtime/info", methods.RuntimeInfoParams([methods.STEP_FRAMES, methods.PROTOCOL_VERSION])),
                ("load_model", methods.LoadModelParams(model_id=str(self._model))),
            ]
            requests += [
                (
                    "generate",
                    methods.GenerateParams(
                        model_id=str(self._model),
                        stream_id=str(row),
                        prompt_tokens=[(7 * row + 3 * i + 1) % 250 for i in range(PROMPT_TOKENS + row)],
                        max_tokens=2 * WARM_UP_STEPS + steps + sequences,
                        stop_sequences=[STOP],
                        **chosen[row % len(chosen)],
                    ),
                )
                for row in range(sequences)
            ]
            self._serve(worker, requests)
            worker.outbox.flush(10)
            ours.shutdown(socket.SHUT_RDWR)
            reader.wait()
        cost = {
            name: statistics.median(step[name] for step in self._counted) / sequences * 1e6
            for name in (*PARTS, FORWARD, DEVICE)
        }
        return {**cost, "total": statistics.median(sum(step.values()) for step in self._counted) / sequences * 1e6}

    def _serve(self, worker: Any, requests: Sequence[tuple[str, object]]) -> None:
        from mlx_serving.wire import jsonrpc
        from mlx_serving.wire.framing import Line
        from mlx_serving.worker.pipe import EndOfInput

        for number, (method, params) in enumerate(requests):
            worker.inbox.put(Line(jsonrpc.encode_request(method, params, number).rstrip()))
        worker.inbox.put(EndOfInput())
        worker.loop.run(worker.handlers)


def measure(model: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    worker = Worker(model)
    results: list[dict[str, Any]] = []
    for sampling in SAMPLINGS:
        for size in SIZES:
            runs = [worker.run(size, sampling, arguments.steps) for _ in range(arguments.rounds + 1)][1:]
            cost = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
            ours = round(statistics.median(sum(run[part] for part in PARTS) for run in runs), 2)
            results.append({"sampling": sampling, "sequences": size, "us_per_token": cost, "ours": ours})
            print(f"{sampling} {size}: {ours} us a token are ours, of {cost['total']}", file=sys.stderr)
    return results


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, in microseconds a token."""
    lines = ["| us a token | " + " | ".join(f"{one['sampling']}, {one['sequences']}" for one in results) + " |"]
    lines.append("|---|" + "---|" * len(results))
    for name in PARTS:
        lines.append(f"| {name} | " + " | ".join(f"{one['us_per_token'][name]:.1f}" for one in results) + " |")
    lines.append("| **beside MLX** | " + " | ".join(f"**{one['ours']:.1f}**" for one in results) + " |")
    for name in (FORWARD, DEVICE, "total"):
        lines.append(f"| {name} | " + " | ".join(f"{one['us_per_token'][name]:.1f}" for one in results) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: a random two-layer model, made on the spot")
    parser.add_argument("--steps", type=int, default=500, help="steps that are counted in each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    blas.settle(cache_directory() / "blas")
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(model_directory(arguments.model, Path(scratch)), arguments)
    print(json.dumps({"model": arguments.model or "tiny", "results": results}) if arguments.json else table(results))


if __name__ == "__main__":
    main()
