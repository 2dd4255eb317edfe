"""The reference of the benchmarks: mlx-lm's own `stream_generate`, in one process, nothing around it.

Reads one JSON object a line, `{"prompt": [ids], "max_tokens": n}`, and answers with the times at which tokens came, in
seconds: `{"tokens": n, "first": t, "last": t}`.

    python benchmarks/in_process_reference.py MODEL_DIRECTORY
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mlx_serving.catalog.store import cache_directory
from mlx_serving.machine import blas


def main() -> None:
    blas.settle(cache_directory() / "blas")
    from mlx_lm.generate import stream_generate
    from mlx_lm.utils import load_model, load_tokenizer

    directory = Path(sys.argv[1])
    model, config = load_model(directory)
    tokenizer = load_tokenizer(directory, eos_token_ids=config.get("eos_token_id"))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        began = time.perf_counter()
        times = [
            time.perf_counter() - began
            for _ in stream_generate(model, tokenizer, job["prompt"], max_tokens=job["max_tokens"])
        ]
        print(json.dumps({"tokens": len(times), "first": times[0], "last": times[-1]}), flush=True)


if __name__ == "__main__":
    main()
