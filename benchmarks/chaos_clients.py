"""The requests of the chaos benchmark, who sends them, and what comes of them."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2

CLEAR_GAP = 0.01
"""Two tokens whose log-probabilities are closer than this may change places with the rounding of another batch."""
PATH = "/v1/chat/completions"
PROMPTS = (
    "Explain why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
    "List five things to pack for a walk in the mountains, and say why.",
    "What is the capital of France, and what is it known for?",
    "Describe how bread is made, step by step.",
    "Tell me about the moon.",
)
_STALL_EVERY = 8
_STALL_S = 0.3


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
    """Streamed and whole, greedy and seeded, some with penalties, some with log-probabilities, which make frames
    large."""
    chosen = random.Random(seed)
    bodies: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"{chosen.choice(PROMPTS)} ({number})"
        body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
        body |= ({"temperature": 0}, {"temperature": 0.8, "top_p": 0.95, "seed": number})[number % 2]
        if number % 4 == 3:
            body |= {"repetition_penalty": 1.1, "presence_penalty": 0.2}
        if number % 5 == 0:
            body |= {"logprobs": True, "top_logprobs": 20}
        body["stream"] = chosen.random() < 0.5
        bodies.append(body)
    return bodies


async def run(
    client: httpx2.AsyncClient, bodies: list[dict[str, Any]], at_once: int, progress: Progress
) -> list[Answer]:
    """Every third of the streamed answers has a reader that stalls now and then."""
    places = asyncio.Semaphore(at_once)

    async def one(number: int, body: dict[str, Any]) -> Answer:
        async with places:
            answer = Answer()
            with _noting(answer):
                if body["stream"]:
                    await _read_stream(client, body, answer, progress, stalls=number % 3 == 0)
                else:
                    await _read_whole(client, body, answer)
            return answer

    return await asyncio.gather(*(one(number, body) for number, body in enumerate(bodies)))


async def vanish_again_and_again(client: httpx2.AsyncClient) -> None:
    """A client that leaves each of its answers in the middle, until it is cancelled."""
    body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 200, "stream": True}
    while True:
        with suppress(httpx2.HTTPError):
            async with client.stream("POST", PATH, json=body) as response:
                pieces = 0
                async for _ in _events(response):
                    pieces += 1
                    if pieces == 4:
                        break


@contextmanager
def _noting(answer: Answer) -> Generator[None]:
    """What fails in the connection is the answer's error."""
    try:
        yield
    except httpx2.HTTPError as error:
        answer.error = type(error).__name__


async def _read_whole(client: httpx2.AsyncClient, body: dict[str, Any], answer: Answer) -> None:
    response = await client.post(PATH, json=body)
    document = response.json()
    if response.status_code == 200:
        answer.text = document["choices"][0]["message"]["content"]
    else:
        answer.error = document["error"]["code"]


async def _read_stream(
    client: httpx2.AsyncClient, body: dict[str, Any], answer: Answer, progress: Progress, *, stalls: bool
) -> None:
    last = time.perf_counter()
    answer.longest_silence_s = 0.0
    pieces, complete = 0, False
    async with client.stream("POST", PATH, json=body) as response:
        async for event in _events(response):
            if event is None:
                complete = True
            elif "error" in event:
                answer.error = event["error"]["code"]
            elif event["choices"] and event["choices"][0]["delta"].get("content"):
                answer.text += event["choices"][0]["delta"]["content"]
                now = time.perf_counter()
                answer.longest_silence_s, last = max(answer.longest_silence_s, now - last), now
                await progress.add()
                pieces += 1
                if stalls and pieces % _STALL_EVERY == 0:
                    await asyncio.sleep(_STALL_S)
                    last = time.perf_counter()
        if response.status_code != 200:
            answer.error = f"status {response.status_code}"
    if answer.error is None and not complete:
        answer.error = "cut short"


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any] | None]:
    """The events of a stream; None is the last."""
    async for line in response.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])
        elif line == "data: [DONE]":
            yield None


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer leaves the undisturbed one, and the two likeliest tokens there, with the distance of their
    log-probabilities. A `near_tie` is greedy, these are the two tokens that were taken, and the distance is small."""

    greedy: bool
    at_character: int
    tokens: tuple[str, str] | None
    gap: float | None
    near_tie: bool


async def look_into(client: httpx2.AsyncClient, body: dict[str, Any], one: str, other: str) -> Difference:
    """Ask once more, undisturbed, for the log-probabilities at the place where two answers part."""
    at = common_length(one, other)
    asked = {**body, "stream": False, "logprobs": True, "top_logprobs": 2}
    response = await client.post(PATH, json=asked)
    response.raise_for_status()
    shown = 0
    for token in response.json()["choices"][0]["logprobs"]["content"]:
        begins, shown = shown, shown + len(token["token"])
        if shown > at:
            first, second = token["top_logprobs"]
            gap = first["logprob"] - second["logprob"]
            pair = {first["token"], second["token"]}
            taken = {text[begins : begins + len(each)] for text in (one, other) for each in pair} & pair
            greedy = body["temperature"] == 0
            near_tie = greedy and taken == pair and gap < CLEAR_GAP
            return Difference(greedy, at, (first["token"], second["token"]), round(gap, 6), near_tie)
    return Difference(body["temperature"] == 0, at, None, None, near_tie=False)


def common_length(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
