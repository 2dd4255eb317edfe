"""Loads beside streams: they take turns, and what is asked of a model that is being loaded waits for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..driver import WorkerProcess


def test_streams_of_other_models_go_on_between_the_slices_of_a_load(
    worker: WorkerProcess, endless: Path, llama: Path
) -> None:
    worker.call("load_model", model_id=str(endless))
    worker.start_endless(endless, "long")
    worker.take(lambda message: message.get("params", {}).get("stream_id") == "long")
    worker.forget()
    asked = worker.send("load_model", {"model_id": "beside", "local_path": str(llama)})
    told: list[str] = []
    while True:
        message = worker.take(lambda message: True)
        if message.get("id") == asked:
            break
        if message["method"] == "stream.chunk":
            told.append("step")
        elif message["method"] == "model.progress":
            told.append(message["params"]["stage"])
    assert message["result"]["model_id"] == "beside"
    # Reading the weights, finding out what the model can do: a step comes after each slice of it.
    first, last = told.index("reading"), len(told) - 1 - told[::-1].index("loading")
    assert told[first:last].count("step") >= 2
    assert told[last:].count("step") >= 2
    worker.call("abort", stream_id="long")
    worker.call("unload_model", model_id="beside")


def test_what_is_asked_of_a_model_that_is_being_loaded_waits_for_it(worker: WorkerProcess, llama: Path) -> None:
    load = worker.send("load_model", {"model_id": "late", "local_path": str(llama)})
    again = worker.send("load_model", {"model_id": "late", "local_path": str(llama)})
    tokens = worker.send("tokenize", {"model_id": "late", "text": "abc"})
    stream = {"model_id": "late", "prompt": "abc", "stream_id": "early", "max_tokens": 2, "temperature": 0}
    generate = worker.send("generate", stream)
    unload = worker.send("unload_model", {"model_id": "late"})
    assert worker.answer_to(load) == worker.answer_to(again)
    assert len(worker.answer_to(tokens)["tokens"]) == 3
    assert worker.answer_to(generate)["stream_id"] == "early"
    assert [message["method"] for message in worker.notifications("early")][-1] == "stream.event"
    assert worker.answer_to(unload) == {"success": True}
    assert worker.refusal("tokenize", model_id="late", text="abc").type == "ModelNotLoaded"


def test_models_are_loaded_in_the_order_in_which_they_were_asked_for(
    worker: WorkerProcess, llama: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(llama, tmp_path / "other")
    loads = [
        worker.send("load_model", {"model_id": name, "local_path": str(path)})
        for name, path in (("first", llama), ("broken", tmp_path / "nowhere"), ("second", other))
    ]
    answers = [worker.take(lambda message: message.get("id") in loads) for _ in loads]
    assert [answer["id"] for answer in answers] == loads
    assert ["error" in answer for answer in answers] == [False, True, False]
    for name in ("first", "second"):
        worker.call("unload_model", model_id=name)


def test_what_waits_for_a_load_that_fails_hears_that_there_is_no_model(worker: WorkerProcess, tmp_path: Path) -> None:
    load = worker.send("load_model", {"model_id": "none", "local_path": str(tmp_path)})
    tokens = worker.send("tokenize", {"model_id": "none", "text": "abc"})
    assert worker.take(lambda message: message.get("id") == load)["error"]["data"]["type"] == "ModelNotFound"
    assert worker.take(lambda message: message.get("id") == tokens)["error"]["data"]["type"] == "ModelNotLoaded"
