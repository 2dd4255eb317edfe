"""How much of its memory for KV caches the next worker gets: the shell around `core.memory_share`."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlx_serving.core.crash_finding import Finding
from mlx_serving.core.memory_share import WHOLE, died_for_memory, next_share
from mlx_serving.telemetry.events import EventBus, MemoryShareChanged


class MemoryHistory:
    """`memory_kills` counts whom the system killed for want of memory; None where it does not count."""

    def __init__(self, events: EventBus, memory_kills: Callable[[], int | None]) -> None:
        self._events = events
        self._memory_kills = memory_kills
        self._kills_before: int | None = None
        self._spawned_at = 0.0
        self.kv_share = WHOLE

    def spawned(self) -> None:
        """A worker is about to start, with the present `kv_share`."""
        self._kills_before = self._memory_kills()
        self._spawned_at = time.monotonic()

    def has_killed(self) -> bool:
        """Whether the system has killed somebody for want of memory since then."""
        kills = self._memory_kills()
        return kills is not None and self._kills_before is not None and kills > self._kills_before

    def exited(self, finding: Finding | None) -> None:
        """That worker has ended; `finding` is what its death means, None for none or for an end that was planned."""
        for_memory = died_for_memory(finding, kills_are_counted=self._kills_before is not None)
        lived_s = time.monotonic() - self._spawned_at
        previous, self.kv_share = self.kv_share, next_share(self.kv_share, for_memory=for_memory, lived_s=lived_s)
        if self.kv_share != previous:
            reason = finding.explanation if for_memory and finding is not None else "the last worker lived long enough"
            self._events.publish(MemoryShareChanged(previous=previous, current=self.kv_share, reason=reason))
