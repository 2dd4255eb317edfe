"""Two models served at once, each with four streams: the share of the tokens that each gets.

    python benchmarks/two_models.py                       # two random models of one size
    python benchmarks/two_models.py --model smollm2-135m --seconds 20 --tokens 200

One server, one worker, one device. A round opens eight streams and counts the tokens that arrive in a while in which
all of them are decoding. The scheduler gives models fair turns of the device's time; models of one size, each with as
many streams, make equally long steps, so their shares of the time, of the steps and of the tokens are one thing. With
`--model` the same model is served under two names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvloop

from mlx_serving.bench.http_client import HttpClient
from mlx_serving.bench.prompts import make_prompts
from peers import counter, forbidden_ends, model_directory, our_server, tiny_model
from streams import Stream

STREAMS = 4
PROMPT_TOKENS = 24
DECODING = 16
"""Arrivals of text after which a stream counts as decoding."""


async def tokens_of(streams: Mapping[str, Sequence[Stream]], seconds: float) -> list[int]:
    """How many tokens the streams of each model get in that time. The streams are left."""
    everything = [stream for each in streams.values() for stream in each]
    try:
        await asyncio.gather(*(stream.reached(DECODING) for stream in everything))
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        ended = time.perf_counter()
        # The next text of every stream shows that none was over before.
        await asyncio.gather(*(stream.reached(len(stream.arrivals) + 1) for stream in everything))
    finally:
        await asyncio.gather(*(stream.leave() for stream in everything))
    return [sum(_within(stream, began, ended) for stream in each) for each in streams.values()]


def _within(stream: Stream, began: float, ended: float) -> int:
    return sum(count for at, count in zip(stream.arrivals, stream.pieces, strict=True) if began <= at <= ended)


async def measure(models: Sequence[Path], arguments: argparse.Namespace) -> dict[str, object]:
    names = [path.name for path in models]
    rounds: list[list[int]] = []
    extra = forbidden_ends(arguments.model, models[0])
    async with our_server(models, extra) as server:
        client = HttpClient(server.url, {})
        for number in range(arguments.rounds + 1):
            prompts = await make_prompts(STREAMS, PROMPT_TOKENS, str(number), count_tokens=counter(models[0]))
            streams = {
                name: [Stream(client, name, prompt, arguments.tokens, extra) for prompt in prompts] for name in names
            }
            tokens = await tokens_of(streams, arguments.seconds)
            if number > 0:  # the first round loads the second model, and warms up
                rounds.append(tokens)
                print(f"round {number}: {dict(zip(names, tokens, strict=True))}", file=sys.stderr)
        client.close()
    shares = [[count / sum(tokens) for count in tokens] for tokens in rounds]
    return {
        "model": arguments.model or "tiny",
        "streams_of_each": STREAMS,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "tokens_per_s": round(statistics.median(sum(tokens) for tokens in rounds) / arguments.seconds, 1),
        "share": [round(statistics.median(share[index] for share in shares), 3) for index in range(len(names))],
        "least_share_in_any_round": round(min(min(share) for share in shares), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: two random two-layer models, made on the spot")
    parser.add_argument("--seconds", type=float, default=3.0, help="that are counted in each round")
    parser.add_argument("--tokens", type=int, default=3500, help="that each stream may have, more than it gets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        if arguments.model is None:
            models = [tiny_model(scratch, seed) for seed in (0, 1)]
        else:
            first = model_directory(arguments.model, scratch)
            second = scratch / f"{first.name}-again"
            second.symlink_to(first, target_is_directory=True)
            models = [first, second]
        result = uvloop.run(measure(models, arguments))
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
