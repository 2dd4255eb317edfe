"""Answers that are kept so that later requests can go on from them: the last ones used, for a while, within bounds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from mlx_serving.core.bounds import at_least, greater_than

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StorePolicy:
    """At most so many entries of so many bytes in all, each for `ttl_s` seconds after its last use."""

    max_entries: int = 1000
    max_bytes: int = 64 * 1024**2
    ttl_s: float = 24 * 3600.0

    def __post_init__(self) -> None:
        at_least("max_entries", self.max_entries, 1)
        at_least("max_bytes", self.max_bytes, 1)
        greater_than("ttl_s", self.ttl_s, 0)


@dataclass(slots=True)
class _Entry(Generic[T]):
    owner: str
    value: T
    size: int
    used_at: float


class ResponseStore(Generic[T]):
    """Values by their id, each its owner's alone. Times are in seconds, and grow. What an entry that is dropped shares
    with others stays theirs."""

    def __init__(self, policy: StorePolicy) -> None:
        self._policy = policy
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()  # in the order of their last use
        self._bytes = 0
        self._gone: list[str] = []

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, owner: str, value: T, size: int, now: float) -> None:
        """Keep a value of `size` bytes under a new id. One that is larger than all may be is not kept."""
        assert key not in self._entries
        if size > self._policy.max_bytes:  # else all others would go before it
            self._gone.append(key)
            return
        self._entries[key] = _Entry(owner, value, size, now)
        self._bytes += size
        while len(self._entries) > self._policy.max_entries or self._bytes > self._policy.max_bytes:
            self._drop(next(iter(self._entries)))
        self._expire(now)

    def get(self, key: str, owner: str, now: float) -> T | None:
        """None for what is not kept, not any more, or another owner's."""
        self._expire(now)
        entry = self._entries.get(key)
        if entry is None or entry.owner != owner:
            return None
        entry.used_at = now
        self._entries.move_to_end(key)
        return entry.value

    def delete(self, key: str, owner: str, now: float) -> bool:
        """Whether there was something to delete."""
        if self.get(key, owner, now) is None:
            return False
        self._drop(key)
        return True

    def take_gone(self) -> list[str]:
        """The ids of what was dropped since this was asked last, for whatever reason."""
        gone, self._gone = self._gone, []
        return gone

    def _expire(self, now: float) -> None:
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if now - entry.used_at < self._policy.ttl_s:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._bytes -= self._entries.pop(key).size
        self._gone.append(key)
