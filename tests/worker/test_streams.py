"""Several streams at once in a real process: they progress together, end alone, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..tiny_models import SPELLED
from .driver import Refused, WorkerProcess


@pytest.fixture
def worker(worker: WorkerProcess, endless: Path) -> WorkerProcess:
    worker.call("load_model", model_id=str(endless))
    return worker


def tokens_of(worker: WorkerProcess, stream_id: str, count: int) -> None:
    """Wait until a stream has given that many more tokens."""
    for _ in range(count):
        worker.take(
            lambda message: message.get("method") == "stream.chunk" and message["params"]["stream_id"] == stream_id
        )


def finish_reason(worker: WorkerProcess, stream_id: str) -> str:
    return list(worker.notifications(stream_id))[-1]["finish_reason"]


def test_streams_of_one_model_progress_together_and_do_not_mix(worker: WorkerProcess, endless: Path) -> None:
    worker.start_endless(endless, "background")
    starts = {f"from-{index}": SPELLED[index] for index in range(0, 20, 3)}
    for stream, prompt in starts.items():
        worker.send("generate", {"model_id": str(endless), "prompt": prompt, "stream_id": stream})
    for stream, prompt in starts.items():
        assert worker.text(stream) == SPELLED[SPELLED.index(prompt) + 1 :]
    tokens_of(worker, "background", 3)
    assert worker.call("runtime/state")["active_streams"] == 1
    worker.call("abort", stream_id="background")
    assert finish_reason(worker, "background") == "abort"


def test_streams_of_two_models_progress_together(worker: WorkerProcess, endless: Path, speller: Path) -> None:
    worker.start_endless(endless, "other")
    assert worker.text(worker.generate(model_id=str(speller), prompt="a")) == SPELLED[1:]
    tokens_of(worker, "other", 3)
    worker.call("abort", stream_id="other")
    assert finish_reason(worker, "other") == "abort"


def test_an_abort_frees_the_slot_while_others_go_on(worker: WorkerProcess, endless: Path) -> None:
    worker.start_endless(endless, "stays")
    worker.start_endless(endless, "leaves")
    tokens_of(worker, "leaves", 2)
    assert worker.call("abort", stream_id="leaves") == {"aborted": True}
    *_, stats, event = worker.notifications("leaves")
    assert event["finish_reason"] == "abort"
    assert stats["tokens_generated"] >= 2
    assert worker.call("runtime/state")["active_streams"] == 1
    worker.forget()
    tokens_of(worker, "stays", 2)
    assert worker.call("abort", stream_id="leaves") == {"aborted": False}
    worker.call("abort", stream_id="stays")
    assert worker.call("runtime/state")["active_streams"] == 0
    list(worker.notifications("stays"))


def test_a_stream_that_is_aborted_while_its_prompt_is_tokenized_never_begins(
    worker: WorkerProcess, speller: Path
) -> None:
    """A long text keeps the tokenizer thread busy while the two requests behind it are read."""
    long = worker.send("tokenize", {"model_id": str(speller), "text": "x" * 1_000_000})
    opened = worker.send("generate", {"model_id": str(speller), "prompt": "a", "stream_id": "early"})
    aborted = worker.send("abort", {"stream_id": "early"})
    assert worker.answer_to(aborted) == {"aborted": True}
    with pytest.raises(Refused) as caught:
        worker.answer_to(opened)
    assert (caught.value.code, caught.value.type, caught.value.details["stream_id"]) == (-32006, "Cancelled", "early")
    assert len(worker.answer_to(long)["tokens"]) == 1_000_000
    assert worker.text(worker.generate(model_id=str(speller), prompt="a", max_tokens=1, stream_id="early")) == "b"


def test_streams_go_on_while_a_long_text_is_tokenized(worker: WorkerProcess, endless: Path) -> None:
    worker.start_endless(endless, "running")
    long = worker.send("tokenize", {"model_id": str(endless), "text": "x" * 1_000_000})
    state = worker.send("runtime/state")
    assert worker.answer_to(state)["active_streams"] == 1
    worker.answer_to(long)
    worker.call("abort", stream_id="running")
    assert finish_reason(worker, "running") == "abort"


def test_unloading_waits_for_streams_and_admits_no_more(worker: WorkerProcess, speller: Path) -> None:
    worker.call("load_model", model_id="leaving", local_path=str(speller))
    worker.generate(model_id="leaving", prompt="a", stream_id="last")
    unload = worker.send("unload_model", {"model_id": "leaving"})
    again = worker.send("unload_model", {"model_id": "leaving"})
    worker.send("generate", {"model_id": "leaving", "prompt": "a"}, request_id="late")
    assert worker.text("last") == SPELLED[1:]
    assert worker.answer_to(unload) == worker.answer_to(again) == {"success": True}
    with pytest.raises(Refused) as caught:
        worker.answer_to("late")
    assert caught.value.type == "ModelNotLoaded"


def test_unloading_ends_when_the_last_stream_is_aborted(worker: WorkerProcess, endless: Path) -> None:
    worker.call("load_model", model_id="leaving", local_path=str(endless))
    worker.start_endless(Path("leaving"), "last")
    unload = worker.send("unload_model", {"model_id": "leaving"})
    assert worker.refusal("load_model", model_id="leaving", local_path=str(endless)).details["field"] == "model_id"
    worker.call("abort", stream_id="last")
    assert worker.answer_to(unload) == {"success": True}
    assert finish_reason(worker, "last") == "abort"


def test_unloading_ends_when_the_last_stream_is_refused(worker: WorkerProcess, speller: Path) -> None:
    worker.call("load_model", model_id="leaving", local_path=str(speller))
    opened = worker.send("generate", {"model_id": "leaving", "prompt": "x" * 1_000_000})
    unload = worker.send("unload_model", {"model_id": "leaving"})
    with pytest.raises(Refused, match="The context holds 512 tokens, but the prompt has 1000000"):
        worker.answer_to(opened)
    assert worker.answer_to(unload) == {"success": True}


def test_a_forced_unload_aborts_streams_that_run_and_that_open(worker: WorkerProcess, endless: Path) -> None:
    worker.call("load_model", model_id="leaving", local_path=str(endless))
    worker.start_endless(Path("leaving"), "running")
    opened = worker.send("generate", {"model_id": "leaving", "prompt": "x" * 1_000_000})
    assert worker.call("unload_model", model_id="leaving", force=True) == {"success": True}
    assert finish_reason(worker, "running") == "abort"
    with pytest.raises(Refused) as caught:
        worker.answer_to(opened)
    assert caught.value.type == "Cancelled"
    worker.start_endless(endless, "elsewhere")
    worker.call("abort", stream_id="elsewhere")
    assert finish_reason(worker, "elsewhere") == "abort"


def test_streams_may_share_the_prompt_of_one_that_is_just_opening(worker: WorkerProcess, speller: Path) -> None:
    """All are sent at once: whether the first has its prompt tokenized by then is nobody's business."""
    prompt = SPELLED[:5]
    for stream, fork_of in (("first", None), ("second", "first"), ("third", "first"), ("orphan", "nobody")):
        hint = {} if fork_of is None else {"fork_of": fork_of}
        worker.send("generate", {"model_id": str(speller), "prompt": prompt, "stream_id": stream, **hint})
    for stream in ("orphan", "third", "second", "first"):
        assert worker.text(stream) == SPELLED[5:]
