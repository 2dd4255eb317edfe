"""The two threads that own the pipe: one reads messages into the inbox, one writes what the outbox holds.

The thread that owns MLX never waits for the pipe. While the other end leaves too much unread it makes no steps, so what
is unwritten stays bounded; only answers to commands may add to it, up to a bound where whoever sends must wait.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mlx_serving.wire.framing import Message, MessageReader
from mlx_serving.wire.notifications import Notification, Row, StepFrame, encode_binary, encode_json, join_rows

_READ_BYTES = 1 << 16
_CONGESTED_BYTES = 1 << 20
_CLEAR_BYTES = 256 << 10
_FULL_BYTES = 8 << 20
_FRAME_INTERVAL_S = 0.008
"""Steps for several streams that come faster share a frame: nobody sees that a token comes so much later, and what both
ends do for a frame is more than a step of a small model takes."""


@dataclass(frozen=True, slots=True)
class EndOfInput:
    """The other end closed its side of the pipe."""


def start_reader(fd: int, max_message_bytes: int, deliver: Callable[[Message | EndOfInput], None]) -> None:
    """Read `fd` to its end on a thread of its own; `deliver` is called there with every message."""

    def run() -> None:
        reader = MessageReader(max_message_bytes, frames=False)
        try:
            while data := os.read(fd, _READ_BYTES):
                for message in reader.feed(data):
                    deliver(message)
        except OSError:
            pass  # the parent died with bytes in flight: an end of input like any other
        for message in reader.finish():
            deliver(message)
        deliver(EndOfInput())

    threading.Thread(target=run, name="pipe-reader", daemon=True).start()


class Outbox:
    """What is to be written, in order. Any thread may send.

    With 1 MiB unwritten it is congested, until the other end has read all but 256 KiB: then `on_clear` is called, from
    the thread that writes. What steps give waits up to `frame_interval_s` for more of it.
    """

    def __init__(self, fd: int, on_clear: Callable[[], None], *, frame_interval_s: float = _FRAME_INTERVAL_S) -> None:
        self._fd = fd
        self._on_clear = on_clear
        self._frame_interval_s = frame_interval_s
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._held: list[Row] = []  # of steps that wait for the next frame
        self._next_frame = 0.0
        self._congested = False
        self._changed = threading.Condition()
        self._broken = False
        self._encode = encode_json
        threading.Thread(target=self._run, name="pipe-writer", daemon=True).start()

    def use_binary_notifications(self) -> None:
        self._encode = encode_binary

    @property
    def is_binary(self) -> bool:
        return self._encode is encode_binary

    @property
    def backlog_bytes(self) -> int:
        """What was sent and is not written yet."""
        return self._pending_bytes

    @property
    def is_congested(self) -> bool:
        """The other end does not keep up: nothing should be made for it that can wait."""
        return self._congested

    def notify(self, notification: Notification) -> None:
        self.send(self._encode(notification))

    def tell(self, frame: StepFrame) -> None:
        """Send what a step gave: in binary with what the next steps give, if it is for several streams and none of them
        begins or ends with it."""
        if not self.is_binary:
            self.notify(frame)
            return
        now = time.monotonic()
        with self._changed:
            is_first = not self._held
            join_rows(self._held, frame.rows)
            can_wait = len(frame.rows) > 1 and not any(map(_is_urgent, frame.rows))
            if can_wait and now < self._next_frame:
                if is_first:
                    self._changed.notify_all()
                return
        self._send_held(now)

    def send(self, data: bytes) -> None:
        """Queue `data`. Blocks while more than 8 MiB are unwritten: the reader sets the pace."""
        if self._held:
            self._send_held(time.monotonic())
        with self._changed:
            while self._pending_bytes > _FULL_BYTES and not self._broken:
                self._changed.wait()
            self._queue(data)

    def _send_held(self, now: float) -> None:
        with self._changed:
            while self._pending_bytes > _FULL_BYTES and not self._broken:
                self._changed.wait()
            self._queue_held(now)

    def _queue_held(self, now: float) -> None:
        """With the lock."""
        rows, self._held = self._held, []
        self._next_frame = now + self._frame_interval_s
        if rows:
            self._queue(self._encode(StepFrame(rows)))

    def _queue(self, data: bytes) -> None:
        """With the lock."""
        if not self._broken:
            self._pending.append(data)
            self._pending_bytes += len(data)
            self._congested = self._congested or self._pending_bytes > _CONGESTED_BYTES
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written. False when that took too long or the pipe is broken."""
        with self._changed:
            self._queue_held(time.monotonic())
            self._changed.wait_for(lambda: self._pending_bytes == 0 or self._broken, timeout_s)
            return self._pending_bytes == 0

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending:
                    if not self._held:
                        self._changed.wait()
                    elif not self._changed.wait(self._next_frame - time.monotonic()):
                        self._queue_held(time.monotonic())
                data = b"".join(self._pending)
                self._pending.clear()
            try:
                self._write(data)
            except OSError:  # nobody reads any more; the reader thread sees the end and stops the worker
                with self._changed:
                    self._broken = True
                    self._pending.clear()
                self._settle(self._pending_bytes)  # nothing is added to a broken pipe
                return
            self._settle(len(data))

    def _settle(self, count: int) -> None:
        """So many bytes are not pending any more."""
        with self._changed:
            self._pending_bytes -= count
            cleared = self._congested and self._pending_bytes <= _CLEAR_BYTES
            if cleared:
                self._congested = False
            self._changed.notify_all()
        if cleared:
            self._on_clear()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def _is_urgent(row: Row) -> bool:
    """Whether somebody waits for it: the first of a stream, or the last."""
    return row.end is not None or row.cached_tokens is not None
