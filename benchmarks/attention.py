"""Attention on a CPU, ours against `mx.fast.scaled_dot_product_attention`, and what that does to a model's passes.

    python benchmarks/attention.py                         # one layer of the embedded model's shape
    python benchmarks/attention.py --heads 4 2 16          # heads, kv heads, head_dim
    python benchmarks/attention.py --model smollm2-135m    # whole passes besides, behind a context and alone
    python benchmarks/attention.py --json

Both in this process, in turns; figures are medians over rounds of the milliseconds of processor time, which other work
on the machine disturbs least, and of the ratio ours / MLX's within a round. `difference` is the largest one of any
output. Where there is too little to compute, the engine leaves it to MLX: the ratio is one then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.reference import parse_reference
from mlx_serving.catalog.store import cache_directory
from mlx_serving.machine import blas

PROMPTS = [(tokens, before) for tokens in (16, 64, 128, 300, 512) for before in (0, 512, 1024, 4096)]
DECODING = [(rows, before) for rows in (1, 8, 16) for before in (300, 1100, 4096)]


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, object]:
    import mlx.core as mx

    def seconds(work: Callable[[], Any]) -> float:
        began = time.process_time()
        mx.eval(work())  # pyright: ignore[reportUnknownMemberType]  MLX's stub
        return time.process_time() - began

    difference = mx.max(mx.abs(ours() - theirs())).item()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return {
        "ms": round(statistics.median(pair[0] for pair in pairs) * 1000, 3),
        "mlx_ms": round(statistics.median(pair[1] for pair in pairs) * 1000, 3),
        "ratio": round(statistics.median(pair[0] / pair[1] for pair in pairs), 3),
        "difference": difference,
    }


def layers(heads: Sequence[int], rounds: int) -> list[dict[str, object]]:
    import mlx.core as mx

    from mlx_serving.worker.cpu_attention import attend

    library: Callable[..., Any] = import_module("mlx_lm.models.base").scaled_dot_product_attention
    count, groups, head_dim = heads
    results: list[dict[str, object]] = []
    for rows, tokens, before in [*((1, *shape) for shape in PROMPTS), *((row, 1, before) for row, before in DECODING)]:
        queries = mx.random.normal((rows, count, tokens, head_dim))
        keys, values = (mx.random.normal((rows, groups, before + tokens, head_dim)) for _ in range(2))
        # Rows of a batch have different lengths, as they do when it is decoded.
        ends = mx.array([before - row for row in range(rows)])[:, None, None, None]
        mask = "causal" if tokens > 1 else None if rows == 1 else mx.arange(before + 1) <= ends
        more: Mapping[str, Any] = {"cache": None, "scale": head_dim**-0.5, "mask": mask}
        figures = compare(
            lambda: attend(library, queries, keys, values, **more),  # noqa: B023  called at once
            lambda: library(queries, keys, values, **more),  # noqa: B023
            rounds,
        )
        results.append({"rows": rows, "tokens": tokens, "before": before, **figures})
        print(json.dumps(results[-1]), file=sys.stderr)
    return results


def passes(directory: Path, tokens: int, before: int, rounds: int) -> list[dict[str, object]]:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    from mlx_serving.worker.cpu_attention import speed_up

    ours, theirs = (load_model(directory)[0] for _ in range(2))
    speed_up(ours)
    results: list[dict[str, object]] = []
    for context in (0, before):

        def compute(model: Any, context: int = context) -> Callable[[], Any]:
            cache: Any = make_prompt_cache(model)
            if context:
                model(mx.array([[7 * index % 250 for index in range(context)]]), cache=cache)
                mx.eval([layer.state for layer in cache])  # pyright: ignore[reportUnknownMemberType]

            def last() -> Any:
                for layer in cache:
                    layer.offset = context
                return model(mx.array([[11 * index % 250 for index in range(tokens)]]), cache=cache)[:, -1]

            return last

        results.append({"tokens": tokens, "before": context, **compare(compute(ours), compute(theirs), rounds)})
        print(json.dumps(results[-1]), file=sys.stderr)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs=3, default=[9, 3, 64], metavar="N")
    parser.add_argument("--model", help="whose passes are compared, too")
    parser.add_argument("--tokens", type=int, default=98, help="of a pass")
    parser.add_argument("--before", type=int, default=1055, help="tokens that a pass is behind")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    blas.settle(cache_directory() / "blas")
    result: dict[str, object] = {"heads": arguments.heads, "layer": layers(arguments.heads, arguments.rounds)}
    if arguments.model is not None:
        directory = prepare(parse_reference(arguments.model), lambda _: None)
        result["passes"] = passes(directory, arguments.tokens, arguments.before, arguments.rounds)
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
