"""The threads that own the pipe, on pipes of the test's own."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator

import pytest

from mlx_serving.core.generation import FinishReason
from mlx_serving.wire.framing import Frame, Line, MessageReader, Oversized
from mlx_serving.wire.notifications import Completed, Heartbeat, Row, Stats, StepFrame, decode_binary, join_rows
from mlx_serving.worker.heartbeat import Progress, Pulse
from mlx_serving.worker.pipe import EndOfInput, Outbox, start_reader

from .driver import TIMEOUT_S


class Pipe:
    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self._open = {self.read_fd, self.write_fd}

    def close(self, *fds: int) -> None:
        for fd in self._open.intersection(fds or self._open):
            self._open.discard(fd)
            os.close(fd)

    def read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count and (more := os.read(self.read_fd, count - len(data))):
            data += more
        return bytes(data)


def nobody() -> None:
    """Waits for no outbox to be clear."""


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_the_reader_delivers_messages_then_the_end(pipe: Pipe) -> None:
    delivered: queue.SimpleQueue[object] = queue.SimpleQueue()
    start_reader(pipe.read_fd, 10, delivered.put)
    os.write(pipe.write_fd, b"one\n\n\xc1two\n" + b"x" * 50 + b"\nlast")
    pipe.close(pipe.write_fd)
    got = [delivered.get(timeout=TIMEOUT_S) for _ in range(5)]
    assert got[:2] == [Line(b"one"), Line(b"\xc1two")]
    assert isinstance(got[2], Oversized)
    assert got[3:] == [Line(b"last"), EndOfInput()]


def test_the_outbox_writes_in_order(pipe: Pipe) -> None:
    outbox = Outbox(pipe.write_fd, nobody)
    for index in range(1000):
        outbox.send(b"%03d" % index)
    assert pipe.read(3000) == b"".join(b"%03d" % index for index in range(1000))
    assert outbox.flush(TIMEOUT_S) is True


_END = Completed(FinishReason.STOP, Stats(1, 2, 0.0, 0.0, 0.0))


def frames(pipe: Pipe, count: int) -> list[list[Row]]:
    """The rows of the next frames."""
    reader, got = MessageReader(), list[list[Row]]()
    while len(got) < count:
        for message in reader.feed(os.read(pipe.read_fd, 1 << 16)):
            assert isinstance(message, Frame)
            notification = decode_binary(message.data)
            assert isinstance(notification, StepFrame)
            got.append(notification.rows)
    return got


def paced(pipe: Pipe, interval_s: float) -> Outbox:
    """One that has just written a frame."""
    outbox = Outbox(pipe.write_fd, nobody, frame_interval_s=interval_s)
    outbox.use_binary_notifications()
    outbox.tell(StepFrame([Row("a", [1], "x"), Row("b", [1], "x")]))
    assert frames(pipe, 1) == [[Row("a", [1], "x"), Row("b", [1], "x")]]
    return outbox


@pytest.mark.parametrize(
    "urgent",
    [
        pytest.param([Row("c", [5], "new", cached_tokens=0), Row("a", [3], "z")], id="one begins"),
        pytest.param([Row("c", [], "", _END), Row("a", [3], "z")], id="one ends"),
        pytest.param([Row("c", [3], "z")], id="one stream only"),
    ],
)
def test_steps_share_a_frame_until_one_cannot_wait(pipe: Pipe, urgent: list[Row]) -> None:
    outbox = paced(pipe, 3600.0)
    outbox.tell(StepFrame([Row("a", [2], "y"), Row("b", [2], "y")]))
    outbox.tell(StepFrame(urgent))
    [rows] = frames(pipe, 1)
    expected = [Row("a", [2], "y"), Row("b", [2], "y")]
    join_rows(expected, urgent)
    assert rows == expected


def test_steps_that_waited_are_sent_when_nothing_follows(pipe: Pipe) -> None:
    outbox = paced(pipe, 0.001)
    for token in range(2, 5):
        outbox.tell(StepFrame([Row("a", [token], "y"), Row("b", [token], "y")]))
    tokens: list[int] = []
    while len(tokens) < 3:
        tokens += [token for rows in frames(pipe, 1) for row in rows if row.stream_id == "a" for token in row.token_ids]
    assert tokens == [2, 3, 4]


def test_nothing_overtakes_steps_that_wait(pipe: Pipe) -> None:
    outbox = paced(pipe, 3600.0)
    outbox.tell(StepFrame([Row("a", [2], "y"), Row("b", [2], "y")]))
    outbox.send(b"answer\n")
    messages = list(MessageReader().feed(os.read(pipe.read_fd, 1 << 16)))
    while len(messages) < 2:
        messages += MessageReader().feed(os.read(pipe.read_fd, 1 << 16))
    assert [type(message) for message in messages] == [Frame, Line]


def test_a_flush_waits_for_steps_that_wait(pipe: Pipe) -> None:
    outbox = paced(pipe, 3600.0)
    outbox.tell(StepFrame([Row("a", [2], "y"), Row("b", [2], "y")]))
    assert outbox.flush(TIMEOUT_S)
    assert frames(pipe, 1) == [[Row("a", [2], "y"), Row("b", [2], "y")]]


def test_the_outbox_waits_for_a_reader_that_fell_far_behind(pipe: Pipe) -> None:
    outbox = Outbox(pipe.write_fd, nobody)
    piece = b"x" * (1 << 20)
    sent = threading.Semaphore(0)

    def send() -> None:
        for _ in range(20):
            outbox.send(piece)
            sent.release()

    sender = threading.Thread(target=send)
    sender.start()
    for _ in range(9):  # up to the high-water mark of 8 MiB and over it
        assert sent.acquire(timeout=TIMEOUT_S)
    assert outbox.flush(0.0) is False
    assert sender.is_alive()
    assert len(pipe.read(20 << 20)) == 20 << 20
    sender.join(TIMEOUT_S)
    assert outbox.flush(TIMEOUT_S) is True


def test_the_outbox_is_congested_until_its_reader_has_caught_up_and_then_says_so(pipe: Pipe) -> None:
    cleared: queue.SimpleQueue[bool] = queue.SimpleQueue()
    outbox = Outbox(pipe.write_fd, lambda: cleared.put(outbox.is_congested))
    for _ in range(9):
        outbox.send(b"x" * (128 << 10))
        if outbox.is_congested:
            break
    assert outbox.is_congested
    assert cleared.empty()
    pipe.read(9 * (128 << 10))
    assert cleared.get(timeout=TIMEOUT_S) is False
    outbox.send(b"x")
    assert outbox.flush(TIMEOUT_S)
    assert not outbox.is_congested
    assert cleared.empty()


def test_an_outbox_whose_reader_is_gone_is_clear(pipe: Pipe) -> None:
    cleared = threading.Event()
    outbox = Outbox(pipe.write_fd, cleared.set)
    while not outbox.is_congested:
        outbox.send(b"x" * (1 << 20))
    pipe.close(pipe.read_fd)
    assert cleared.wait(TIMEOUT_S)
    assert not outbox.is_congested


def test_a_broken_pipe_blocks_nobody(pipe: Pipe) -> None:
    outbox = Outbox(pipe.write_fd, nobody)
    pipe.close(pipe.read_fd)
    for _ in range(20):
        outbox.send(b"x" * (1 << 20))
    outbox.flush(TIMEOUT_S)
    outbox.send(b"more")


def test_notifications_are_lines_until_frames_are_negotiated(pipe: Pipe) -> None:
    outbox = Outbox(pipe.write_fd, nobody)
    outbox.notify(Heartbeat(1, busy=False))
    line = b'{"jsonrpc":"2.0","method":"runtime/heartbeat","params":{"progress":1,"busy":false}}\n'
    assert not outbox.is_binary
    outbox.use_binary_notifications()
    outbox.notify(Heartbeat(2, busy=True))
    assert outbox.is_binary
    assert pipe.read(len(line)) == line
    assert pipe.read(9) == b"\xc1\x00\x00\x00\x04\x93\x02\x02\xc3"


def test_a_pulse_beats_with_the_progress_until_it_is_stopped() -> None:
    beats: queue.SimpleQueue[Heartbeat] = queue.SimpleQueue()
    progress = Progress()
    pulse = Pulse(progress, beats.put)
    pulse.start(0.001)
    pulse.start(3600.0)  # changes nothing
    assert beats.get(timeout=TIMEOUT_S) == Heartbeat(0, busy=False)
    progress.busy = True
    progress.advance()
    beat = beats.get(timeout=TIMEOUT_S)
    while beat != Heartbeat(1, busy=True):
        beat = beats.get(timeout=TIMEOUT_S)
    pulse.stop()
