"""`pause` and `resume` on a real process, and what it does while nobody may go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_serving.wire.notifications import Failed, Heartbeat, StepFrame

from ..tiny_models import SPELLED
from .driver import WorkerProcess

HEARTBEAT_S = 0.02


@pytest.fixture
def worker(worker: WorkerProcess, endless: Path) -> WorkerProcess:
    worker.call("load_model", model_id=str(endless))
    worker.forget()
    return worker


@pytest.fixture(scope="module")
def on_socket(cache: Path, endless: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess.on_socket(cache) as worker:
        worker.call("runtime/info", protocols=["msgpack-frames-1"], heartbeat_interval_s=HEARTBEAT_S)
        worker.call("load_model", model_id=str(endless))
        yield worker


def test_a_paused_stream_stands_still_and_then_gives_the_rest(worker: WorkerProcess, endless: Path) -> None:
    worker.start_endless(endless, "slow")
    assert worker.call("pause", stream_id="slow") == {"found": True}
    worker.forget()
    state = worker.call("runtime/state")
    assert (state["active_streams"], state["paused_streams"]) == (1, 1)
    assert worker.text(worker.generate(model_id=str(endless), prompt="n")) == SPELLED[SPELLED.index("n") + 1 :]
    assert worker.call("runtime/state")["paused_streams"] == 1
    assert worker.call("resume", stream_id="slow") == {"found": True}
    worker.take(lambda message: message.get("method") == "stream.chunk" and message["params"]["stream_id"] == "slow")
    assert worker.call("runtime/state")["paused_streams"] == 0
    assert worker.call("abort", stream_id="slow") == {"aborted": True}
    assert list(worker.notifications("slow"))[-1]["finish_reason"] == "abort"


def test_pausing_and_resuming_who_is_not_there_finds_nobody(worker: WorkerProcess) -> None:
    assert worker.call("pause", stream_id="nobody") == {"found": False}
    assert worker.call("resume", stream_id="nobody") == {"found": False}


def test_nothing_is_done_while_every_stream_is_paused(on_socket: WorkerProcess, endless: Path) -> None:
    on_socket.start_endless(endless, "slow")
    on_socket.call("pause", stream_id="slow")
    on_socket.forget()
    idle: Heartbeat = on_socket.take_frame(lambda message: isinstance(message, Heartbeat) and not message.busy)
    for _ in range(5):
        beat: Heartbeat = on_socket.take_frame(lambda message: isinstance(message, Heartbeat))
        assert beat == idle
    on_socket.call("abort", stream_id="slow")


def test_a_stream_whose_time_is_over_fails_though_it_is_paused(on_socket: WorkerProcess, endless: Path) -> None:
    on_socket.generate(
        model_id=str(endless), prompt="a", stream_id="late", timeout_s=0.5, max_tokens=900_000, logit_bias={"258": -100}
    )
    on_socket.call("pause", stream_id="late")
    frame: StepFrame = on_socket.take_frame(
        lambda message: isinstance(message, StepFrame) and isinstance(message.rows[-1].end, Failed)
    )
    assert [(row.stream_id, row.end.error.data["type"]) for row in frame.rows if isinstance(row.end, Failed)] == [
        ("late", "Timeout")
    ]
    assert on_socket.call("runtime/state")["active_streams"] == 0


def test_at_the_end_of_input_paused_streams_are_finished(cache: Path, speller: Path) -> None:
    """Nobody is left who could resume them."""
    with WorkerProcess.by_hand(cache) as worker:
        worker.call("load_model", model_id=str(speller))
        worker.generate(model_id=str(speller), prompt="a", stream_id="slow")
        worker.call("pause", stream_id="slow")
        worker.close_input()
        assert worker.text("slow") == SPELLED[1:]
        assert worker.wait() == 0
