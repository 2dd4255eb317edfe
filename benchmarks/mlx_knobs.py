"""What MLX's own knobs do here: each against the way the worker has it, in one run, as a ratio of times.

    python benchmarks/mlx_knobs.py                          # the embedded model
    python benchmarks/mlx_knobs.py --model DIRECTORY --rounds 9 --knob read-ahead --knob depth

read-ahead   a cold load (the page cache is told to forget the files) as it is; after asking the system to read the
             files ahead; with a thread that reads them while they are loaded
buffers      decoding, with as many freed buffers kept for reuse as the worker allows; with none; with no bound
depth        decoding, with the next step launched before the last one is looked at; with each awaited; two ahead
streams      two models that decode in turns, on one stream; on a stream each
commands     decoding, with MLX's own number of operations and MiB in a command buffer; with others (Metal only)
wired        decoding, with the weights wired; without (Metal only)

A knob that needs Metal is said to be skipped elsewhere. Rounds of all ways of a knob alternate, medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.reference import parse_reference
from mlx_serving.machine import blas, page_cache

_COMMANDS: Mapping[str, Mapping[str, str]] = {
    "as it is": {},
    "8 operations": {"MLX_MAX_OPS_PER_BUFFER": "8"},
    "200 operations": {"MLX_MAX_OPS_PER_BUFFER": "200"},
    "200 operations, 400 MiB": {"MLX_MAX_OPS_PER_BUFFER": "200", "MLX_MAX_MB_PER_BUFFER": "400"},
}
Ways = Mapping[str, Callable[[], float]]


class Bench:
    """Times are seconds."""

    def __init__(self, directory: Path, steps: int) -> None:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.utils import load_model

        self.mx: Any = mx
        self._load: Any = load_model
        self._make_cache: Any = make_prompt_cache
        self.directory = directory
        self.steps = steps
        self.files = sorted(directory.glob("*.safetensors"))
        self.model = self.loaded()

    def loaded(self) -> Any:
        model = self._load(self.directory, lazy=True)[0]
        self.mx.eval(model.parameters())
        return model

    def cold_load(self, before: Callable[[], None]) -> float:
        if not all(page_cache.drop(file) for file in self.files):
            raise SystemExit("read-ahead: this system cannot be told to forget files")
        began = time.perf_counter()
        before()
        self.loaded()
        return time.perf_counter() - began

    def advise(self) -> None:
        for file in self.files:
            page_cache.advise(file)

    def read_beside(self) -> None:
        def read() -> None:
            for file in self.files:
                page_cache.read_into(file, lambda count: True)

        threading.Thread(target=read, daemon=True).start()

    def decode(self, depth: int = 1) -> float:
        """A greedy stream; `depth` steps are launched before the first of them is awaited."""
        return self.decode_in_turns([self.model], [None], depth)

    def decode_in_turns(self, models: Sequence[Any], streams: Sequence[Any], depth: int = 1) -> float:
        mx = self.mx
        rows = [
            [model, self._make_cache(model), mx.array([[1]]), stream]
            for model, stream in zip(models, streams, strict=True)
        ]
        launched: list[Any] = []
        began = time.perf_counter()
        for step in range(self.steps + 4):
            if step == 4:
                for token in launched:
                    mx.eval(token)
                launched, began = [], time.perf_counter()
            for row in rows:
                model, cache, token, stream = row
                with mx.stream(stream or mx.default_stream(mx.default_device())):
                    row[2] = mx.argmax(model(token, cache=cache)[:, -1:], axis=-1)
                    mx.async_eval(row[2])
                launched.append(row[2])
            while len(launched) > depth * len(rows):
                launched.pop(0).item()
        for token in launched:
            mx.eval(token)
        return time.perf_counter() - began

    def with_cache_limit(self, limit: int) -> float:
        before = self.mx.set_cache_limit(limit)
        self.mx.clear_cache()
        try:
            return self.decode()
        finally:
            self.mx.set_cache_limit(before)

    def with_wired_limit(self, limit: int) -> float:
        before = self.mx.set_wired_limit(limit)
        try:
            return self.decode()
        finally:
            self.mx.set_wired_limit(before)

    def ways(self, knob: str) -> Ways | str:
        """What is compared, its reference first; or why it cannot be."""
        mx = self.mx
        match knob:
            case "read-ahead":
                return {
                    "as it is": lambda: self.cold_load(lambda: None),
                    "advised": lambda: self.cold_load(self.advise),
                    "read by a thread": lambda: self.cold_load(self.read_beside),
                }
            case "buffers":
                return {
                    "2 GiB": lambda: self.with_cache_limit(2 << 30),
                    "none": lambda: self.with_cache_limit(0),
                    "no bound": lambda: self.with_cache_limit(1 << 50),
                }
            case "depth":
                return {"1": lambda: self.decode(1), "0": lambda: self.decode(0), "2": lambda: self.decode(2)}
            case "streams":
                other, device = self.loaded(), mx.default_device()
                two = [mx.new_stream(device), mx.new_stream(device)]
                return {
                    "one": lambda: self.decode_in_turns([self.model, other], [None, None]),
                    "two": lambda: self.decode_in_turns([self.model, other], two),
                }
            case "commands" if mx.metal.is_available():
                return {
                    name: lambda name=name: _in_child(self.directory, self.steps, _COMMANDS[name]) for name in _COMMANDS
                }
            case "wired" if mx.metal.is_available():
                working_set = int(mx.device_info()["max_recommended_working_set_size"])
                return {
                    "wired": lambda: self.with_wired_limit(working_set),
                    "not wired": lambda: self.with_wired_limit(0),
                }
            case _:
                return "skipped: needs Metal"


def _in_child(directory: Path, steps: int, variables: Mapping[str, str]) -> float:
    """MLX reads these variables once, when its first command buffer is made."""
    ended = subprocess.run(
        [sys.executable, __file__, "--model", str(directory), "--steps", str(steps), "--decode-once"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(ended.stdout)


def compare(ways: Ways, rounds: int) -> dict[str, object]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, measure in ways.items():
            seconds = measure()
            if round_number:  # the first one warms up
                times[name].append(seconds)
    medians = {name: statistics.median(found) for name, found in times.items()}
    reference = next(iter(medians.values()))
    return {
        name: {"seconds": round(median, 4), "ratio": round(median / reference, 3)} for name, median in medians.items()
    }


def main() -> None:
    knobs = ("read-ahead", "buffers", "depth", "streams", "commands", "wired")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24, help="tokens of a stream in a round")
    parser.add_argument("--knob", action="append", choices=knobs, default=[])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--decode-once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    directory = prepare(parse_reference(arguments.model), lambda step: None)
    bench = Bench(directory, arguments.steps)
    if arguments.decode_once:
        bench.decode()
        print(bench.decode())
        return
    found: dict[str, object] = {}
    for knob in arguments.knob or knobs:
        ways = bench.ways(knob)
        found[knob] = ways if isinstance(ways, str) else compare(ways, arguments.rounds)
        if not arguments.json:
            print(knob, json.dumps(found[knob], indent=2), sep=": ", flush=True)
    if arguments.json:
        print(json.dumps(cast("object", found)))


if __name__ == "__main__":
    blas.settle(Path.home() / ".cache" / "mlx-serving" / "blas")
    main()
