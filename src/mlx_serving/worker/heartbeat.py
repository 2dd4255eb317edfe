"""Proof of life: how much work was finished and whether any waits, sent from a thread of its own.

The beat goes on while the device computes, so silence means that the process is stopped or its interpreter is stuck;
a count that stands still while work waits means that the device is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mlx_serving.wire.notifications import Heartbeat


class Progress:
    """Written by the thread that works, read by the one that beats."""

    __slots__ = ("busy", "count")

    def __init__(self) -> None:
        self.count = 0
        self.busy = False

    def advance(self) -> None:
        self.count += 1


class Pulse:
    def __init__(self, progress: Progress, send: Callable[[Heartbeat], None]) -> None:
        self._progress = progress
        self._send = send
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, interval_s: float) -> None:
        """Beat every `interval_s` seconds from now on. A second call changes nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(interval_s,), name="heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self, interval_s: float) -> None:
        while True:
            self._send(Heartbeat(self._progress.count, self._progress.busy))
            if self._stopping.wait(interval_s):
                return
