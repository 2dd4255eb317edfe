"""Greedy answers of mlx-lm, made in a process of its own because that one has a fast BLAS.

`generate_greedily.py DIRECTORY MAX_TOKENS` reads prompts, a JSON list of lists of token ids, from stdin, and writes the
answers, made in one batch, in the same form.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load_model, load_tokenizer


def main(directory: Path, max_tokens: int) -> None:
    model, _ = load_model(directory)
    tokenizer = load_tokenizer(directory)
    prompts: list[list[int]] = json.load(sys.stdin)
    generator = BatchGenerator(
        model,
        max_tokens=max_tokens,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        completion_batch_size=len(prompts),
        prefill_batch_size=len(prompts),
    )
    answers: dict[int, list[int]] = {uid: [] for uid in generator.insert(prompts)}
    running = set(answers)
    while running:
        _, responses = generator.next()
        for response in responses:
            answers[response.uid].append(response.token)
            if response.finish_reason is not None:
                running.discard(response.uid)
    json.dump(list(answers.values()), sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
