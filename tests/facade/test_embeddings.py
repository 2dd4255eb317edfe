"""`Engine.embed` and `Engine.rerank`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from mlx_serving import Engine
from mlx_serving.errors import ContextLengthExceeded, InvalidRequest


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def encoders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> AsyncGenerator[Engine]:
    from ..tiny_encoders import make_bert, make_reranker  # imports MLX

    home = tmp_path_factory.mktemp("encoders")
    served = [
        {"model": str(make_bert(home / "bert", tokens=40)), "preload": False},
        {"model": str(make_reranker(home / "reranker")), "preload": False},
        {"model": str(tiny_model), "name": "pooled", "pooling": "last", "preload": False},
    ]
    async with Engine({"models": {"served": served}}) as opened:
        yield opened


async def test_texts_and_tokens_become_vectors(encoders: Engine) -> None:
    made = await encoders.embed({"model": "bert", "input": ["abc", "a longer text"]})
    assert [len(vector) for vector in made.embeddings] == [64, 64]
    assert made.prompt_tokens == 20
    assert made.to_object()["promptTokens"] == 20
    tokens = (await encoders.tokenize({"model": "bert", "text": "abc"})).tokens
    same = await encoders.embed({"model": "bert", "input": tokens})
    both = await encoders.embed({"modelId": "bert", "input": [tokens, tokens], "dimensions": 3})
    assert np.allclose(same.embeddings[0], made.embeddings[0], atol=1e-5)
    assert [len(vector) for vector in both.embeddings] == [3, 3]


async def test_a_model_of_text_makes_vectors_where_pooling_is_configured(encoders: Engine) -> None:
    made = await encoders.embed({"model": "pooled", "input": "abc"})
    assert np.linalg.norm(made.embeddings[0]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(InvalidRequest, match="writes no text"):
        await encoders.generate({"model": "pooled", "prompt": "abc"})


async def test_documents_are_ranked(encoders: Engine) -> None:
    documents = ["a", "quite another one", "c"]
    ranked = await encoders.rerank({"model": "reranker", "query": "What?", "documents": documents})
    assert sorted(each.index for each in ranked) == [0, 1, 2]
    assert [each.score for each in ranked] == sorted((each.score for each in ranked), reverse=True)
    best = await encoders.rerank({"model": "reranker", "query": "What?", "documents": documents, "topN": 1})
    assert [each.index for each in best] == [ranked[0].index]
    assert best[0].score == pytest.approx(ranked[0].score, abs=1e-6)


async def test_mistakes_are_told(encoders: Engine) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await encoders.embed({"model": "bert", "input": [], "dimensions": 0})
    assert {str(issue["field"]) for issue in caught.value.details["issues"]} >= {"dimensions"}  # type: ignore[attr-defined]
    with pytest.raises(ContextLengthExceeded, match="input\\[1\\] has 92 tokens"):
        await encoders.embed({"model": "bert", "input": ["a", "y" * 90]})
    cut = await encoders.embed({"model": "bert", "input": "y" * 90, "truncatePromptTokens": -1})
    assert cut.prompt_tokens == 40
