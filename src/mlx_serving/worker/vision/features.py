"""What encoders made of images, kept for whoever brings the same image again: the shell around `core.pinned_lru`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import mlx.core as mx

from mlx_serving.core.pinned_lru import PinnedLru

Key: TypeAlias = tuple[str, str]
"""The fingerprint of a model, and the digest of an image."""


@dataclass(frozen=True, slots=True)
class Features:
    """An image, or text, as the first layer takes it, [tokens, width], what is added behind each of the layers in
    `deep`, [tokens, width], and what else the language model takes of each token, by its name there, [tokens, …]."""

    embeddings: mx.array
    deep: tuple[mx.array, ...] = ()
    beside: Mapping[str, mx.array] = field(default_factory=dict[str, mx.array])

    @property
    def arrays(self) -> list[mx.array]:
        return [self.embeddings, *self.deep, *self.beside.values()]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


class FeatureCache:
    """Belongs to the thread that owns MLX. It answers the scheduler (`core.schedule.encodings`). What a sequence has
    claimed or brought stays until it lets go of it, or closes."""

    def __init__(self, limit_bytes: float = float("inf")) -> None:
        self._kept: dict[Key, Features] = {}
        self._index: PinnedLru[Key] = PinnedLru(limit_bytes)
        self._keys: dict[str, tuple[Key, ...]] = {}
        self._pinned: dict[str, set[Key]] = {}
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        return self._index.size

    def allow(self, limit_bytes: int) -> None:
        """No more than this is kept for later."""
        self._index.limit = limit_bytes
        self._forget(self._index.fit())

    def open(self, id: str, fingerprint: str, digests: Sequence[str]) -> None:  # noqa: A002
        """A sequence has come that has these images."""
        if digests:
            self._keys[id] = tuple((fingerprint, digest) for digest in digests)

    def close(self, id: str) -> None:  # noqa: A002
        """It has ended."""
        self.release(id)
        self._keys.pop(id, None)

    def remove_model(self, fingerprint: str) -> None:
        """Forget what its encoder made."""
        for key in [key for key in self._kept if key[0] == fingerprint]:
            self._index.drop(key)
            del self._kept[key]

    def claim(self, id: str, index: int) -> bool:  # noqa: A002
        """See `core.schedule.encodings.Encodings`."""
        key = self._keys[id][index]
        if key not in self._kept:
            return False
        self.hits += 1
        self._pin(id, key)
        return True

    def get(self, id: str, index: int) -> Features | None:  # noqa: A002
        return self._kept.get(self._keys[id][index])

    def put(self, id: str, index: int, features: Features) -> None:  # noqa: A002
        key = self._keys[id][index]
        self.misses += 1
        self._kept[key] = features
        self._pin(id, key)
        self._forget(self._index.add(key, features.nbytes))

    def release(self, id: str) -> None:  # noqa: A002
        """It has all that it needs of its images."""
        for key in self._pinned.pop(id, set[Key]()):
            self._index.unpin(key)
        self._forget(self._index.fit())

    def _pin(self, id: str, key: Key) -> None:  # noqa: A002
        pinned = self._pinned.setdefault(id, set())
        if key not in pinned:
            pinned.add(key)
            self._index.pin(key)

    def _forget(self, keys: Sequence[Key]) -> None:
        for key in keys:
            del self._kept[key]
