"""The threads that own the pipe, on pipes of the test's own."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator

import pytest

from mlx_serving.wire.framing import Line, Oversized
from mlx_serving.wire.notifications import Heartbeat
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
