"""What clients see when the worker is lost under them: every answer is compared with that of an undisturbed run.

    python benchmarks/chaos.py                               # the embedded model, SIGKILL at random moments
    python benchmarks/chaos.py --tiny --by stop              # a random two-layer model, SIGSTOP instead
    python benchmarks/chaos.py --by restart --requests 50    # planned restarts

The same requests (streamed and whole, greedy and seeded, some with penalties) go through `mlx-serving serve` twice, 16
at a time. In the second run the worker is lost again and again: after every so many tokens, and in one case of four
once more as soon as the next worker is there. Prints how many answers are byte-identical, the errors, and the longest
silence of each streamed answer in both runs. An answer that differs is looked into: where it leaves the other one, and
how far apart the two likeliest tokens were there.

Exits with 1 when a request failed, or when a greedy answer differs where the likeliest token was clear.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

HERE = Path(__file__).parent
ADMIN_KEY = "chaos"
CLEAR_GAP = 0.01
"""Two tokens whose log-probabilities are closer than this may change places with the rounding of another batch."""
PROMPTS = (
    "Explain why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
    "List five things to pack for a walk in the mountains, and say why.",
    "What is the capital of France, and what is it known for?",
    "Describe how bread is made, step by step.",
    "Tell me about the moon.",
)


@dataclass(slots=True)
class Answer:
    text: str = ""
    error: str | None = None
    longest_silence_s: float | None = None


@dataclass(slots=True)
class Progress:
    """Pieces of text that came, over all requests; whoever waits for a number of them is told."""

    pieces: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def add(self) -> None:
        self.pieces += 1
        async with self.changed:
            self.changed.notify_all()

    async def reach(self, pieces: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.pieces >= pieces)


def requests(count: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    chosen = random.Random(seed)
    bodies: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"{chosen.choice(PROMPTS)} ({number})"
        body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
        body |= ({"temperature": 0}, {"temperature": 0.8, "top_p": 0.95, "seed": number})[number % 2]
        if number % 4 == 3:
            body |= {"repetition_penalty": 1.1, "presence_penalty": 0.2}
        body["stream"] = chosen.random() < 0.5
        bodies.append(body)
    return bodies


async def ask(client: httpx2.AsyncClient, body: dict[str, Any], progress: Progress) -> Answer:
    answer = Answer()
    try:
        if not body["stream"]:
            response = await client.post("/v1/chat/completions", json=body)
            document = response.json()
            if response.status_code == 200:
                answer.text = document["choices"][0]["message"]["content"]
            else:
                answer.error = document["error"]["code"]
            return answer
        last = time.perf_counter()
        answer.longest_silence_s = 0.0
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    answer.error = event["error"]["code"]
                elif event["choices"] and event["choices"][0]["delta"].get("content"):
                    answer.text += event["choices"][0]["delta"]["content"]
                    now = time.perf_counter()
                    answer.longest_silence_s, last = max(answer.longest_silence_s, now - last), now
                    await progress.add()
    except httpx2.HTTPError as error:
        answer.error = type(error).__name__
    return answer


async def run(
    client: httpx2.AsyncClient, bodies: list[dict[str, Any]], at_once: int, progress: Progress
) -> list[Answer]:
    places = asyncio.Semaphore(at_once)

    async def one(body: dict[str, Any]) -> Answer:
        async with places:
            return await ask(client, body, progress)

    return await asyncio.gather(*(one(body) for body in bodies))


async def worker(client: httpx2.AsyncClient) -> dict[str, Any]:
    return (await client.get("/health")).json()["worker"]


async def lose(client: httpx2.AsyncClient, how: str, chosen: random.Random) -> int:
    """Lose the worker once, in one case of four its successor as well. Returns how many were lost."""
    lost = 0
    previous = None
    for _ in range(2 if chosen.random() < 0.25 else 1):
        while (pid := (await worker(client))["pid"]) in (None, previous):
            pass  # every answer takes a round trip
        await asyncio.sleep(chosen.uniform(0, 0.5) if previous is not None else 0)
        if how == "restart":
            (
                await client.post("/admin/workers/restart", headers={"authorization": f"Bearer {ADMIN_KEY}"})
            ).raise_for_status()
        else:
            try:
                os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
            except ProcessLookupError:
                continue  # it ended by itself meanwhile
        previous = pid
        lost += 1
    return lost


async def disturb(client: httpx2.AsyncClient, how: str, losses: int, pieces: int, progress: Progress) -> int:
    chosen = random.Random(losses)
    lost = 0
    while lost < losses:
        await progress.reach(int(pieces * (lost + chosen.random()) / (losses + 1)))
        lost += await lose(client, how, chosen)
    return lost


@asynccontextmanager
async def served(model: str, log: Path) -> AsyncGenerator[httpx2.AsyncClient]:
    settings = ("server.port=0", f"server.admin_key={ADMIN_KEY}", "generation.timeout_s=1800", "logging.level=info")
    sets = [part for setting in settings for part in ("--set", setting)]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mlx_serving", "serve", "--model", model, "--json", *sets),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        assert process.stdout is not None
        url = json.loads(await process.stdout.readline())["url"]
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=url, timeout=1800, limits=limits) as client:
            try:
                yield client
            finally:
                process.terminate()
                await process.wait()


async def gap_where_they_part(client: httpx2.AsyncClient, body: dict[str, Any], one: str, other: str) -> float | None:
    """The log-probabilities' distance of the two likeliest tokens where two greedy answers part; None if not found."""
    asked = {**body, "stream": False, "logprobs": True, "top_logprobs": 2}
    response = await client.post("/v1/chat/completions", json=asked)
    response.raise_for_status()
    common = common_length(one, other)
    shown = 0
    for token in response.json()["choices"][0]["logprobs"]["content"]:
        shown += len(token["token"])
        if shown > common:
            first, second = (each["logprob"] for each in token["top_logprobs"])
            return first - second
    return None


def common_length(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def distribution(answers: list[Answer]) -> dict[str, float]:
    silences = sorted(answer.longest_silence_s for answer in answers if answer.longest_silence_s is not None)
    if len(silences) < 2:
        return {}
    cuts = statistics.quantiles(silences, n=20)
    return {"p50": round(cuts[9], 3), "p95": round(cuts[18], 3), "max": round(silences[-1], 3)}


async def measure(arguments: argparse.Namespace, model: str, log: Path) -> dict[str, Any]:
    bodies = requests(arguments.requests, arguments.tokens, arguments.seed)
    async with served(model, log) as client:
        calm = Progress()
        began = time.perf_counter()
        undisturbed = await run(client, bodies, arguments.at_once, calm)
        seconds = time.perf_counter() - began
        print(f"undisturbed: {len(bodies)} requests in {seconds:.1f} s", file=sys.stderr)
        progress = Progress()
        trouble = asyncio.create_task(disturb(client, arguments.by, arguments.losses, calm.pieces, progress))
        began = time.perf_counter()
        answers = await run(client, bodies, arguments.at_once, progress)
        print(f"disturbed: {time.perf_counter() - began:.1f} s", file=sys.stderr)
        trouble.cancel()
        lost = trouble.result() if trouble.done() and not trouble.cancelled() else None
        different: list[dict[str, Any]] = []
        for body, one, other in zip(bodies, undisturbed, answers, strict=True):
            if other.error is None and one.text != other.text:
                greedy = body["temperature"] == 0
                gap = await gap_where_they_part(client, body, one.text, other.text) if greedy else None
                at = common_length(one.text, other.text)
                different.append({"greedy": greedy, "at_character": at, "gap_of_the_two_likeliest": gap})
        restarts = (await worker(client))["restarts"]
    return {
        "model": Path(model).name,
        "requests": len(bodies),
        "lost_by": arguments.by,
        "workers_lost": lost if lost is not None else restarts,
        "restarts": restarts,
        "completed": sum(answer.error is None for answer in answers),
        "errors": sorted({answer.error for answer in [*undisturbed, *answers] if answer.error is not None}),
        "identical": sum(one.text == other.text for one, other in zip(undisturbed, answers, strict=True)),
        "different": different,
        "longest_silence_s": {"undisturbed": distribution(undisturbed), "disturbed": distribution(answers)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tiny", action="store_true", help="a random two-layer model instead, made on the spot")
    parser.add_argument("--by", choices=("kill", "stop", "restart"), default="kill")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--losses", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer, at most")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="chooses the requests")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="where the server's log goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model
        if arguments.tiny:
            model = str(Path(scratch) / "tiny")
            subprocess.run([sys.executable, "-m", "tests.tiny_models", model], cwd=HERE.parent, check=True)
        report = asyncio.run(measure(arguments, model, arguments.log))
    print(json.dumps(report, indent=2))
    unclear = [
        one for one in report["different"] if not one["greedy"] or (one["gap_of_the_two_likeliest"] or 1) < CLEAR_GAP
    ]
    if report["errors"] or len(unclear) != len(report["different"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
