"""A conversation that goes on after a restart of the server: its prefix is read from disk.

    python benchmarks/prefix_restart.py                                   # a random two-layer model
    python benchmarks/prefix_restart.py --model smollm2-135m --new-tokens 80 --turns 3 --rounds 2
    python benchmarks/prefix_restart.py --json

A server computes a conversation of so many turns, turn by turn, and ends. A second one gets the next turn as its first
request (after one that warms the model up with other tokens), then a fresh prompt of the new tokens only. Figures are
the times to the first token as a client measures them, medians over rounds, each with a folder of its own, and the
ratio of the two within a round. `computed` is the same turn at a server that keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_START_S = 600.0


@contextmanager
def serving(model: str, home: Path, disk: Path | None) -> Generator[str]:
    """The address of a server that loads the model first, as `m`."""
    cache: dict[str, Any] = {"enabled": False} if disk is None else {"disk": {"path": str(disk)}}
    config = {"models": {"served": [{"model": model, "name": "m"}]}, "prefix_cache": cache}
    path = home / "config.json"
    path.write_text(json.dumps(config))
    arguments = ["serve", "--port", "0", "--json", "--config", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_serving", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, prompt: Sequence[int], tokens: int) -> tuple[float, str, int]:
    """Seconds to the first token, the text, and how many tokens of the prompt were kept."""
    body = {
        "model": "m",
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    began, first, text, cached = time.perf_counter(), 0.0, "", 0
    with urllib.request.urlopen(request, timeout=_START_S) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"]:
                first = first or time.perf_counter() - began
                text += chunk["choices"][0]["text"]
            if chunk.get("usage"):
                cached = chunk["usage"]["prompt_tokens_details"]["cached_tokens"]
    return first, text, cached


def one_round(model: str, *, turns: int, new_tokens: int, reply: int, vocabulary: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)

    def words(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    history = [words(new_tokens)]
    history += [[*words(reply), *words(new_tokens)] for _ in range(turns - 1)]
    fresh, warm = words(new_tokens), words(new_tokens)
    prompts = [[token for part in history[: turn + 1] for token in part] for turn in range(turns)]
    with tempfile.TemporaryDirectory() as home:
        disk = Path(home) / "prefixes"
        with serving(model, Path(home), disk) as url:
            for prompt in prompts[:-1]:
                ask(url, prompt, reply)
        with serving(model, Path(home), disk) as url:
            ask(url, warm, 4)
            restored_s, restored, cached = ask(url, prompts[-1], reply)
            fresh_s, _, _ = ask(url, fresh, reply)
        with serving(model, Path(home), None) as url:
            ask(url, warm, 4)
            computed_s, computed, _ = ask(url, prompts[-1], reply)
    return {
        "prompt_tokens": len(prompts[-1]),
        "cached_tokens": cached,
        "restored_s": restored_s,
        "fresh_s": fresh_s,
        "computed_s": computed_s,
        "ratio": restored_s / fresh_s,
        "same_text": restored == computed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model's name or directory (default: a random two-layer one)")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, default=300, help="of each turn")
    parser.add_argument("--reply", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--vocabulary", type=int, default=250, help="prompts are made of token ids below this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = args.model
        if model is None:
            model = f"{directory}/model"
            maker = [sys.executable, "-m", "tests.tiny_models", model, "--printable"]
            subprocess.run(maker, check=True, cwd=Path(__file__).parents[1], env=os.environ)
        rounds = [
            one_round(
                model,
                turns=args.turns,
                new_tokens=args.new_tokens,
                reply=args.reply,
                vocabulary=args.vocabulary,
                seed=seed,
            )
            for seed in range(args.rounds)
        ]
    if args.json:
        print(json.dumps(rounds))
        return
    for figures in rounds:
        print(figures)
    medians = {
        name: statistics.median(figures[name] for figures in rounds)
        for name in ("restored_s", "fresh_s", "computed_s", "ratio")
    }
    print(f"turn {args.turns} after a restart: {medians['restored_s']:.3f} s to the first token")
    print(f"a fresh prompt of its new tokens only: {medians['fresh_s']:.3f} s; ratio {medians['ratio']:.2f}")
    print(f"all of it computed: {medians['computed_s']:.3f} s")


if __name__ == "__main__":
    main()
