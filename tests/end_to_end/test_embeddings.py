"""Embeddings over a real server: the embedded MiniLM, a crash, streams beside."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from mlx_serving.catalog.aliases import find_directory

from ..command_line import LIMIT_S
from ..reference_encoder import cosine, vectors_aside
from .served_process import ServedProcess, serving
from .tiny_server import FORCED, HELLO, config_of

MINILM = "all-minilm-l6-v2"
WORDS = [
    "the", "cat", "sat", "quietly", "on", "a", "warm", "stone", "while", "rain", "fell", "over", "gardens", "and",
    "nobody", "spoke", "of", "money,", "war", "or", "sea", "because", "42", "engineers", "compiled", "Metal", "kernels",
    "in", "Zürich;", "naïve", "café", "owners", "sold", "日本", "tea,", "€3", "each", "—", "what", "day!",
]  # fmt: skip


def texts(count: int, *, longest: int = 20) -> list[str]:
    """Of 1 to `longest` words."""
    drawn = random.Random(7)
    return [" ".join(drawn.choices(WORDS, k=drawn.randrange(1, longest + 1))) for _ in range(count)]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedding(tmp_path_factory: pytest.TempPathFactory, random_llama: Path) -> AsyncGenerator[ServedProcess]:
    """A server with MiniLM and a random llama."""
    config = config_of(random_llama, server={"max_body_bytes": 1 << 20})
    config["models"] = {"served": [{"model": str(random_llama), "name": "tiny"}, {"model": MINILM}]}
    async with serving(tmp_path_factory.mktemp("embedding"), config=config) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="session")
async def vectors_of(embedding: ServedProcess) -> AsyncGenerator[AsyncOpenAI]:
    async with embedding.openai() as opened:
        yield opened


async def test_100_texts_agree_with_the_reference(embedding: ServedProcess, vectors_of: AsyncOpenAI) -> None:
    given = texts(100)
    answer = await vectors_of.embeddings.create(model=MINILM, input=given)  # in base64, which the client decodes
    async with embedding.http() as http:
        asked = [http.post("/tokenize", json={"model": MINILM, "prompt": text}) for text in given]
        tokens: list[list[int]] = [(await each).json()["tokens"] for each in asked]
    reference = await asyncio.to_thread(vectors_aside, find_directory(MINILM), tokens, "mean")
    assert min(cosine(each.embedding, other) for each, other in zip(answer.data, reference, strict=True)) >= 0.9999
    assert all(np.linalg.norm(each.embedding) == pytest.approx(1, abs=1e-5) for each in answer.data)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))


async def test_a_batch_is_what_its_texts_are_alone(vectors_of: AsyncOpenAI) -> None:
    given = texts(12, longest=60)
    batch = await vectors_of.embeddings.create(model=MINILM, input=given, encoding_format="float")
    alone = await asyncio.gather(*(vectors_of.embeddings.create(model=MINILM, input=text) for text in given))
    for each, one in zip(batch.data, alone, strict=True):
        assert np.allclose(each.embedding, one.data[0].embedding, atol=1e-5)


async def test_base64_is_float(vectors_of: AsyncOpenAI) -> None:
    as_float = await vectors_of.embeddings.create(model=MINILM, input="Hello", encoding_format="float")
    as_base64 = await vectors_of.embeddings.create(model=MINILM, input="Hello")
    assert np.array_equal(
        np.array(as_float.data[0].embedding, np.float32), np.array(as_base64.data[0].embedding, np.float32)
    )


async def test_mistakes_are_told(vectors_of: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await vectors_of.embeddings.create(model=MINILM, input=["a", "word " * 300])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input[1]")
    with pytest.raises(openai.BadRequestError, match="dimensions must be at most 384"):
        await vectors_of.embeddings.create(model=MINILM, input="a", dimensions=385)
    with pytest.raises(openai.BadRequestError, match="writes text, and makes no embeddings"):
        await vectors_of.embeddings.create(model="tiny", input="a")
    with pytest.raises(openai.BadRequestError, match="makes embeddings; it writes no text"):
        await vectors_of.chat.completions.create(model=MINILM, messages=HELLO)
    capabilities = {model.id: model.capabilities for model in (await vectors_of.models.list()).data}  # type: ignore[attr-defined]
    assert capabilities == {"tiny": ["completions", "chat"], MINILM: ["embeddings"]}


async def test_a_batch_survives_its_worker(embedding: ServedProcess, vectors_of: AsyncOpenAI) -> None:
    given = texts(300, longest=60)
    before = (await embedding.health())["worker"]
    batch = asyncio.create_task(vectors_of.embeddings.create(model=MINILM, input=given))
    await embedding.healthy_when(lambda report: report["active_streams"] == 1)
    os.kill(before["pid"], signal.SIGKILL)
    answer = await batch
    assert (await embedding.health())["worker"]["restarts"] == before["restarts"] + 1
    again = await vectors_of.embeddings.create(model=MINILM, input=given[:20])
    for each, other in zip(answer.data, again.data, strict=False):
        assert np.allclose(each.embedding, other.embedding, atol=1e-5)
    assert len(answer.data) == 300
    assert answer.usage.prompt_tokens > 300


async def test_a_stream_goes_on_beside_a_batch(vectors_of: AsyncOpenAI) -> None:
    async def stream_until(done: asyncio.Event) -> int:
        chunks = 0
        stream = await vectors_of.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, extra_body={**FORCED, "max_tokens": 50_000}
        )
        async with stream:
            async for _ in stream:
                chunks += not done.is_set()
                if done.is_set():
                    break
        return chunks

    done = asyncio.Event()
    async with asyncio.timeout(LIMIT_S):
        streaming = asyncio.create_task(stream_until(done))
        answer = await vectors_of.embeddings.create(model=MINILM, input=texts(100, longest=60))
        done.set()
        assert await streaming > 10
    assert len(answer.data) == 100


async def test_a_client_that_leaves_ends_its_batch(embedding: ServedProcess, vectors_of: AsyncOpenAI) -> None:
    batch = asyncio.create_task(vectors_of.embeddings.create(model=MINILM, input=texts(1000, longest=60)))
    await embedding.healthy_when(lambda report: report["active_streams"] == 1)
    batch.cancel()
    await asyncio.wait((batch,))
    await embedding.healthy_when(lambda report: report["active_streams"] == 0)
    await embedding.logged("request", path="/v1/embeddings", status=499)
