"""Which records are on disk, and which are promised to be: what the two threads of the prefix cache both know.

Every method holds the lock for a moment, and none touches a file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

from mlx_serving.catalog.prefix_records import SUFFIX, Content
from mlx_serving.core.prefix.disk import DiskIndex, Found, KnownSequence
from mlx_serving.core.prefix.record import TOKEN_BYTES, DiskRecord, Key, RecordKind, chain_key
from mlx_serving.core.prefix.traffic import PendingSaves
from mlx_serving.core.runtime_telemetry import PrefixDiskTelemetry

_HEADER_BYTES = 8192  # of a file, about
_TOUCHED_S = 60.0  # the time of a file's last use is this exact

Source = Callable[[DiskRecord], Content | None]
"""Makes what a record holds, on the thread that owns MLX; None when it is not there any more."""

Count: TypeAlias = Literal["read", "read_tokens", "written", "given_up", "deleted", "damaged"]


class PrefixLedger:
    def __init__(self, max_bytes: int, max_age_s: float) -> None:
        self._lock = threading.RLock()
        self._index = DiskIndex(max_bytes, max_age_s)
        self._models: set[str] = set()
        self._unwritten: set[Key] = set()
        self._pending = PendingSaves()
        self._sources: dict[Key, Source] = {}
        self._replaced: dict[Key, Key] = {}  # by what is yet to be written, which says the same and more
        self._counts: dict[Count, int] = dict.fromkeys(
            ("read", "read_tokens", "written", "given_up", "deleted", "damaged"), 0
        )

    # -- what is there

    @property
    def size(self) -> int:
        """Bytes of all files, those to come included."""
        with self._lock:
            return self._index.size

    def limit(self, max_bytes: int) -> None:
        with self._lock:
            self._index.max_bytes = max_bytes

    def knows_model(self, model: str) -> bool:
        """Whether it is known what is there of a model."""
        with self._lock:
            return model in self._models

    def knows(self, key: Key) -> bool:
        with self._lock:
            return key in self._index

    def find(self, model: str, root: Key, tokens: bytes, kind: RecordKind) -> list[Found] | None:
        """What could be read of a sequence; None while it is not known what is there."""
        with self._lock:
            if model not in self._models:
                return None
            path = self._path(root, tokens, kind)
            written = [found.record.key not in self._unwritten for found in path]
            return path[: written.index(False)] if False in written else path

    def latest(self, root: Key, max_bytes: float) -> list[KnownSequence]:
        """See `DiskIndex.latest`."""
        with self._lock:
            return self._index.latest(root, max_bytes)

    def compare(self, model: str, names: set[str] | None, records: Sequence[DiskRecord]) -> list[DiskRecord]:
        """Files with these names are there of a model, in them these records that were not known; None leaves that
        open. Returns the records that are of no use, because those that they go on from are gone."""
        with self._lock:
            self._models.add(model)
            lost: list[DiskRecord] = []
            for key in self._index.oldest_first() if names is not None else ():
                record = self._index.get(key)
                if record is not None and record.model == model and key not in self._unwritten:
                    lost += self._index.forget(key) if key + SUFFIX not in names else ()
            orphans = set(self._index.restore(records)) if records else set[Key]()
            return lost + [record for record in records if record.key in orphans]

    def use(self, key: Key, now: float) -> list[DiskRecord]:
        """A record was used. Returns the files that are to be marked with that: its own and those before it, the last
        ones first; none when it was used a moment ago."""
        with self._lock:
            if key not in self._index or now - self._index.used_at(key) < _TOUCHED_S:
                return []
            return self._written(self._index.get(each) for each in self._index.touch(key, now))

    def lose(self, key: Key) -> list[DiskRecord]:
        """A record is not what it should be. Returns the files that are to go: its own and what goes on from it."""
        with self._lock:
            return self._gone(self._index.forget(key))

    def surplus(self, now: float) -> list[DiskRecord]:
        """The files that are to go, so that no limit is exceeded."""
        with self._lock:
            deleted = self._gone(self._index.surplus(now))
            self._counts["deleted"] += len(deleted)
            return deleted

    # -- what is to come

    def promise(
        self,
        model: str,
        root: Key,
        tokens: bytes,
        kind: RecordKind,
        token_bytes: float,
        source: Source,
        now: float,
        *,
        most: int,
        tail: bool,
    ) -> Key | None:
        """Let records wait to be written, of what is not there of a sequence that begins with these tokens. A token
        takes about `token_bytes`. Blocks are written in records of `most` tokens; with `tail`, also what does not fill
        one, until that is replaced by a record that goes on. Returns the key of the last record that was there
        before."""
        with self._lock:
            if model not in self._models:
                return None
            path = [found.record for found in self._path(root, tokens, kind) if found.count == found.record.count]
            total = len(tokens) // TOKEN_BYTES
            last = path[-1] if path else None
            start, parent, replaced = 0, root, None
            if last is not None and (last.end == total or (kind == "blocks" and last.count >= most)):
                start, parent = last.end, last.key
            elif last is not None and kind == "blocks":
                start, parent, replaced = last.start, last.parent, last.key
            most = most if kind == "blocks" else total
            while start + (0 if tail else most - 1) < total:
                own = tokens[start * TOKEN_BYTES : (start + most) * TOKEN_BYTES]
                size = int(len(own) // TOKEN_BYTES * token_bytes) + _HEADER_BYTES
                record = DiskRecord(chain_key(parent, own), parent, model, start, own, size, now)
                if not self._index.fits(size) or not self._promise(record, source):
                    break
                if replaced is not None:
                    self._replaced[record.key], replaced = replaced, None
                start, parent = record.end, record.key
            return None if last is None else last.key

    @property
    def has_pending(self) -> bool:
        """Whether records wait for their bytes to be made."""
        with self._lock:
            return len(self._pending) > 0

    def take(self) -> tuple[DiskRecord, Source] | None:
        """The record that is to be made next."""
        with self._lock:
            while (key := self._pending.take()) is not None:
                record, source = self._index.get(key), self._sources.pop(key)
                if record is not None:
                    return record, source
                self._drop(key)  # it had to go before it came
            return None

    def is_promised(self, key: Key) -> bool:
        with self._lock:
            return key in self._unwritten

    def wrote(self, key: Key, size: int) -> list[DiskRecord]:
        """A promise was kept. Returns the files that are to go, because this one says the same and more."""
        with self._lock:
            self._index.resize(key, size)
            self._unwritten.discard(key)
            self._counts["written"] += 1
            replaced = self._replaced.pop(key, None)
            if replaced is None or not self._index.is_last(replaced):
                return []
            return self._gone(self._index.forget(replaced))

    def give_up(self, key: Key) -> None:
        """A promise is not kept, nor those that go on from it."""
        with self._lock:
            for record in self._index.forget(key):
                self._unwritten.discard(record.key)
            for dropped in (key, *self._pending.drop(key)):
                self._drop(dropped)

    def give_up_all(self) -> None:
        """No promise is kept."""
        with self._lock:
            for key in tuple(self._unwritten):
                if key in self._unwritten:
                    self.give_up(key)

    # -- figures

    def count(self, **more: int) -> None:
        with self._lock:
            for name in self._counts:
                self._counts[name] += more.get(name, 0)

    def telemetry(self, path: str) -> PrefixDiskTelemetry:
        with self._lock:
            return PrefixDiskTelemetry(
                path=path,
                bytes=self._index.size,
                limit_bytes=self._index.max_bytes,
                records=len(self._index) - len(self._unwritten),
                pending=len(self._unwritten),
                **self._counts,
            )

    # -- with the lock held

    def _path(self, root: Key, tokens: bytes, kind: RecordKind) -> list[Found]:
        if kind == "blocks":
            return self._index.match(root, tokens)
        longest = self._index.longest(root, tokens)
        return [] if longest is None else [Found(longest, longest.count)]

    def _promise(self, record: DiskRecord, source: Source) -> bool:
        """Whether it is going to be written, as things are."""
        self._index.add(record)
        self._unwritten.add(record.key)
        self._sources[record.key] = source
        for key in self._pending.offer(record.key, record.parent):
            self.give_up(key)
        return record.key in self._index

    def _drop(self, key: Key) -> None:
        self._unwritten.discard(key)
        self._sources.pop(key, None)
        self._replaced.pop(key, None)
        self._counts["given_up"] += 1

    def _written(self, records: Iterable[DiskRecord | None]) -> list[DiskRecord]:
        return [record for record in records if record is not None and record.key not in self._unwritten]

    def _gone(self, records: Sequence[DiskRecord]) -> list[DiskRecord]:
        """Those of them that have files. The others are not wanted any more."""
        written = self._written(records)
        for record in records:
            self._unwritten.discard(record.key)
            self._replaced.pop(record.key, None)
        return written
