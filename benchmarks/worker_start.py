"""How long a worker takes until it has loaded a model: its first start on a machine, and later ones.

    python benchmarks/worker_start.py                     # a random two-layer model: what is left is the start itself
    python benchmarks/worker_start.py --model DIRECTORY --rounds 9

A round starts one worker that remembers nothing (an empty cache directory) and one that finds there what an earlier one
left; the ratio is the median over the rounds. Between the death of a worker and the next token of its streams lies such
a start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlx_serving.catalog.store import CACHE_VARIABLE
from peers import model_directory


def seconds(model: Path, cache: str) -> float:
    """From the start of the process until its model is loaded."""
    request = {"jsonrpc": "2.0", "id": 1, "method": "load_model", "params": {"model_id": str(model)}}
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "mlx_serving.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, CACHE_VARIABLE: cache},
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(request).encode() + b"\n")
        worker.stdin.flush()
        answer = next(message for line in worker.stdout if (message := json.loads(line)).get("id") == 1)
        elapsed = time.perf_counter() - begun
        assert answer["result"]["state"] == "ready"
        worker.stdin.close()
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a directory or a served name (default: a random two-layer llama)")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as warm:
        model = model_directory(arguments.model, Path(scratch))
        seconds(model, warm)
        first: list[float] = []
        later: list[float] = []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as empty:
                first.append(seconds(model, empty))
            later.append(seconds(model, warm))
    ratio = statistics.median(b / a for a, b in zip(first, later, strict=True))
    before, after = statistics.median(first), statistics.median(later)
    print(f"first start: {before:.2f} s, a later one: {after:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
