"""The plain form of what the engine hands out: camelCase, without what is None, ready for JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.generation import FinishReason
from mlx_serving.errors import InvalidRequest
from mlx_serving.facade.shapes import (
    CachedModel,
    ErrorChunk,
    GenerationStats,
    MetadataChunk,
    ModelCacheStats,
    ModelDescriptor,
    ModelHandle,
    TokenChunk,
    TokenLogprob,
    camel,
)


@pytest.mark.parametrize(
    ("snake", "expected"),
    [("token", "token"), ("token_id", "tokenId"), ("time_to_first_token", "timeToFirstToken"), ("top_p", "topP")],
)
def test_names_become_camel_case(snake: str, expected: str) -> None:
    assert camel(snake) == expected


def test_chunks_say_of_which_type_they_are() -> None:
    stats = GenerationStats(3, 10.0, 0.5, 0.8, 7, "m", 4, 6, 2, "ngram")
    assert TokenChunk("hi", 5, (5,)).to_object() == {
        "token": "hi", "tokenId": 5, "tokenIds": [5], "isFinal": False, "type": "token",
    }  # fmt: skip
    other = TokenLogprob("\\xe2", 6, -1.0, (226,))
    of_token = TokenLogprob("hi", 5, -0.5, None, (other,))
    assert TokenChunk("hi", 5, (5,), False, -0.5, (of_token,)).to_object() == {
        "token": "hi", "tokenId": 5, "tokenIds": [5], "isFinal": False, "type": "token", "logprob": -0.5,
        "logprobs": [
            {"token": "hi", "tokenId": 5, "logprob": -0.5, "topLogprobs": [
                {"token": "\\xe2", "tokenId": 6, "logprob": -1.0, "bytes": [226], "topLogprobs": []},
            ]},
        ],
    }  # fmt: skip
    assert MetadataChunk(stats, FinishReason.STOP).to_object() == {
        "stats": {
            "tokensGenerated": 3,
            "tokensPerSecond": 10.0,
            "timeToFirstToken": 0.5,
            "totalTime": 0.8,
            "promptTokens": 7,
            "modelId": "m",
            "cachedTokens": 4,
            "draftTokens": 6,
            "draftTokensAccepted": 2,
            "speculation": "ngram",
        },
        "finishReason": "stop",
        "type": "metadata",
    }
    assert ErrorChunk(InvalidRequest("no", field="x")).to_object() == {
        "error": {"code": "InvalidParams", "message": "no", "details": {"field": "x"}},
        "type": "error",
    }


def test_shapes_within_shapes_are_plain_too() -> None:
    stats = ModelCacheStats(1, [CachedModel("m", "ready")])
    assert stats.to_object() == {"loadedModels": 1, "models": [{"modelId": "m", "state": "ready"}]}
    handle = ModelHandle(ModelDescriptor("m", "local"), "ready", 10, {"parameter_count": 1, "quantization": None})
    assert handle.to_object()["metadata"] == {"parameterCount": 1}
    assert handle.to_object()["descriptor"] == {
        "id": "m", "source": "local", "modality": "text", "family": "mlx-lm",
    }  # fmt: skip


@given(st.text(), st.lists(st.integers(0, 2**31)))
def test_a_token_chunk_is_ready_for_json(text: str, ids: list[int]) -> None:
    plain = TokenChunk(text, ids[0] if len(ids) == 1 else None, tuple(ids)).to_object()
    assert json.loads(json.dumps(plain)) == plain
