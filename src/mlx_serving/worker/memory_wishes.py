"""Tells the parent that a sequence waits for memory which models that nobody uses could give."""

from __future__ import annotations

import time

from mlx_serving.core.schedule.scheduler_memory import SchedulerMemory
from mlx_serving.wire.notifications import MemoryWanted
from mlx_serving.worker.pipe import Outbox

_INTERVAL_S = 0.5


class MemoryWishes:
    """Belongs to the thread that owns MLX; looks now and then."""

    def __init__(self, outbox: Outbox, memory: SchedulerMemory, *, interval_s: float = _INTERVAL_S) -> None:
        self._outbox = outbox
        self._memory = memory
        self._interval_s = interval_s
        self._due = 0.0

    @property
    def is_due(self) -> bool:
        """Never: whoever waits has the loop look at memory anyway."""
        return False

    def work(self) -> None:
        """Say that somebody waits, if so, and if it was not said just now."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._interval_s
        wanted = self._memory.wanted(now)
        if wanted is not None:
            self._outbox.notify(MemoryWanted(*wanted))
