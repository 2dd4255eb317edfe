"""Speculative decoding: what it gains where text repeats itself, what it costs where it does not, and that no answer
changes.

    python benchmarks/speculation.py                  # everything, many minutes
    python benchmarks/speculation.py --part speed     # one of: speed, same, draft
    python benchmarks/speculation.py --json

speed:  the embedded model with n-grams against without, in turns, in crowds of 1, 4 and 8: a file of code with a name
        changed and a quotation (greedy), a story (temperature 0.8) and noise (a prompt of random tokens, temperature
        1.5). Tokens a second from the first token of all to the last, medians of the rounds, and the median of the
        ratios; and how much of what was drafted was accepted.
same:   greedy answers to 100 prompts, half of which give something to repeat, with n-grams and without: how many are
        identical.
draft:  a random model of which another one has the first layer, so that the two agree now and then: tokens a second
        with the small one drafting against without, and whether the text is the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_serving import Engine
from mlx_serving.core.generation import GenerationRequest, Prompt, SamplingParams, TextPrompt, TokenPrompt
from mlx_serving.core.speculation.request import Speculation

EMBEDDED = "smollm2-135m"
PARTS = ("speed", "same", "draft")
CROWDS = (1, 4, 8)
OFF, NGRAM = Speculation("off"), Speculation("ngram")

CODE = """class Inventory:
    def __init__(self, items=None):
        self.items = items or {}
        self.count = 0

    def add(self, name, quantity):
        if quantity <= 0:
            raise ValueError("quantity must be positive")
        self.items[name] = self.items.get(name, 0) + quantity
        self.count += quantity
        return self.count

    def remove(self, name, quantity):
        if self.items.get(name, 0) < quantity:
            raise KeyError(name)
        self.items[name] -= quantity
        self.count -= quantity
        return self.count

    def report(self):
        for name, quantity in sorted(self.items.items()):
            print(f"{name}: {quantity}")
"""
QUOTATION = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it "
    "was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to Heaven, we were all going direct the other way."
)


@dataclass(frozen=True, slots=True)
class Case:
    """`prompt` depends on the number of the stream, so that no two of a crowd are the same."""

    name: str
    temperature: float

    def prompt(self, number: int) -> Prompt:
        match self.name:
            case "code edit":
                edits = [CODE.replace("Inventory", f"Inventory{10 * number + edit}") for edit in range(3)]
                return TextPrompt("\n".join([*edits[:2], edits[2][: CODE.index("self.items = items")]]))
            case "quotation":
                again = "The chapter again, word by word: "
                return TextPrompt(f'Chapter {number}: "{QUOTATION}"\n\n{again}"It was the best')
            case "story":
                return TextPrompt(f"Chapter {number}\n\nWhen the fishermen came back from the sea that evening, nobody")
            case _:
                dice = random.Random(number)
                return TokenPrompt(tuple(dice.randrange(1000, 40_000) for _ in range(100)))


CASES = (Case("code edit", 0.0), Case("quotation", 0.0), Case("story", 0.8), Case("noise", 1.5))


@dataclass(frozen=True, slots=True)
class Answer:
    tokens: tuple[int, ...]
    first: float
    last: float
    drafted: int
    accepted: int


async def answer(
    engine: Engine, model: str, prompt: Prompt, speculation: Speculation, sampling: SamplingParams
) -> Answer:
    request = GenerationRequest(str(uuid.uuid4()), model, prompt, sampling, speculation=speculation)
    first = last = 0.0
    tokens: list[int] = []
    drafted = accepted = 0
    async with engine.core.generate(request) as deltas:
        async for delta in deltas:
            if delta.token_ids:
                last = time.perf_counter()
                first = first or last
            tokens += delta.token_ids
            if delta.stats is not None:
                drafted, accepted = delta.stats.drafted_tokens, delta.stats.accepted_tokens
    return Answer(tuple(tokens), first, last, drafted, accepted)


async def crowd(
    engine: Engine, model: str, prompts: Sequence[Prompt], speculation: Speculation, temperature: float, tokens: int
) -> tuple[float, list[Answer]]:
    """Tokens a second of them all, and the answers."""
    sampling = [
        SamplingParams(max_tokens=tokens, temperature=temperature, seed=number, ignore_eos=True)
        for number in range(len(prompts))
    ]
    got = await asyncio.gather(
        *(answer(engine, model, prompt, speculation, one) for prompt, one in zip(prompts, sampling, strict=True))
    )
    counted = sum(len(one.tokens) - 1 for one in got)
    return counted / (max(one.last for one in got) - min(one.first for one in got)), got


async def compared(
    engine: Engine,
    model: str,
    prompts: Sequence[Prompt],
    speculation: Speculation,
    temperature: float,
    tokens: int,
    rounds: int,
) -> dict[str, Any]:
    plain: list[float] = []
    drafted: list[float] = []
    answers: dict[Speculation, list[Answer]] = {}
    for number in range(rounds):
        kinds = (OFF, speculation) if number % 2 == 0 else (speculation, OFF)
        for kind in kinds:
            rate, answers[kind] = await crowd(engine, model, prompts, kind, temperature, tokens)
            (plain if kind is OFF else drafted).append(rate)
    told = answers[speculation]
    identical = sum(a.tokens == b.tokens for a, b in zip(answers[OFF], told, strict=True))
    return {
        "plain_tokens_per_second": round(statistics.median(plain), 2),
        "tokens_per_second": round(statistics.median(drafted), 2),
        "ratio": round(statistics.median(b / a for a, b in zip(plain, drafted, strict=True)), 3),
        "identical": f"{identical}/{len(prompts)}",
        "drafted": sum(one.drafted for one in told),
        "accepted": sum(one.accepted for one in told),
    }


async def speed(engine: Engine, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for size in arguments.crowds:
        for case in CASES:
            prompts = [case.prompt(number) for number in range(size)]
            await crowd(engine, EMBEDDED, prompts, OFF, case.temperature, 2)  # their beginnings are kept from here on
            figures = await compared(
                engine, EMBEDDED, prompts, NGRAM, case.temperature, arguments.tokens, arguments.rounds
            )
            found.append({"text": case.name, "crowd": size, **figures})
            print(json.dumps(found[-1]), file=sys.stderr)
    return found


async def same(engine: Engine, arguments: argparse.Namespace) -> dict[str, Any]:
    prompts: list[Prompt] = []
    for number in range(arguments.prompts):
        case = CASES[number % 2] if number % 4 < 2 else CASES[2]
        prompts.append(case.prompt(number))
    identical, drafted, accepted = 0, 0, 0
    for start in range(0, len(prompts), 4):
        some = prompts[start : start + 4]
        _, plainly = await crowd(engine, EMBEDDED, some, OFF, 0.0, arguments.same_tokens)
        _, checked = await crowd(engine, EMBEDDED, some, NGRAM, 0.0, arguments.same_tokens)
        identical += sum(a.tokens == b.tokens for a, b in zip(plainly, checked, strict=True))
        drafted += sum(one.drafted for one in checked)
        accepted += sum(one.accepted for one in checked)
    return {"prompts": len(prompts), "identical": identical, "drafted": drafted, "accepted": accepted}


async def draft(engine: Engine, large: str, small: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    await engine.load_model(large)
    await engine.load_model(small)
    found: list[dict[str, Any]] = []
    for size in arguments.crowds:
        prompts: list[Prompt] = [TextPrompt(f"a prompt with the number {number}") for number in range(size)]
        figures = await compared(
            engine, large, prompts, Speculation("draft", small), 0.0, arguments.tokens, arguments.rounds
        )
        found.append({"crowd": size, **figures})
        print(json.dumps(found[-1]), file=sys.stderr)
    return found


async def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    parts = (arguments.part,) if arguments.part else PARTS
    found: dict[str, Any] = {}
    async with Engine({"models": {"served": [{"model": EMBEDDED, "preload": False}]}}) as engine:
        if "speed" in parts:
            found["speed"] = await speed(engine, arguments)
        if "same" in parts:
            found["same"] = await same(engine, arguments)
        if "draft" in parts:
            make_pair(directory, arguments.width)
            found["draft"] = await draft(engine, str(directory / "large"), str(directory / "small"), arguments)
    return found


def make_pair(directory: Path, width: int) -> None:
    """In a process of its own: this one must stay without MLX."""
    shape = ["--layers", "8", "--width", str(width)]
    command = [sys.executable, "-m", "tests.tiny_models", str(directory), "--pair", *shape]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer (default 128)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crowds", type=int, nargs="+", default=CROWDS)
    parser.add_argument("--prompts", type=int, default=100, help="of part same (default 100)")
    parser.add_argument("--same-tokens", type=int, default=48, help="of each of its answers (default 48)")
    parser.add_argument("--width", type=int, default=512, help="of the models of part draft (default 512)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(measure(arguments, Path(directory)))
    print(json.dumps(found) if arguments.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
