"""Requests for vectors in a real worker, driven from the other end of its pipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ... import tiny_encoders
from ...reference_encoder import ReferenceEncoder
from ..driver import WorkerProcess

TEXTS = ["a", "a cat", "x" * 400, "dogs and cats " * 9, "", "b", "some text", "y" * 90]
LIMIT = 420


@pytest.fixture(scope="module")
def bert(models: Path) -> Path:
    return tiny_encoders.make_bert(models / "bert", tokens=LIMIT)


@pytest.fixture(scope="module")
def reranker(models: Path) -> Path:
    return tiny_encoders.make_reranker(models / "reranker")


@pytest.fixture
def encoder(worker: WorkerProcess, bert: Path) -> WorkerProcess:
    worker.call("load_model", model_id=str(bert))
    worker.forget()
    return worker


def embed(worker: WorkerProcess, model: Path, inputs: list[Any], **params: object) -> dict[int, list[float]]:
    stream_id = worker.call("embed", model_id=str(model), inputs=inputs, **params)["stream_id"]
    return vectors(worker.notifications(stream_id))


def vectors(notifications: Iterator[dict[str, Any]]) -> dict[int, list[float]]:
    made: dict[int, list[float]] = {}
    for each in notifications:
        for vector in each.get("embeddings", []):
            assert vector["place"] not in made
            made[vector["place"]] = vector["embedding"]
    return made


def test_a_batch_is_what_its_inputs_are_alone(encoder: WorkerProcess, bert: Path) -> None:
    together = embed(encoder, bert, TEXTS)
    assert sorted(together) == list(range(len(TEXTS)))
    for place, text in enumerate(TEXTS):
        alone = embed(encoder, bert, [text])[0]
        assert np.allclose(together[place], alone, atol=1e-5)


def test_vectors_are_those_of_the_reference(encoder: WorkerProcess, bert: Path) -> None:
    reference = ReferenceEncoder(bert)
    made = embed(encoder, bert, TEXTS, places=[10 + place for place in range(len(TEXTS))])
    for place, text in enumerate(TEXTS):
        tokens = encoder.call("tokenize", model_id=str(bert), text=text)["tokens"]
        assert np.allclose(made[10 + place], reference.vector(tokens, "mean"), atol=1e-4)
        assert np.allclose(embed(encoder, bert, [tokens])[0], made[10 + place], atol=1e-5)


def test_the_first_dimensions_have_the_length_1_again(encoder: WorkerProcess, bert: Path) -> None:
    whole, cut = embed(encoder, bert, ["a cat"])[0], embed(encoder, bert, ["a cat"], dimensions=5)[0]
    assert np.allclose(cut, np.array(whole[:5]) / np.linalg.norm(whole[:5]), atol=1e-6)


def test_long_inputs_are_cut_when_that_is_asked_for(encoder: WorkerProcess, bert: Path) -> None:
    tokens = encoder.call("tokenize", model_id=str(bert), text="y" * 10)["tokens"]
    cut = embed(encoder, bert, ["y" * 900, tokens], truncate_to=12)
    assert np.allclose(cut[0], cut[1], atol=1e-5)
    assert len(embed(encoder, bert, ["y" * 900], truncate_to=-1)) == 1


def test_counts_are_told(encoder: WorkerProcess, bert: Path) -> None:
    accepted = encoder.call("embed", model_id=str(bert), inputs=["abc", [1, 2]], stream_id="counted")
    assert accepted["prompt_tokens"] == 7
    told = list(encoder.notifications("counted"))
    assert [(each["prompt_tokens"], each["tokens_generated"]) for each in told if "prompt_tokens" in each] == [(7, 0)]
    state = encoder.call("runtime/state")
    types = {each["model_id"]: each["type"] for each in state["loaded_models"]}
    assert types[str(bert)] == "embedding"
    assert state["active_streams"] == 0


_WRONG: list[tuple[dict[str, Any], str, int | None, int | None]] = [
    ({"inputs": ["a", "y" * 500]}, "input[1]", LIMIT, 502),
    ({"inputs": ["a", "y" * 500], "places": [3, 8]}, "input[8]", LIMIT, 502),
    ({"inputs": [[1, 259]]}, "input[0]", 258, 259),
    ({"inputs": ["a"], "dimensions": 65}, "dimensions", 64, 65),
    ({"inputs": ["a"], "truncate_to": 421}, "truncate_prompt_tokens", LIMIT, 421),
    ({"inputs": ["a"], "truncate_to": 1}, "truncate_prompt_tokens", None, 1),
    ({"inputs": ["a"], "truncate_to": 0}, "truncate_prompt_tokens", None, 0),
    ({"inputs": ["a", "b"], "places": [1, 1]}, "places", 2, None),
    ({"inputs": ["a", "b", "c"], "queries": ["q", "r"]}, "queries", 3, 2),
    ({"inputs": ["a"], "queries": ["q"]}, "model", None, None),
    ({"inputs": []}, "inputs", None, None),
    ({"inputs": [[]]}, "inputs[0]", None, None),
]


@pytest.mark.parametrize(("params", "field", "limit", "given"), _WRONG)
def test_what_is_wrong_is_refused_by_name(
    encoder: WorkerProcess, bert: Path, params: dict[str, Any], field: str, limit: object, given: object
) -> None:
    refused = encoder.refusal("embed", model_id=str(bert), **params)
    assert refused.details.get("field") == field
    assert limit is None or refused.details["limit"] == limit
    assert given is None or refused.details["given"] == given
    assert len(embed(encoder, bert, ["a"])) == 1


def test_each_kind_of_model_does_its_own_work(
    encoder: WorkerProcess, speller: Path, bert: Path, reranker: Path
) -> None:
    encoder.call("load_model", model_id=str(reranker))
    assert "makes embeddings; it writes no text" in encoder.refusal("generate", model_id=str(bert), prompt="a").message
    assert "pooling is configured" in encoder.refusal("embed", model_id=str(speller), inputs=["a"]).message
    assert "against a query" in encoder.refusal("embed", model_id=str(reranker), inputs=["a"]).message
    scores = embed(encoder, reranker, ["A cat.", "No."], queries=["What?"])
    assert all(0 < score < 1 for (score,) in scores.values())
    swapped = embed(encoder, reranker, ["A cat.", "No."], queries=["What?", "Why?"])
    assert swapped[0] == pytest.approx(scores[0], abs=1e-6)
    assert swapped[1] != pytest.approx(scores[1], abs=1e-6)
    assert encoder.refusal("embed", model_id=str(reranker), inputs=[[1]], queries=["q"]).details["field"] == "input[0]"


def test_a_request_ends_when_it_is_aborted(encoder: WorkerProcess, bert: Path) -> None:
    encoder.call("embed", model_id=str(bert), inputs=["y" * 400] * 300, stream_id="long")
    refused = encoder.refusal("embed", model_id=str(bert), inputs=["a"], stream_id="long")
    assert refused.details["field"] == "stream_id"
    assert encoder.call("abort", stream_id="long") == {"aborted": True}
    ended = list(encoder.notifications("long"))
    assert ended[-1]["finish_reason"] == "abort"
    assert len(vectors(iter(ended))) < 300
    assert encoder.call("abort", stream_id="long") == {"aborted": False}
    late = encoder.send("embed", {"model_id": str(bert), "inputs": ["a"] * 300, "stream_id": "opening"})
    assert encoder.call("abort", stream_id="opening") == {"aborted": True}
    assert len(embed(encoder, bert, ["a"])) == 1
    encoder.take(lambda message: message.get("id") == late)


def test_a_deadline_ends_a_request(encoder: WorkerProcess, bert: Path) -> None:
    encoder.call("embed", model_id=str(bert), inputs=["y" * 400] * 2000, stream_id="late", timeout_s=0.2)
    ended = list(encoder.notifications("late"))[-1]
    assert (ended["event"], ended["data"]["type"]) == ("error", "Timeout")


def test_a_model_goes_after_its_last_request(encoder: WorkerProcess, bert: Path) -> None:
    encoder.call("embed", model_id=str(bert), inputs=["y" * 100] * 50, stream_id="last")
    unloading = encoder.send("unload_model", {"model_id": str(bert)})
    assert len(vectors(encoder.notifications("last"))) == 50
    assert encoder.answer_to(unloading) == {"success": True}
    assert encoder.refusal("embed", model_id=str(bert), inputs=["a"]).type == "ModelNotLoaded"


def test_a_forced_unload_ends_requests(encoder: WorkerProcess, bert: Path) -> None:
    encoder.call("embed", model_id=str(bert), inputs=["y" * 400] * 300, stream_id="cut")
    encoder.call("unload_model", model_id=str(bert), force=True)
    assert list(encoder.notifications("cut"))[-1]["finish_reason"] == "abort"


def test_streams_go_on_beside_a_batch(encoder: WorkerProcess, bert: Path, endless: Path) -> None:
    encoder.call("load_model", model_id=str(endless))
    encoder.start_endless(endless, "text")
    encoder.call("embed", model_id=str(bert), inputs=["y" * 200] * 200, stream_id="batch")
    tokens = rows = 0
    while True:
        message = encoder.take(lambda message: "stream_id" in message.get("params", {}))["params"]
        tokens += message["stream_id"] == "text"
        rows += message["stream_id"] == "batch" and "embeddings" in message
        if message["stream_id"] == "batch" and message.get("is_final"):
            break
    assert rows > 4  # it was cut
    assert tokens >= rows - 1  # a step between any two passes
    encoder.call("abort", stream_id="text")


def test_one_that_is_too_large_for_the_memory_of_a_pass_is_refused(cache: Path, bert: Path) -> None:
    settings = {"memory": {"prefill_bytes": 1 << 20}}
    with WorkerProcess.by_hand(cache, settings) as small:
        small.call("load_model", model_id=str(bert))
        refused = small.refusal("embed", model_id=str(bert), inputs=["a", "y" * 400])
        assert refused.details["field"] == "input[1]"
        assert 50 < refused.details["limit"] < 402 == refused.details["given"]
        assert len(embed(small, bert, ["y" * 50] * 20)) == 20


def test_what_was_accepted_is_finished_at_the_end_of_the_input(cache: Path, bert: Path) -> None:
    with WorkerProcess.by_hand(cache) as process:
        process.send("load_model", {"model_id": str(bert)})
        process.send("embed", {"model_id": str(bert), "inputs": ["y" * 50] * 20, "stream_id": "s"})
        process.close_input()
        assert len(vectors(process.notifications("s"))) == 20
        assert process.wait() == 0
