"""What goes to disk and what comes from it: what waits to be written, and whether reading is worth the wait."""

from __future__ import annotations

from collections import OrderedDict

from mlx_serving.core.prefix.record import Key

MAX_PENDING = 4096
_PRESUMED_BYTES_PER_S = 500e6
_READING_GAIN = 0.2
_PATIENCE_S = 2.0
_PATIENCE_FACTOR = 4.0


class PendingSaves:
    """Records that wait to be written, first come, first served. When there are too many the oldest are given up, and
    with each what goes on from it."""

    def __init__(self, max_pending: int = MAX_PENDING) -> None:
        self._max_pending = max_pending
        self._parents: OrderedDict[Key, Key] = OrderedDict()

    def __len__(self) -> int:
        return len(self._parents)

    def __contains__(self, key: object) -> bool:
        return key in self._parents

    def offer(self, key: Key, parent: Key) -> list[Key]:
        """Let a record wait. Returns the keys of those that are given up for it, perhaps its own."""
        self._parents.setdefault(key, parent)
        return self.drop(next(iter(self._parents))) if len(self._parents) > self._max_pending else []

    def take(self) -> Key | None:
        """The one that is to be written next."""
        return self._parents.popitem(last=False)[0] if self._parents else None

    def drop(self, key: Key) -> list[Key]:
        """A record cannot be written. Returns its key and those of all that go on from it."""
        dropped = {key: None}
        for waiting, parent in self._parents.items():  # parents come before their children
            if parent in dropped:
                dropped[waiting] = None
        return [each for each in dropped if self._parents.pop(each, None) is not None]


class ReadingRate:
    """How fast records are read, checks included, learned from how long it took."""

    def __init__(self) -> None:
        self._seconds_per_byte = 1 / _PRESUMED_BYTES_PER_S

    def learn(self, size: int, duration_s: float) -> None:
        self._seconds_per_byte += _READING_GAIN * (duration_s / size - self._seconds_per_byte)

    def seconds_for(self, size: int) -> float:
        return size * self._seconds_per_byte


def patience_s(reading_s: float, computing_s: float) -> float | None:
    """How long a request that could be computed in `computing_s` seconds waits for what should be read in `reading_s`;
    None when it should not wait. A `computing_s` of 0 says that nothing is known of it: then it waits."""
    if computing_s == 0:
        return max(_PATIENCE_S, _PATIENCE_FACTOR * reading_s)
    # A disk that is slower than it was costs no more than the computation that it should have spared.
    return computing_s if reading_s < computing_s else None
