"""What a change of a batch costs at long contexts: our slots against mlx-lm's `BatchKVCache`, caches only, no model.

    python benchmarks/kv_cache.py                   # 8 rows of 4,096 to 32,768 tokens
    python benchmarks/kv_cache.py --json

A batch of rows that hold about as many tokens each. `join`: one more row comes with its cache; `leave`: the first row
goes; `replace`: it goes and another one comes; `steps`: 300 steps in which every row takes a token, in milliseconds a
step. Each is timed until the device has done it, both sides in turn; figures are medians of the rounds. `peak` is what
memory rises to meanwhile beyond what the batch held before, as a part of that.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from mlx_serving.catalog.store import cache_directory
from mlx_serving.machine import blas

CONTEXTS = (4096, 8192, 16384, 32768)
ROWS, LAYERS, HEADS, DIM = 8, 2, 2, 64
STEPS = 300


class Slots:
    def __init__(self, rows: Sequence[Sequence[Any]]) -> None:
        from mlx_serving.worker.kv_cache import RowLengths, SlotKVCache

        self._lengths = RowLengths()
        self._lengths.spare_tokens = 4 * CONTEXTS[0]
        self.layers = [SlotKVCache(self._lengths) for _ in range(LAYERS)]
        for row in rows:
            self.join(row)

    def join(self, row: Sequence[Any]) -> None:
        index = len(self._lengths.lengths)
        for layer, cache in zip(self.layers, row, strict=True):
            layer.put(index, cache)
        self._lengths.put(index, row[0].offset)

    def replace(self, row: Sequence[Any]) -> None:
        for layer, cache in zip(self.layers, row, strict=True):
            layer.put(0, cache)
        self._lengths.put(0, row[0].offset)

    def leave(self) -> None:
        last = len(self._lengths.lengths) - 1
        order = [last, *range(1, last)]
        for layer in self.layers:
            layer.arrange(order)
        self._lengths.arrange(order)

    def advance(self) -> None:
        self._lengths.advance()


class Padded:
    def __init__(self, rows: Sequence[Sequence[Any]]) -> None:
        self.layers = self._merged(rows)

    def join(self, row: Sequence[Any]) -> None:
        for layer, newcomer in zip(self.layers, self._merged([row]), strict=True):
            layer.extend(newcomer)

    def replace(self, row: Sequence[Any]) -> None:
        self.leave()
        self.join(row)

    def leave(self) -> None:
        for layer in self.layers:
            layer.filter(list(range(1, layer.keys.shape[0])))

    def advance(self) -> None:
        """Its layers count for themselves."""

    def _merged(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        return [layer[0].merge(layer) for layer in zip(*rows, strict=True)]


Batch = Slots | Padded


def row_of(tokens: int) -> list[Any]:
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache

    caches: list[Any] = [KVCache() for _ in range(LAYERS)]
    for cache in caches:
        cache.update_and_fetch(mx.ones((1, HEADS, tokens, DIM)), mx.ones((1, HEADS, tokens, DIM)))
    evaluate(caches)
    return caches


def evaluate(layers: Sequence[Any]) -> None:
    import mlx.core as mx

    cast(Any, mx).eval([layer.state for layer in layers])


def decode(batch: Batch, rows: int) -> None:
    import mlx.core as mx

    token = mx.ones((rows, HEADS, 1, DIM))
    for _ in range(STEPS):
        for layer in batch.layers:
            cast(Any, layer).update_and_fetch(token, token)
        batch.advance()
        evaluate(batch.layers)


def measured(batch: Batch, action: Callable[[], None]) -> tuple[float, float]:
    """Milliseconds, and the part of what was held by which memory rose meanwhile."""
    import mlx.core as mx

    evaluate(batch.layers)
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    began = time.perf_counter()
    action()
    evaluate(batch.layers)
    return 1000 * (time.perf_counter() - began), max(0, mx.get_peak_memory() - held) / held


def one_round(kind: type[Slots] | type[Padded], context: int) -> dict[str, tuple[float, float]]:
    rows = [row_of(context - 7 * number) for number in range(ROWS + 2)]
    batch = kind(rows[:ROWS])
    evaluate(batch.layers)
    newcomer, other = rows[ROWS:]
    rows.clear()
    results = {
        "join": measured(batch, lambda: batch.join(newcomer)),
        "leave": measured(batch, batch.leave),
        "replace": measured(batch, lambda: batch.replace(other)),
        "steps": measured(batch, lambda: decode(batch, ROWS)),
    }
    results["steps"] = (results["steps"][0] / STEPS, results["steps"][1])
    return results


def measure(rounds: int) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for context in CONTEXTS:
        runs: dict[str, list[dict[str, tuple[float, float]]]] = {"ours": [], "mlx_lm": []}
        for number in range(rounds + 1):
            for name, kind in (("ours", Slots), ("mlx_lm", Padded)):
                run = one_round(kind, context)
                gc.collect()
                if number > 0:  # the first round warms up
                    runs[name].append(run)
        for event in runs["ours"][0]:
            figures: dict[str, object] = {"context": context, "event": event}
            for name, done in runs.items():
                figures[f"{name}_ms"] = round(statistics.median(run[event][0] for run in done), 3)
                figures[f"{name}_peak"] = round(statistics.median(run[event][1] for run in done), 2)
            results.append(figures)
            print(json.dumps(figures), file=sys.stderr)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    blas.settle(cache_directory() / "blas")
    results = measure(arguments.rounds)
    print(json.dumps(results) if arguments.json else json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
