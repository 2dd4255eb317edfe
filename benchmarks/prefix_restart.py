"""A conversation that goes on after a restart of the server: its prefix is read from disk.

    python benchmarks/prefix_restart.py                                   # a random two-layer model
    python benchmarks/prefix_restart.py --model smollm2-135m --new-tokens 80 --turns 3 --rounds 2
    python benchmarks/prefix_restart.py --cold                            # files that are not in the page cache
    python benchmarks/prefix_restart.py --json

A server computes a conversation of so many turns, turn by turn, and ends. Others get the next turn as their first
request (after one that warms the model up with as many other tokens): `restored` by one as it is, which has read what
was used last before anybody asks, `read` by one that reads it when it is asked for. Then each gets, in turns, the same
turn with other new tokens, whose history is in memory by now (`kept`), and fresh prompts of the new tokens only.
`computed` is the same turn at a server that keeps nothing.

Figures are times to the first token as a client measures them, and ratios of those of one server; medians over rounds,
each with a folder of its own. New tokens look at the whole history, which costs what it costs wherever the history
comes from: what the disk costs is the ratio to `kept`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_serving.machine.page_cache import drop

_COMPARED = 3  # turns and fresh prompts that a server is asked for, to compare the first turn with
_START_S = 600.0


@contextmanager
def serving(model: str, home: Path, disk: Mapping[str, object] | None) -> Generator[str]:
    """The address of a server that loads the model first, as `m`. Without a `disk` it keeps nothing."""
    cache: dict[str, Any] = {"enabled": False} if disk is None else {"disk": disk}
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


def one_round(
    model: str, *, turns: int, new_tokens: int, reply: int, vocabulary: int, cold: bool, seed: int
) -> dict[str, Any]:
    draw = random.Random(seed)

    def words(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    history = [words(new_tokens)]
    history += [[*words(reply), *words(new_tokens)] for _ in range(turns - 1)]
    prompts = [[token for part in history[: turn + 1] for token in part] for turn in range(turns)]
    last = len(prompts[-1]) - len(prompts[-2])
    figures: dict[str, Any] = {"prompt_tokens": len(prompts[-1])}
    texts: set[str] = set()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        with serving(model, home, {"path": f"{home}/written"}) as url:
            for prompt in prompts[:-1]:
                ask(url, prompt, reply)
        for name, settings in (("restored", {}), ("read", {"preload_bytes": 0})):
            copy = shutil.copytree(home / "written", home / name)
            for path in copy.rglob("*.safetensors") if cold else ():
                drop(path)
            with serving(model, home, {"path": str(copy), **settings}) as url:
                ask(url, words(len(prompts[-1])), 4)
                seconds, text, cached = ask(url, prompts[-1], reply)
                kept: list[float] = []
                fresh: list[float] = []
                for _ in range(_COMPARED):
                    kept.append(ask(url, [*prompts[-2], *words(last)], reply)[0])
                    fresh.append(ask(url, words(new_tokens), reply)[0])
            texts.add(text)
            figures |= {
                f"{name}_s": seconds,
                f"{name}_cached_tokens": cached,
                f"{name}_to_fresh": seconds / statistics.median(fresh),
                f"{name}_to_kept": seconds / statistics.median(kept),
                "kept_to_fresh": statistics.median(kept) / statistics.median(fresh),
            }
        with serving(model, home, None) as url:
            ask(url, words(len(prompts[-1])), 4)
            figures["computed_s"], text, _ = ask(url, prompts[-1], reply)
    texts.add(text)
    return {
        **figures,
        "restored_to_computed": figures["restored_s"] / figures["computed_s"],
        "same_text": len(texts) == 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model's name or directory (default: a random two-layer one)")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, default=300, help="of each turn")
    parser.add_argument("--reply", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--vocabulary", type=int, default=250, help="prompts are made of token ids below this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before they are read")
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
                cold=args.cold,
                seed=seed,
            )
            for seed in range(args.rounds)
        ]
    if args.json:
        print(json.dumps(rounds))
        return
    for name, first in rounds[0].items():
        if isinstance(first, float):
            print(f"{name}: {statistics.median(figures[name] for figures in rounds):.3f}")
    print(f"cached_tokens: {rounds[0]['restored_cached_tokens']} of {rounds[0]['prompt_tokens']}")
    print(f"same_text: {all(figures['same_text'] for figures in rounds)}")


if __name__ == "__main__":
    main()
