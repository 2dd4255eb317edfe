"""Which of many things are kept: those used last, as far as there is room, and those that somebody holds."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class PinnedLru(Generic[K]):
    """Sizes are bytes. What is pinned stays, though it be more than `limit` in all."""

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit = limit
        self.size = 0
        self._sizes: OrderedDict[K, int] = OrderedDict()
        self._pins: Counter[K] = Counter()

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def add(self, key: K, size: int) -> list[K]:
        """Keep it, as what was used last. Returns what must go for it; that may be itself."""
        self.size += size - self._sizes.pop(key, 0)
        self._sizes[key] = size
        return self.fit()

    def use(self, key: K) -> None:
        """It is what was used last. Unknown keys are ignored."""
        if key in self._sizes:
            self._sizes.move_to_end(key)

    def pin(self, key: K) -> None:
        """Use what is kept, or will be added, and hold it until it is unpinned as often."""
        self._pins[key] += 1
        self.use(key)

    def unpin(self, key: K) -> None:
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def drop(self, key: K) -> None:
        """Forget it, whoever holds it. Unknown keys are ignored."""
        self.size -= self._sizes.pop(key, 0)

    def fit(self) -> list[K]:
        """What must go, and is forgotten, so that no more than `limit` is kept."""
        gone: list[K] = []
        for key in list(self._sizes):
            if self.size <= self.limit:
                break
            if key not in self._pins:
                self.drop(key)
                gone.append(key)
        return gone
