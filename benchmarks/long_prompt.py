"""A long prompt arrives while eight streams decode: what it does to them, and how long it waits itself.

    python benchmarks/long_prompt.py                       # a random two-layer model, a prompt of 2,000 tokens
    python benchmarks/long_prompt.py --model smollm2-135m --prompt-tokens 600 --rounds 3

Our server against `mlx_lm.server`, over HTTP. A round opens the streams, sends the long prompt when all of them are
decoding, and looks at the time until its first token: at the longest gap between two arrivals of text in any of the
streams, and at that time itself (TTFT). Each round measures both servers, in an order that changes; figures are
medians over the rounds, of the times in milliseconds and of the ratios within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import uvloop

from mlx_serving.bench.http_client import HttpClient
from mlx_serving.bench.prompts import make_prompts
from peers import Peer, counter, forbidden_ends, mlx_lm_server, model_directory, our_server
from streams import Stream

STREAMS = 8
SHORT_PROMPT_TOKENS = 24
DECODING = 32
"""Arrivals of text after which a stream counts as decoding."""


@dataclass(frozen=True, slots=True)
class Server:
    peer: Peer
    client: HttpClient

    @property
    def name(self) -> str:
        return self.peer.target.about.name

    def stream(self, prompt: str, max_tokens: int) -> Stream:
        return Stream(self.client, self.peer.target.about.model, prompt, max_tokens, self.peer.extra_body)


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds: the longest gap in any stream, the middle one of all, and the newcomer's time to its first token."""

    longest_gap: float
    usual_gap: float
    ttft: float


async def run(server: Server, prompts: Sequence[str], long_prompt: str, max_tokens: int) -> Sample:
    streams = [server.stream(prompt, max_tokens) for prompt in prompts]
    try:
        await asyncio.gather(*(stream.reached(DECODING) for stream in streams))
        sent = time.perf_counter()
        newcomer = server.stream(long_prompt, 4)
        streams.append(newcomer)
        await newcomer.reached(1)
        first = newcomer.arrivals[0]
        decoding = streams[:-1]
        # The gap that the first token of the newcomer falls into is over when each stream has gone on.
        await asyncio.gather(*(stream.reached(len(stream.arrivals) + 2) for stream in decoding))
    finally:
        await asyncio.gather(*(stream.leave() for stream in streams))
    gaps = [
        later - earlier
        for stream in decoding
        for earlier, later in pairwise(stream.arrivals)
        if later > sent and earlier < first
    ]
    # The first arrivals are those of streams beside which others begin.
    before = [
        later - earlier
        for stream in decoding
        for earlier, later in pairwise(stream.arrivals[DECODING // 2 :])
        if later <= sent
    ]
    return Sample(max(gaps), statistics.median(before), first - sent)


async def settle(server: Server) -> None:
    """Let the server notice that the clients of the last round have left."""
    await server.stream("and then", 2).ended()


async def measure(model: Path, arguments: argparse.Namespace) -> dict[str, object]:
    count = counter(model)
    extra = forbidden_ends(arguments.model, model)
    async with our_server([model], extra, arguments.sets) as ours, mlx_lm_server(model, extra) as theirs:
        servers = [Server(peer, HttpClient(peer.url, {})) for peer in (ours, theirs)]
        samples: dict[str, list[Sample]] = {server.name: [] for server in servers}
        for number in range(arguments.rounds + 1):
            prompts = await make_prompts(STREAMS, SHORT_PROMPT_TOKENS, f"{number}", count_tokens=count)
            # The first round warms up: kernels are compiled for shapes that they have not had yet.
            [long_prompt] = await make_prompts(1, arguments.prompt_tokens, f"{number}/long", count_tokens=count)
            for server in servers if number % 2 else reversed(servers):
                sample = await run(server, prompts, long_prompt, arguments.tokens)
                await settle(server)
                if number > 0:
                    samples[server.name].append(sample)
                print(f"round {number}, {server.name}: {_text(sample)}", file=sys.stderr)
    [mine, others] = samples.values()
    return {
        "model": arguments.model or "tiny",
        "prompt_tokens": arguments.prompt_tokens,
        "streams": STREAMS,
        "rounds": arguments.rounds,
        "longest_gap_ms": {name: _median_ms(s.longest_gap for s in each) for name, each in samples.items()},
        "usual_gap_ms": {name: _median_ms(s.usual_gap for s in each) for name, each in samples.items()},
        "ttft_ms": {name: _median_ms(s.ttft for s in each) for name, each in samples.items()},
        "ratio": {
            "longest_gap": _ratio((a.longest_gap, b.longest_gap) for a, b in zip(mine, others, strict=True)),
            "ttft": _ratio((a.ttft, b.ttft) for a, b in zip(mine, others, strict=True)),
        },
    }


def _ratio(pairs: Iterable[tuple[float, float]]) -> float:
    return round(statistics.median(one / other for one, other in pairs), 3)


def _median_ms(seconds: Iterable[float]) -> float:
    return round(statistics.median(seconds) * 1000, 2)


def _text(sample: Sample) -> str:
    return (
        f"longest gap {sample.longest_gap * 1000:.1f} ms (usually {sample.usual_gap * 1000:.1f}), "
        f"TTFT {sample.ttft * 1000:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: a random two-layer model, made on the spot")
    parser.add_argument("--prompt-tokens", type=int, default=2000, help="of the long prompt")
    parser.add_argument("--tokens", type=int, default=3000, help="that each stream may have, more than it gets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="of our server")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = uvloop.run(measure(model_directory(arguments.model, Path(scratch)), arguments))
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
