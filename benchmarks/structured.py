"""Structured answers: whether they fit, what they cost, and what they cost others.

    python benchmarks/structured.py                  # everything, several minutes
    python benchmarks/structured.py --part fit       # one of: fit, throughput, first-token, gap
    python benchmarks/structured.py --json

fit:          random JSON Schemas, regular expressions and grammars (seeded), answered by a random model that left alone
              writes noise, and a few of them by the embedded model; drawn at temperature 1. Every answer that ended by
              itself is checked, with `jsonschema` and with Python's `re`. Answers cut at max_tokens are only counted.
throughput:   eight streams of the embedded model with a schema against eight without, in turns; and four free streams
              beside four with a schema against four beside four more free ones. Ratios of tokens a
              second, the median over rounds.
first-token:  one stream at a time, with a schema that was never seen before against none, in turns. Milliseconds.
gap:          a free stream of the embedded model, and in the middle of it the first request with a schema since the
              worker started, which ends with its first token. The longest time between two tokens of the free stream
              before that request and from it on, in milliseconds, and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from mlx_serving import Engine
from mlx_serving.core.generation import FinishReason, GenerationRequest, SamplingParams, Structure, TextPrompt

EMBEDDED = "smollm2-135m"
PROMPT = "A record of a person who lives in a small town by the sea, as JSON: "
AT_ONCE = 8
PARTS = ("gap", "fit", "throughput", "first-token")

MODERATE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "occupation": {"enum": ["baker", "doctor", "fisher", "painter", "teacher", "none"]},
        "email": {"type": "string", "format": "email"},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "number": {"type": "integer"}, "city": {"type": "string"}},
            "required": ["street", "number", "city"],
            "additionalProperties": False,
        },
        "hobbies": {"type": "array", "items": {"type": "string", "minLength": 3}, "minItems": 20},
        "partner": {"anyOf": [{"type": "null"}, {"type": "string"}]},
    },
    "required": ["name", "age", "occupation", "email", "address", "hobbies", "partner"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    reason: FinishReason
    first: float
    last: float
    tokens: int


async def answer(engine: Engine, model: str, structure: Structure | None, **sampling: Any) -> Answer:
    """Times in seconds since it was asked for."""
    request = GenerationRequest(
        str(uuid.uuid4()), model, TextPrompt(PROMPT), SamplingParams(**sampling), structure=structure
    )
    asked = time.perf_counter()
    first = last = 0.0
    text, tokens, reason = "", 0, FinishReason.ABORT
    async with engine.core.generate(request) as deltas:
        async for delta in deltas:
            if delta.token_ids:
                last = time.perf_counter() - asked
                first = first or last
            text += delta.text
            tokens += len(delta.token_ids)
            reason = delta.finish_reason or reason
    return Answer(text, reason, first, last, tokens)


# -- whether they fit


def random_schema(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "enum", "const", "format", "pattern", "null"]
    kinds += ["object", "array", "anyOf", "tuple", "ref"] * (2 if depth < 3 else 0)
    low = dice.randint(0, 5)
    match "object" if depth == 0 else dice.choice(kinds):
        case "string":
            return {"type": "string", "minLength": low, "maxLength": low + dice.randint(0, 8)}
        case "integer":
            start = dice.randint(-1000, 1000)
            return {"type": "integer", "minimum": start, "maximum": start + dice.randint(0, 500)}
        case "number":
            start = dice.randint(-50, 50) / 4
            return {"type": "number", "exclusiveMinimum": start, "maximum": start + dice.randint(1, 30)}
        case "boolean":
            return {"type": "boolean"}
        case "null":
            return {"type": "null"}
        case "enum":
            return {"enum": dice.sample(["red", "grün", 'qu"ote', 1, 2.5, None, True, [1, 2], {"a": "b"}], 4)}
        case "const":
            return {"const": dice.choice(["fixed", 7, {"k": [1, "x"]}, "line\nbreak"])}
        case "format":
            return {"type": "string", "format": dice.choice(["date", "time", "date-time", "ipv4", "uuid", "email"])}
        case "pattern":
            return {"type": "string", "pattern": dice.choice(["^[a-z]{2,5}$", r"^[0-9]{3}-[0-9]{2}$", "^(ab|cd)+e?$"])}
        case "anyOf":
            return {"anyOf": [random_schema(dice, depth + 1) for _ in range(dice.randint(2, 3))]}
        case "tuple":
            parts = [random_schema(dice, depth + 1) for _ in range(dice.randint(1, 3))]
            return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
        case "array":
            most = low + dice.randint(0, 3)
            return {"type": "array", "items": random_schema(dice, depth + 1), "minItems": low, "maxItems": most}
        case "ref":
            return {"$ref": "#/$defs/tree"}
        case _:
            names = dice.sample(
                ["id", "name", "größe", "tags", "x-y", "with space", "nested", "list"], dice.randint(1, 4)
            )
            schema: dict[str, Any] = {
                "type": "object",
                "properties": {name: random_schema(dice, depth + 1) for name in names},
                "required": dice.sample(names, dice.randint(0, len(names))),
                "additionalProperties": dice.choice([False, False, {"type": "boolean"}]),
            }
            if depth == 0:
                branch = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
                schema["$defs"] = {"tree": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, branch]}}
            return schema


def random_regex(dice: random.Random, depth: int = 0) -> str:
    pieces: list[str] = []
    for _ in range(dice.randint(1, 4)):
        atom = dice.choice(["[a-f]", "[^a-y ]", r"\d", "x", "é", "(?:foo|bar)", r"\.", r"\w"])
        if depth < 2 and dice.random() < 0.3:
            atom = f"(?:{random_regex(dice, depth + 1)}|{random_regex(dice, depth + 1)})"
        pieces.append(atom + dice.choice(["", "", "?", "{2}", "{1,3}"]))
    return "".join(pieces)


def as_grammar(dice: random.Random) -> tuple[str, str]:
    """A grammar and a regular expression of the same language."""
    # Its \d and \w are of a newer Unicode than Python's.
    item = random_regex(dice, 2).replace(r"\d", "[0-9]").replace(r"\w", "[g-k]")
    between, count = dice.choice([",", "; ", " | "]), dice.randint(1, 4)
    grammar = f"start: item ({json.dumps(between)} item)~{count}\nitem: /{item}/"
    return grammar, f"(?:{item})" + f"(?:{re.escape(between)}(?:{item}))" * count


def cases(dice: random.Random, schemas: int, others: int) -> list[tuple[Structure, Any]]:
    """Structures, each with what its answers are checked against."""
    made: list[tuple[Structure, Any]] = []
    for _ in range(schemas):
        schema = random_schema(dice)
        made.append((Structure("json_schema", schema), schema))
    for _ in range(others):
        expression = random_regex(dice)
        made.append((Structure("regex", expression), expression))
        grammar, expression = as_grammar(dice)
        made.append((Structure("grammar", grammar), expression))
    return made


def is_fitting(text: str, expected: Any) -> bool:
    if isinstance(expected, str):
        return re.fullmatch(expected, text, re.ASCII) is not None
    try:
        jsonschema.validate(json.loads(text), expected, cls=jsonschema.Draft202012Validator)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


async def fit(engine: Engine, model: str, structures: Sequence[tuple[Structure, Any]], max_tokens: int) -> Any:
    tally = {"asked": len(structures), "finished": 0, "fitting": 0, "cut": 0, "refused": 0}
    limit = asyncio.Semaphore(2 * AT_ONCE)

    async def one(number: int, structure: Structure, expected: Any) -> None:
        async with limit:
            try:
                got = await answer(engine, model, structure, temperature=1.0, seed=number, max_tokens=max_tokens)
            except Exception as error:  # noqa: BLE001  counted and shown
                tally["refused"] += 1
                print(f"refused: {error}: {structure}", file=sys.stderr)
                return
        if got.reason is not FinishReason.STOP:
            tally["cut"] += 1
            return
        tally["finished"] += 1
        if is_fitting(got.text, expected):
            tally["fitting"] += 1
        else:
            print(f"does not fit: {got.text!r}: {structure}", file=sys.stderr)

    await asyncio.gather(*(one(number, *case) for number, case in enumerate(structures)))
    return tally


# -- what they cost


async def rate(engine: Engine, forms: Sequence[Structure | None], tokens: int, counted: int) -> float:
    """Tokens a second of the first `counted` streams, from the first token of all to the last."""
    sampling: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True}
    got = await asyncio.gather(*(answer(engine, EMBEDDED, form, **sampling) for form in forms))
    assert all(each.tokens == tokens for each in got), [each.tokens for each in got]
    part = got[:counted]
    return sum(each.tokens - 1 for each in part) / (max(e.last for e in part) - min(e.first for e in part))


async def throughput(engine: Engine, tokens: int, rounds: int) -> Any:
    form = Structure("json_schema", MODERATE)
    half = AT_ONCE // 2
    crowds: dict[str, tuple[list[Structure | None], int]] = {
        "free": ([None] * AT_ONCE, AT_ONCE),
        "structured": ([form] * AT_ONCE, AT_ONCE),
        "free beside free": ([None] * AT_ONCE, half),
        "free beside structured": ([None] * half + [form] * half, half),
    }
    await rate(engine, [form, None], 4, 1)
    rates: dict[str, list[float]] = {name: [] for name in crowds}
    for number in range(rounds):
        order = list(crowds) if number % 2 == 0 else list(reversed(crowds))
        for name in order:
            rates[name].append(await rate(engine, crowds[name][0], tokens, crowds[name][1]))

    def ratio(name: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[to], strict=True))

    return {
        "tokens_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "structured_to_free": ratio("structured", "free"),
        "free_beside_structured_to_free_beside_free": ratio("free beside structured", "free beside free"),
    }


async def first_token(engine: Engine, rounds: int) -> Any:
    free: list[float] = []
    structured: list[float] = []
    for number in range(-1, rounds):  # the first one sets up the tokenizer
        new = {**MODERATE, "properties": {f"key_{number}": {"type": "integer"}, **MODERATE["properties"]}}
        for form, found in ((None, free), (Structure("json_schema", new), structured)):
            got = await answer(engine, EMBEDDED, form, temperature=0.0, max_tokens=1)
            if number >= 0:
                found.append(got.first * 1000)
    return {
        "free_ms": statistics.median(free),
        "new_schema_ms": statistics.median(structured),
        "difference_ms": statistics.median(s - f for s, f in zip(structured, free, strict=True)),
    }


async def gap(engine: Engine, tokens: int) -> Any:
    """To be measured before anything else asks for a structure."""
    await answer(engine, EMBEDDED, None, temperature=0.0, max_tokens=4)  # it loads the model
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    request = GenerationRequest(str(uuid.uuid4()), EMBEDDED, TextPrompt(PROMPT), sampling)
    times: list[float] = []
    other: asyncio.Task[Answer] | None = None
    async with engine.core.generate(request) as deltas:
        async for delta in deltas:
            if delta.token_ids:
                times.append(time.perf_counter())
            if len(times) == tokens // 2 and other is None:
                form = Structure("json_schema", MODERATE)
                other = asyncio.create_task(answer(engine, EMBEDDED, form, temperature=0.0, max_tokens=1))
    assert other is not None
    await other
    gaps = [1000 * (later - earlier) for earlier, later in itertools.pairwise(times)]
    # The other request's prompt is computed in one of these steps, as it would be without a schema.
    before, after = max(gaps[1 : tokens // 2]), max(gaps[tokens // 2 :])
    return {"longest_before_ms": before, "longest_from_the_request_on_ms": after, "ratio": after / before}


async def measure(arguments: argparse.Namespace, noise: Path) -> dict[str, Any]:
    served = [{"model": EMBEDDED}, {"model": str(noise), "name": "noise"}]
    found: dict[str, Any] = {}
    parts = (arguments.part,) if arguments.part else PARTS
    async with Engine({"models": {"served": [{**each, "preload": False} for each in served]}}) as engine:
        if "gap" in parts:
            found["gap"] = await gap(engine, arguments.tokens)
        if "fit" in parts:
            dice = random.Random(arguments.seed)
            found["fit, random model"] = await fit(engine, "noise", cases(dice, arguments.schemas, 50), 1500)
            found["fit, embedded model"] = await fit(engine, EMBEDDED, cases(dice, arguments.embedded, 4), 150)
        if "throughput" in parts:
            found["throughput"] = await throughput(engine, arguments.tokens, arguments.rounds)
        if "first-token" in parts:
            found["first token"] = await first_token(engine, 2 * arguments.rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--schemas", type=int, default=300, help="for the random model (default 300)")
    parser.add_argument("--embedded", type=int, default=24, help="schemas for the embedded model (default 24)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer, for throughput (default 64)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        noise = Path(directory) / "noise"
        make_noise(noise)
        found = asyncio.run(measure(arguments, noise))
    if arguments.json:
        print(json.dumps(found))
        return
    for title, figures in found.items():
        print(title)
        for name, value in figures.items():
            print(f"  {name}: {value if not isinstance(value, float) else round(value, 3)}")


def make_noise(directory: Path) -> None:
    """In a process of its own: this one must stay without MLX."""
    import subprocess

    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-m", "tests.tiny_models", str(directory)], cwd=root, check=True)


if __name__ == "__main__":
    main()
