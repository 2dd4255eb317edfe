"""One count of finished work over the lives of many workers."""

from __future__ import annotations


class WorkerProgress:
    """`count` never falls. It rises with every sign that a worker gets on: a heartbeat that tells of more finished work
    while there is work to do, or a piece of a model that was loaded."""

    def __init__(self) -> None:
        self.count = 0
        self._told = 0  # by the worker that lives now

    def worker_started(self) -> None:
        """The next heartbeat is that of a worker which counts from 0."""
        self._told = 0

    def beat(self, progress: int, *, busy: bool) -> None:
        # An idle worker also counts the commands that it answers: those are no progress of anybody who waits.
        if busy:
            self.count += max(0, progress - self._told)
        self._told = progress

    def model_progressed(self) -> None:
        self.count += 1
