"""What is kept of prompts and answers: the turns of a conversation, and users of one system prompt.

    python benchmarks/prefix_cache.py                    # a random two-layer model: 300 tokens a turn, 1,500 in common
    python benchmarks/prefix_cache.py --model smollm2-135m --new 80 --system 400 --rounds 2
    python benchmarks/prefix_cache.py --without-peer --json

Conversation: time to the first token of the last turn, as a ratio to that of a fresh prompt of the new tokens only, and
to that of a whole prompt that nobody has seen; `mlx_lm.server` beside it. Each round is a conversation of its own, with
fresh prompts after its turns; figures are medians. New tokens look at the whole history, fresh ones at each other only:
`least_ratio` is what this makes of one forward pass of mlx-lm's, below which no server with MLX's attention can be.

Users: how many prompt tokens the worker computes for users who come together with one system prompt, as a ratio to the
least that can be (the system prompt once, what each says besides), and whether the texts are those of a server that
keeps nothing.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from mlx_serving.bench.event_stream import EventReader
from mlx_serving.bench.http_client import HttpClient
from mlx_serving.bench.prompts import make_prompts
from mlx_serving.bench.target import Count
from peers import Peer, counter, forbidden_ends, mlx_lm_server, model_directory, our_server, peer_environment

USERS = 16
ADMIN_KEY = "of-this-benchmark"
SETTINGS = (f"server.admin_key={ADMIN_KEY}", "scheduler.max_num_seqs=16")


@dataclass(frozen=True, slots=True)
class Answer:
    """`cached` tokens of the prompt were not computed, None where the server does not tell."""

    ttft_s: float
    text: str
    cached: int | None


async def ask(client: HttpClient, peer: Peer, model: str, prompt: str, tokens: int) -> Answer:
    first: list[float] = []
    events: list[Any] = []
    reader = EventReader()

    def on_body(status: int, data: bytes) -> None:
        if status != 200:
            raise SystemExit(f"status {status}: {data!r}")
        events.extend(json.loads(event) for event in reader.feed(data) if event != b"[DONE]")
        if not first and any(choice.get("text") for event in events for choice in event["choices"]):
            first.append(time.perf_counter())

    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}, **peer.extra_body}
    began = time.perf_counter()
    await client.exchange("POST", "/v1/completions", json.dumps(body).encode(), on_body)
    usages: list[dict[str, Any]] = [event["usage"] for event in events if event.get("usage")]
    details: dict[str, int] = (usages[-1].get("prompt_tokens_details") if usages else None) or dict[str, int]()
    text = "".join(choice.get("text") or "" for event in events for choice in event["choices"])
    return Answer(first[0] - began, text, details.get("cached_tokens"))


async def conversations(peer: Peer, model: str, count: Count, arguments: argparse.Namespace) -> dict[str, object]:
    client = HttpClient(peer.url, {})
    last: list[Answer] = []
    fresh: list[float] = []
    wholes: list[float] = []
    length = 0
    for number in range(arguments.rounds + 1):
        said = await make_prompts(arguments.turns, arguments.new, f"said {number}", count_tokens=count)
        others = await make_prompts(arguments.turns, arguments.new, f"fresh {number}", count_tokens=count)
        answers: list[Answer] = []
        alone: list[Answer] = []
        history = ""
        for text, other in zip(said, others, strict=True):
            history += text
            answers.append(await ask(client, peer, model, history, arguments.reply))
            history += answers[-1].text
            alone.append(await ask(client, peer, model, other, 2))
        length = await count(history)
        [unseen] = await make_prompts(1, length, f"unseen {number}", count_tokens=count)
        whole = await ask(client, peer, model, unseen, 2)
        if number > 0:  # the first round warms up
            last.append(answers[-1])
            fresh += [answer.ttft_s for answer in alone]
            wholes.append(whole.ttft_s)
            print(f"round {number}: {last[-1].ttft_s * 1000:.1f} ms", file=sys.stderr)
    client.close()
    last_s, fresh_s, whole_s = (
        statistics.median(times) for times in ([answer.ttft_s for answer in last], fresh, wholes)
    )
    return {
        "last_turn_ms": round(last_s * 1000, 1),
        "fresh_ms": round(fresh_s * 1000, 1),
        "ratio": round(last_s / fresh_s, 2),
        "unseen_ms": round(whole_s * 1000, 1),
        "ratio_to_unseen": round(last_s / whole_s, 3),
        "tokens_in_all": length,
        "cached_tokens": last[-1].cached,
    }


async def users(
    model: Path, extra: Mapping[str, object], count: Count, arguments: argparse.Namespace
) -> dict[str, object]:
    [system] = await make_prompts(1, arguments.system, "system", count_tokens=count)
    said = await make_prompts(USERS, arguments.said, "users", count_tokens=count)
    prompts = [f"{system}\n{text}" for text in said]
    alone = await count(f"{system}\n")
    least = alone + sum([await count(prompt) - alone for prompt in prompts])
    texts: dict[bool, Sequence[str]] = {}
    computed: dict[bool, int] = {}
    for keeping in (False, True):
        settings = (*SETTINGS, f"prefix_cache.enabled={str(keeping).lower()}")
        async with our_server([model], extra, settings) as server:
            client = HttpClient(server.url, {"authorization": f"Bearer {ADMIN_KEY}"})
            await ask(client, server, model.name, "warm", 2)
            before = await prefilled(client)
            asked = [ask(client, server, model.name, prompt, arguments.reply) for prompt in prompts]
            texts[keeping] = [answer.text for answer in await asyncio.gather(*asked)]
            computed[keeping] = await prefilled(client) - before
            client.close()
    return {
        "users": USERS,
        "least_tokens": least,
        "computed_tokens": computed[True],
        "ratio": round(computed[True] / least, 3),
        "computed_tokens_without": computed[False],
        "same_texts": texts[True] == texts[False],
    }


async def prefilled(client: HttpClient) -> int:
    """How many prompt tokens the worker has computed."""
    body = bytearray()
    await client.exchange("GET", "/admin/telemetry", b"", lambda _, data: body.extend(data))
    [worker] = json.loads(body)["workers"]
    return int(worker["runtime"]["scheduler"]["done"]["prefilled_tokens"])


def passes(model: Path, history: int, new: int) -> None:
    """Print how many seconds mlx-lm takes for a pass of `new` tokens, behind `history` others and alone."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    network: Any = load_model(model)[0]
    figures: list[float] = []
    for before in (history, 0):
        seconds: list[float] = []
        for _ in range(4):
            cache: Any = make_prompt_cache(network)
            for count in (before, new):
                began = time.perf_counter()
                if count:
                    network(mx.array([[7] * count]), cache=cache)
                    mx.eval([layer.state for layer in cache])  # pyright: ignore[reportUnknownMemberType]  MLX's stub
            seconds.append(time.perf_counter() - began)
        figures.append(statistics.median(seconds[1:]))
    print(json.dumps(figures))


async def least_ratio(model: Path, arguments: argparse.Namespace) -> float:
    """In a process of its own, with the BLAS of the servers."""
    history = (arguments.turns - 1) * (arguments.new + arguments.reply)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--pass", str(model), "--system", str(history), "--new", str(arguments.new)),
        env=peer_environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    behind, alone = json.loads(printed)
    return round(behind / alone, 2)


async def measure(model: Path, arguments: argparse.Namespace) -> dict[str, object]:
    extra, count = forbidden_ends(arguments.model, model), counter(model)
    result: dict[str, object] = {"model": arguments.model or "tiny", "turns": arguments.turns, "new": arguments.new}
    result["least_ratio"] = await least_ratio(model, arguments)
    async with our_server([model], extra) as server:
        result["conversation"] = await conversations(server, model.name, count, arguments)
    if not arguments.without_peer:
        async with mlx_lm_server(model, extra) as server:
            result["mlx_lm.server"] = await conversations(server, str(model), count, arguments)
    result["users"] = await users(model, extra, count, arguments)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: a random two-layer model, made on the spot")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--new", type=int, default=300, help="tokens that the user says in each turn")
    parser.add_argument("--reply", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--system", type=int, default=1500, help="tokens that all users have in common")
    parser.add_argument("--said", type=int, default=30, help="tokens that each of the users says")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-peer", action="store_true", help="leave mlx_lm.server out")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pass", dest="one_pass", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_pass is not None:
        passes(arguments.one_pass, arguments.system, arguments.new)
        return
    with tempfile.TemporaryDirectory() as directory:
        model = model_directory(arguments.model, Path(directory))
        result = uvloop.run(measure(model, arguments))
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
