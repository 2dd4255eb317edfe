"""What batching texts is worth, and what a stream of text feels of a large batch of embeddings beside it.

    python benchmarks/embeddings.py [--texts 128] [--rounds 3] [--model all-minilm-l6-v2] [--beside smollm2-135m]

The same texts as one batch, and one request after the other; then a stream alone and beside batches without end. Ratios
are of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from contextlib import suppress

from mlx_serving import Engine

WORDS = [
    "the", "cat", "sat", "on", "a", "warm", "stone", "while", "rain", "fell", "over", "gardens", "nobody", "spoke",
]  # fmt: skip


def texts(count: int) -> list[str]:
    drawn = random.Random(7)
    return [" ".join(drawn.choices(WORDS, k=drawn.randrange(2, 60))) for _ in range(count)]


async def seconds_of_batch(engine: Engine, model: str, given: list[str]) -> float:
    began = time.monotonic()
    await engine.embed({"model": model, "input": given})
    return time.monotonic() - began


async def seconds_one_by_one(engine: Engine, model: str, given: list[str]) -> float:
    began = time.monotonic()
    for text in given:
        await engine.embed({"model": model, "input": text})
    return time.monotonic() - began


async def gaps(engine: Engine, model: str, tokens: int) -> list[float]:
    """Seconds between two pieces of a stream."""
    found: list[float] = []
    last = 0.0
    params = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True}
    async for chunk in engine.create_generator(params):
        now = time.monotonic()
        if chunk.type == "token":
            if last:
                found.append(now - last)
            last = now
    return found


async def without_end(engine: Engine, model: str, given: list[str]) -> None:
    while True:
        await engine.embed({"model": model, "input": given})


async def run(arguments: argparse.Namespace) -> None:
    given = texts(arguments.texts)
    async with Engine() as engine:
        for name in (arguments.model, arguments.beside):
            await engine.load_model(name)
        await engine.embed({"model": arguments.model, "input": given})
        await gaps(engine, arguments.beside, 4)
        batch: list[float] = []
        alone: list[float] = []
        for _ in range(arguments.rounds):
            batch.append(await seconds_of_batch(engine, arguments.model, given))
            alone.append(await seconds_one_by_one(engine, arguments.model, given))
        fastest, slow = statistics.median(batch), statistics.median(alone)
        print(f"{len(given)} texts as one batch   {len(given) / fastest:8.1f} texts/s")
        print(f"{len(given)} texts one by one     {len(given) / slow:8.1f} texts/s")
        print(f"batch to one by one    {slow / fastest:8.2f}")
        undisturbed = await gaps(engine, arguments.beside, arguments.tokens)
        beside = asyncio.create_task(without_end(engine, arguments.model, given))
        disturbed = await gaps(engine, arguments.beside, arguments.tokens)
        beside.cancel()
        with suppress(asyncio.CancelledError):
            await beside
        for name, found in (("alone", undisturbed), ("beside a batch", disturbed)):
            median, longest = statistics.median(found) * 1000, max(found) * 1000
            print(f"stream {name:15} median gap {median:7.1f} ms, longest {longest:7.1f} ms")
        print(f"longest gap beside to median step alone {max(disturbed) / statistics.median(undisturbed):8.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=60, help="of the stream")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--beside", default="smollm2-135m", help="the model that streams text")
    asyncio.run(run(parser.parse_args()))
