"""The reference for many requests at once: mlx-lm's own `BatchGenerator`, in one process, nothing around it.

Reads one JSON object a line, `{"prompts": [texts], "max_tokens": n, "concurrency": n}`, and answers with
`{"tokens": n, "seconds": t}`: `concurrency` sequences are kept in flight until all prompts are answered, greedily.
Prefill is included, tokenizing and text are not.

    python benchmarks/batch_reference.py MODEL_DIRECTORY
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from mlx_serving.catalog.store import cache_directory
from mlx_serving.machine import blas


def run(model: Any, prompts: list[list[int]], max_tokens: int, concurrency: int) -> dict[str, float]:
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(model, completion_batch_size=concurrency, prefill_batch_size=concurrency)
    waiting = deque(prompts)
    in_flight = tokens = 0
    began = time.perf_counter()
    while waiting or in_flight:
        while waiting and in_flight < concurrency:
            generator.insert([waiting.popleft()], [max_tokens])
            in_flight += 1
        for response in generator.next()[1]:
            tokens += 1
            in_flight -= response.finish_reason is not None
    seconds = time.perf_counter() - began
    generator.close()
    return {"tokens": tokens, "seconds": seconds}


def main() -> None:
    blas.settle(cache_directory() / "blas")
    from mlx_lm.utils import load_model, load_tokenizer

    directory = Path(sys.argv[1])
    model, _ = load_model(directory)
    tokenizer: Any = load_tokenizer(directory)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        prompts: list[list[int]] = [tokenizer.encode(text) for text in job["prompts"]]
        print(json.dumps(run(model, prompts, job["max_tokens"], job["concurrency"])), flush=True)


if __name__ == "__main__":
    main()
