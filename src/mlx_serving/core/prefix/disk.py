"""Which prefixes are on disk, and which of them go.

Times are Unix seconds, sizes bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mlx_serving.core.bounds import at_least, greater_than
from mlx_serving.core.prefix.record import TOKEN_BYTES, DiskRecord, Key, shared_bytes

RECORD_TOKENS = 256
"""A record has no more: a file of some megabytes that is read and written in one go."""

MAX_RECORDS = 32_768
"""What is known of them takes memory, about two kilobytes each."""

_FREE_PART = 4
_DEFAULT_BYTES = 30 * 1024**3


@dataclass(frozen=True, slots=True)
class DiskPolicy:
    """At most `max_bytes` in all files together (None: see `default_bytes`), and nothing that was not used for
    `max_age_s` seconds. What was used last is read before anybody asks, up to `preload_bytes` of each model."""

    max_bytes: int | None = None
    max_age_s: float = 30 * 86_400.0
    preload_bytes: int = 1024**3

    def __post_init__(self) -> None:
        if self.max_bytes is not None:
            at_least("max_bytes", self.max_bytes, 1)
        greater_than("max_age_s", self.max_age_s, 0)
        at_least("preload_bytes", self.preload_bytes, 0)


def default_bytes(free: int) -> int:
    """How much may be kept where nobody said: 30 GiB, but no more than a quarter of what is free."""
    return min(_DEFAULT_BYTES, free // _FREE_PART)


@dataclass(frozen=True, slots=True)
class Found:
    """`count` tokens of a record's beginning are the ones that were looked for."""

    record: DiskRecord
    count: int


@dataclass(frozen=True, slots=True)
class KnownSequence:
    """The packed tokens of a path of records, the last of which was last used at `used_at`."""

    tokens: bytes
    used_at: float


@dataclass(slots=True)
class _Branch:
    """The records that go on from the same one, sorted by their tokens, which `tokens` has once more for searching."""

    tokens: list[bytes] = field(default_factory=list[bytes])
    keys: list[Key] = field(default_factory=list[Key])

    def add(self, record: DiskRecord) -> None:
        place = bisect_left(self.tokens, record.tokens)
        self.tokens.insert(place, record.tokens)
        self.keys.insert(place, record.key)

    def remove(self, record: DiskRecord) -> None:
        place = bisect_left(self.tokens, record.tokens)
        del self.tokens[place]
        del self.keys[place]

    def longest_beginning(self, tokens: bytes) -> Key | None:
        """The longest record that is a beginning of `tokens`."""
        high = len(self.tokens)
        while place := bisect_right(self.tokens, tokens, hi=high):
            # Whatever is shared with any record is shared with a neighbour in the order.
            nearest = self.tokens[place - 1]
            shared = shared_bytes(nearest, tokens)
            if shared == len(nearest):
                return self.keys[place - 1]
            tokens, high = tokens[:shared], place - 1
        return None

    def nearest(self, tokens: bytes) -> tuple[Key, int]:
        """The record that shares most with `tokens`, and how many tokens that is."""
        place = bisect_left(self.tokens, tokens)
        candidates = range(max(0, place - 1), min(len(self.tokens), place + 1))
        best = max(candidates, key=lambda index: shared_bytes(self.tokens[index], tokens))
        return self.keys[best], shared_bytes(self.tokens[best], tokens) // TOKEN_BYTES


class DiskIndex:
    """The records that are on disk or on their way to it, least recently used first. A record is never older than those
    that go on from it, so what goes first is always one that no other needs. Files are somebody else's, who deletes
    those it is told."""

    def __init__(self, max_bytes: int, max_age_s: float, *, max_records: int = MAX_RECORDS) -> None:
        self.max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._max_records = max_records
        self._records: dict[Key, DiskRecord] = {}
        self._used: OrderedDict[Key, float] = OrderedDict()  # in the order of their last use
        self._branches: dict[Key, _Branch] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: object) -> bool:
        return key in self._records

    @property
    def size(self) -> int:
        return self._size

    def get(self, key: Key) -> DiskRecord | None:
        return self._records.get(key)

    def used_at(self, key: Key) -> float:
        """When a record that is known was last used."""
        return self._used[key]

    def oldest_first(self) -> list[Key]:
        return list(self._used)

    def add(self, record: DiskRecord) -> bool:
        """Know a record from now on. False when it cannot be used, because the one it goes on from is not there."""
        if record.key not in self._records:
            if record.start and record.parent not in self._records:
                return False
            self._insert(record)
        self.touch(record.key, record.used_at)
        return True

    def restore(self, records: Iterable[DiskRecord]) -> list[Key]:
        """Know what an earlier run has left, in any order. Returns the keys of those that lead from nowhere."""
        found = {record.key: record for record in records if record.key not in self._records}
        orphans: list[Key] = []
        for record in sorted(found.values(), key=lambda one: one.start):
            if record.start and record.parent not in self._records:
                orphans.append(record.key)
            else:
                self._insert(record)
                self._used[record.key] = record.used_at
        for record in sorted(self._records.values(), key=lambda one: one.start, reverse=True):
            if record.start:
                self._used[record.parent] = max(self._used[record.parent], self._used[record.key])
        order = sorted(self._used.items(), key=lambda item: (item[1], -self._records[item[0]].start))
        self._used = OrderedDict(order)
        return orphans

    def match(self, root: Key, tokens: bytes) -> list[Found]:
        """The records whose tokens are the beginning of `tokens`, in their order, of the last one perhaps a part."""
        path: list[Found] = []
        key = root
        while tokens and (branch := self._branches.get(key)) is not None:
            longest = branch.longest_beginning(tokens)
            nearest, count = branch.nearest(tokens)
            # More may follow behind a whole record; where nothing does, a larger part of another one is better.
            if longest is None or (longest not in self._branches and self._records[longest].count < count):
                if count:
                    path.append(Found(self._records[nearest], count))
                return path
            record = self._records[longest]
            path.append(Found(record, record.count))
            tokens = tokens[len(record.tokens) :]
            key = longest
        return path

    def longest(self, root: Key, tokens: bytes) -> DiskRecord | None:
        """The longest single record that is a beginning of `tokens`: of those that hold a whole state."""
        branch = self._branches.get(root)
        key = None if branch is None else branch.longest_beginning(tokens)
        return None if key is None else self._records[key]

    def latest(self, root: Key, max_bytes: float) -> list[KnownSequence]:
        """The sequences behind `root` that were used last, the latest one first; their records take no more than
        `max_bytes` together, so of the last one perhaps not all is named."""
        tokens: dict[Key, bytes] = {}
        inner, size = set[Key](), 0
        for key in reversed(self._used):  # those that others go on from come before these
            record = self._records[key]
            if record.start == 0 and record.parent == root:
                before = b""
            elif record.start and record.parent in tokens:
                before = tokens[record.parent]
            else:
                continue
            size += record.size
            if size > max_bytes:
                break
            tokens[key] = before + record.tokens
            inner.add(record.parent)
        return [KnownSequence(own, self._used[key]) for key, own in tokens.items() if key not in inner]

    def touch(self, key: Key, now: float) -> list[Key]:
        """A record was used, and with it those that it goes on from. Returns the keys of them all, the last ones
        first; none when it is not known."""
        touched: list[Key] = []
        record = self._records.get(key)
        while record is not None:
            self._used[record.key] = max(now, self._used.get(record.key, now))
            self._used.move_to_end(record.key)
            touched.append(record.key)
            record = self._records.get(record.parent) if record.start else None
        return touched

    def is_last(self, key: Key) -> bool:
        """Whether a record is known that no other goes on from."""
        return key in self._records and key not in self._branches

    def forget(self, key: Key) -> list[DiskRecord]:
        """A record is not there any more, and what goes on from it is of no use. Returns them all, the last ones
        first."""
        gone = [self._records[key]] if key in self._records else []
        for record in gone:  # grows meanwhile
            branch = self._branches.get(record.key)
            gone += [self._records[child] for child in branch.keys] if branch is not None else []
        gone.reverse()
        for record in gone:
            self._remove(record)
        return gone

    def resize(self, key: Key, size: int) -> None:
        """A record turned out to take so much; one that is not known is left at that."""
        record = self._records.get(key)
        if record is not None:
            self._records[key] = replace(record, size=size)
            self._size += size - record.size

    def surplus(self, now: float) -> list[DiskRecord]:
        """Forget what must go so that no limit is exceeded, least recently used first."""
        gone: list[DiskRecord] = []
        while self._records:
            key, used_at = next(iter(self._used.items()))
            is_old = now - used_at >= self._max_age_s
            if not is_old and self._size <= self.max_bytes and len(self._records) <= self._max_records:
                break
            record = self._records[key]
            self._remove(record)
            gone.append(record)
        return gone

    def fits(self, size: int) -> bool:
        """Whether a record of this size could be kept if all others went."""
        return size <= self.max_bytes

    def _insert(self, record: DiskRecord) -> None:
        self._records[record.key] = record
        self._branches.setdefault(record.parent, _Branch()).add(record)
        self._size += record.size

    def _remove(self, record: DiskRecord) -> None:
        del self._records[record.key]
        self._used.pop(record.key, None)
        branch = self._branches[record.parent]
        branch.remove(record)
        if not branch.keys:
            del self._branches[record.parent]
        self._size -= record.size
