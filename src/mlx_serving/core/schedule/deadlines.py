"""Times at which something is over, the earliest first."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

_SPARE = 64


class Deadlines:
    """A heap that is told of new deadlines only. `is_current(deadline, id)` says which of them still count; the others
    are forgotten when they are due, or when they become the most."""

    def __init__(self, is_current: Callable[[float, str], bool]) -> None:
        self._is_current = is_current
        self._heap: list[tuple[float, str]] = []
        self._compact_at = _SPARE

    @property
    def next(self) -> float | None:
        """Nothing is due before this time."""
        return self._heap[0][0] if self._heap else None

    def add(self, deadline: float, id: str) -> None:  # noqa: A002
        heappush(self._heap, (deadline, id))
        if len(self._heap) > self._compact_at:
            self._heap = [entry for entry in self._heap if self._is_current(*entry)]
            heapify(self._heap)
            self._compact_at = 2 * len(self._heap) + _SPARE

    def due(self, now: float) -> list[str]:
        """Take out whose deadline is over."""
        ids: list[str] = []
        while self._heap and self._heap[0][0] <= now:
            entry = heappop(self._heap)
            if self._is_current(*entry) and entry[1] not in ids:
                ids.append(entry[1])
        return ids
