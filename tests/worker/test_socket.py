"""The worker as the supervisor drives it: on an inherited socket, with binary notifications and heartbeats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_serving.wire.notifications import Completed, Heartbeat, StepFrame

from .driver import WorkerProcess

HEARTBEAT_S = 0.02


@pytest.fixture(scope="module")
def shared_process(cache: Path, speller: Path, endless: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess.on_socket(cache) as worker:
        info = worker.call("runtime/info", protocols=["msgpack-frames-1"], heartbeat_interval_s=HEARTBEAT_S)
        assert info["notifications"] == "msgpack-frames-1"
        worker.call("load_model", model_id=str(speller))
        worker.call("load_model", model_id=str(endless))
        yield worker


def frames_to_the_end(worker: WorkerProcess, stream_id: str) -> Iterator[StepFrame]:
    """The frames of the steps, up to the one that ends the stream."""
    while True:
        frame: StepFrame = worker.take_frame(lambda message: isinstance(message, StepFrame))
        yield frame
        if any(row.stream_id == stream_id and row.end is not None for row in frame.rows):
            return


def test_a_frame_carries_the_rows_of_every_stream_in_the_step(shared_process: WorkerProcess, endless: Path) -> None:
    worker = shared_process
    worker.start_endless(endless, "one")
    worker.generate(model_id=str(endless), prompt="k", max_tokens=10, stream_id="two")
    frames = list(frames_to_the_end(worker, "two"))
    together = [frame for frame in frames if {row.stream_id for row in frame.rows} == {"one", "two"}]
    assert "".join(row.text for frame in together for row in frame.rows if row.stream_id == "two") == "lmnopqrstu"
    assert worker.call("abort", stream_id="one") == {"aborted": True}
    list(frames_to_the_end(worker, "one"))


def test_answers_stay_json_and_frames_carry_the_usage(shared_process: WorkerProcess, speller: Path) -> None:
    worker = shared_process
    worker.generate(model_id=str(speller), prompt="abc", max_tokens=2, stream_id="usage")
    last: StepFrame = worker.take_frame(
        lambda message: isinstance(message, StepFrame) and message.rows[0].end is not None
    )
    [row] = last.rows
    assert isinstance(row.end, Completed)
    assert (row.end.finish_reason, row.end.stats.prompt_tokens, row.end.stats.tokens_generated) == ("length", 3, 2)


def test_later_calls_do_not_turn_frames_off(shared_process: WorkerProcess) -> None:
    assert shared_process.call("runtime/info")["notifications"] == "msgpack-frames-1"


def test_heartbeats_tell_work_from_idleness(shared_process: WorkerProcess, endless: Path) -> None:
    worker = shared_process
    worker.start_endless(endless, "beat")
    worker.forget()
    first: Heartbeat = worker.take_frame(lambda message: isinstance(message, Heartbeat))
    later: Heartbeat = worker.take_frame(
        lambda message: isinstance(message, Heartbeat) and message.progress >= first.progress + 10
    )
    assert first.busy
    assert later.busy
    worker.call("abort", stream_id="beat")
    worker.forget()
    idle: Heartbeat = worker.take_frame(lambda message: isinstance(message, Heartbeat) and not message.busy)
    still: Heartbeat = worker.take_frame(lambda message: isinstance(message, Heartbeat))
    assert still.progress == idle.progress >= later.progress


@pytest.mark.parametrize("generating", [False, True])
def test_the_parent_s_end_is_the_worker_s_end(cache: Path, endless: Path, generating: bool) -> None:
    """An endless stream does not keep it."""
    with WorkerProcess.on_socket(cache) as worker:
        worker.call("load_model", model_id=str(endless))
        if generating:
            worker.start_endless(endless, "running")
        worker.close_input()
        assert worker.wait() == 0


def test_stdin_and_stdout_mean_nothing_to_it(cache: Path) -> None:
    with WorkerProcess.on_socket(cache) as worker:
        assert worker.process.stdin is not None
        worker.process.stdin.write(b'{"jsonrpc":"2.0","id":9,"method":"shutdown"}\n')
        worker.process.stdin.close()
        assert worker.call("runtime/state")["active_streams"] == 0
        assert worker.call("shutdown") == {"success": True}
        assert worker.wait() == 0
        assert worker.process.stdout is not None
        assert worker.process.stdout.read() == b""
