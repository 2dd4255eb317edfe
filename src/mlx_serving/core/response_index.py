"""Which answers are kept: the least recently used go first, and none stays longer than its time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_serving.core.bounds import at_least, greater_than


@dataclass(frozen=True, slots=True)
class ResponseCachePolicy:
    """At most `max_entries` answers with `max_tokens` tokens and `max_bytes` bytes together, none of them longer than
    `ttl_s` seconds after it was computed. With `unseeded`, answers that were left to chance are kept as well: then the
    same request gets the same draw. With `per_caller`, nobody gets what was computed for another caller."""

    max_entries: int = 4096
    max_tokens: int = 4_000_000
    max_bytes: int = 256 * 1024**2
    ttl_s: float = 3600.0
    unseeded: bool = False
    per_caller: bool = False

    def __post_init__(self) -> None:
        for name in ("max_entries", "max_tokens", "max_bytes"):
            at_least(name, getattr(self, name), 1)
        greater_than("ttl_s", self.ttl_s, 0)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of one answer. `stored_at` is Unix seconds, `size` bytes."""

    tokens: int
    size: int
    stored_at: float


@dataclass(frozen=True, slots=True)
class ResponseCacheStats:
    """Counted since the start, but for `entries`, `tokens` and `size_bytes`, which are kept now. `evicted` made room
    for others, `expired` were too old."""

    entries: int
    tokens: int
    size_bytes: int
    hits: int
    misses: int
    stored: int
    evicted: int
    expired: int


class ResponseIndex:
    """The answers by their keys, least recently used first. Bodies are somebody else's, who drops those that it is
    told."""

    def __init__(self, policy: ResponseCachePolicy) -> None:
        self._policy = policy
        self._kept: dict[str, Kept] = {}  # in the order of their last use
        self._tokens = self._size = 0
        self._hits = self._misses = self._stored = self._evicted = self._expired = 0

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    @property
    def stats(self) -> ResponseCacheStats:
        return ResponseCacheStats(
            len(self._kept), self._tokens, self._size,
            self._hits, self._misses, self._stored, self._evicted, self._expired,
        )  # fmt: skip

    def find(self, key: str, now: float) -> bool:
        """Whether an answer is there that may still be given; then it is the most recently used one. One that is too
        old is forgotten, and its body may be dropped."""
        kept = self._kept.get(key)
        if kept is not None and self._is_old(kept, now):
            self.forget(key)
            self._expired += 1
            kept = None
        if kept is None:
            self._misses += 1
            return False
        self._kept[key] = self._kept.pop(key)
        self._hits += 1
        return True

    def store(self, key: str, kept: Kept) -> list[str] | None:
        """Keep an answer. Returns the keys that must go for it, or None when it is too large to be kept at all."""
        policy = self._policy
        if kept.tokens > policy.max_tokens or kept.size > policy.max_bytes:
            return None
        self.forget(key)
        self._kept[key] = kept
        self._tokens += kept.tokens
        self._size += kept.size
        self._stored += 1
        gone: list[str] = []
        while len(self._kept) > policy.max_entries or self._tokens > policy.max_tokens or self._size > policy.max_bytes:
            oldest = next(iter(self._kept))
            self.forget(oldest)
            self._evicted += 1
            gone.append(oldest)
        return gone

    def restore(self, kept: Iterable[tuple[str, Kept]], now: float) -> list[str]:
        """Begin with answers from an earlier run, least recently used first. Returns the keys of those that are too
        many or too old."""
        gone: list[str] = []
        for key, each in kept:
            evicted = None if self._is_old(each, now) else self.store(key, each)
            gone += [key] if evicted is None else evicted
        self._stored = self._evicted = 0
        return gone

    def unusable(self, key: str) -> None:
        """An answer that was found cannot be read after all: it was a miss."""
        self.forget(key)
        self._hits -= 1
        self._misses += 1

    def forget(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._tokens -= kept.tokens
            self._size -= kept.size

    def clear(self) -> int:
        """Forget all; returns how many there were."""
        count = len(self._kept)
        self._kept.clear()
        self._tokens = self._size = 0
        return count

    def _is_old(self, kept: Kept, now: float) -> bool:
        # A clock that was set back makes answers from the future, which are as doubtful as old ones.
        return not 0 <= now - kept.stored_at < self._policy.ttl_s
