"""Embeddings and reranking over HTTP."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from mlx_serving.core.generation import EmbeddingInputs
from mlx_serving.errors import ContextLengthExceeded

from .scripted_engine import Script, ScriptedEngine, vector_of


async def test_openais_client_gets_a_vector_for_each_input(client: AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.embeddings.create(model="tiny", input=["a", "b", "c"], dimensions=2, user="me")
    assert [(each.index, each.embedding) for each in answer.data] == [
        (0, [0.0, 1.0]),
        (1, [0.125, 0.875]),
        (2, [0.25, 0.75]),
    ]
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("tiny", 6, 6)
    assert engine.last_request.prompt == EmbeddingInputs(("a", "b", "c"), dimensions=2)
    assert engine.last_request.caller == "me"


@pytest.mark.parametrize(
    ("given", "inputs"),
    [("a", ("a",)), (["a"], ("a",)), ([1, 2], ((1, 2),)), ([[1, 2], [3]], ((1, 2), (3,)))],
)
async def test_every_form_of_input_is_taken(
    http: httpx2.AsyncClient, engine: ScriptedEngine, given: object, inputs: object
) -> None:
    body = {"model": "tiny", "input": given, "truncate_prompt_tokens": -1}
    assert (await http.post("/v1/embeddings", json=body)).status_code == 200
    assert engine.last_request.prompt == EmbeddingInputs(inputs, truncate_to=-1)  # type: ignore[arg-type]


async def test_base64_is_the_same_numbers(http: httpx2.AsyncClient) -> None:
    body = {"input": ["a", "b"], "encoding_format": "base64"}
    data = (await http.post("/v1/embeddings", json=body)).json()["data"]
    assert [base64.b64decode(each["embedding"]) for each in data] == [vector_of(0), vector_of(1)]


async def test_many_vectors_come_in_order(http: httpx2.AsyncClient) -> None:
    data = (await http.post("/v1/embeddings", json={"input": ["a"] * 200})).json()["data"]
    assert [each["embedding"][0] for each in data] == [index / 8 for index in range(200)]


RERANK: dict[str, Any] = {"query": "q", "documents": ["a", {"text": "b"}, "c"]}


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_documents_come_the_best_first(http: httpx2.AsyncClient, engine: ScriptedEngine, path: str) -> None:
    answer = (await http.post(path, json=RERANK | {"top_n": 2})).json()
    assert answer["results"] == [
        {"index": 2, "relevance_score": 0.25, "document": {"text": "c"}},
        {"index": 1, "relevance_score": 0.125, "document": {"text": "b"}},
    ]
    assert (answer["model"], answer["usage"]["total_tokens"]) == ("tiny", 6)
    assert engine.last_request.prompt == EmbeddingInputs(("a", "b", "c"), ("q",))


async def test_documents_may_be_left_out(http: httpx2.AsyncClient) -> None:
    results = (await http.post("/v1/rerank", json=RERANK | {"return_documents": False})).json()["results"]
    assert [set(each) for each in results] == [{"index", "relevance_score"}] * 3


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
async def test_pairs_are_scored(http: httpx2.AsyncClient, engine: ScriptedEngine, path: str) -> None:
    answer = (await http.post(path, json={"text_1": ["q", "r"], "text_2": ["a", "b"]})).json()
    assert answer["data"] == [
        {"index": 0, "object": "score", "score": 0.0},
        {"index": 1, "object": "score", "score": 0.125},
    ]
    assert engine.last_request.prompt == EmbeddingInputs(("a", "b"), ("q", "r"))


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/embeddings", {"model": "tiny"}, 400, "input"),
        ("/v1/embeddings", {"input": []}, 400, "input"),
        ("/v1/embeddings", {"input": ""}, 400, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, 400, "input[1]"),
        ("/v1/embeddings", {"input": ["a", 1]}, 400, "input[1]"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, 400, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": -2}, 400, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "priority": 3}, 400, "priority"),
        ("/v1/embeddings", {"input": "a", "instruction": "x"}, 400, "instruction"),
        ("/v1/embeddings", {"input": "a", "model": "missing"}, 404, None),
        ("/v1/rerank", {"query": "q"}, 400, "documents"),
        ("/v1/rerank", {"query": "q", "documents": []}, 400, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a", ""]}, 400, "documents[1]"),
        ("/v1/rerank", {"query": "q", "documents": ["a"] * 2049}, 400, "documents"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, 400, "query"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, 400, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, 400, "text_2"),
    ],
)
async def test_what_is_not_right_is_refused_by_name(
    http: httpx2.AsyncClient, path: str, body: dict[str, Any], status: int, field: str | None
) -> None:
    refused = await http.post(path, json=body)
    assert refused.status_code == status
    assert refused.json()["error"]["param"] == field


async def test_what_the_model_refuses_names_the_callers_field(
    http: httpx2.AsyncClient, client: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    too_long = ContextLengthExceeded("input[1] has 9 tokens, m takes 8", field="input[1]", limit=8, given=9)
    engine.script = Script(refusal=too_long)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model="tiny", input=["a", "b"])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input[1]")
    error = (await http.post("/v1/rerank", json=RERANK)).json()["error"]
    assert (error["param"], error["message"]) == ("documents[1]", "documents[1] has 9 tokens, m takes 8")
