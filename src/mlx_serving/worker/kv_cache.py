"""The key-value cache of a decode batch: one slot a sequence, each with a length of its own.

Joining copies the newcomer into a free slot, leaving moves one row into the hole: nobody else's cache is touched.
mlx-lm's batch classes keep rows right-aligned instead, so every change of membership copies the whole batch.

Layers whose caches are not plain key-value caches (rotating, recurrent) use mlx-lm's own batch classes. Caches that
cannot be merged stay as they are, and their sequences alone.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

GROWTH_TOKENS = 256


class RowLengths:
    """How many tokens each row holds; shared by all layers of a batch, so its arrays are built once a step."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._offsets: mx.array | None = None
        self._mask: mx.array | None = None

    def changed(self) -> None:
        self._offsets = self._mask = None

    def append(self, length: int) -> None:
        self.lengths.append(length)
        self.changed()

    def leave(self, index: int) -> None:
        """Drop a row; the last row takes its place."""
        last = self.lengths.pop()
        if index < len(self.lengths):
            self.lengths[index] = last
        self.changed()

    def advance(self) -> None:
        """Every row has one token more."""
        self.lengths = [length + 1 for length in self.lengths]
        self.changed()

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def aligned(self) -> bool:
        return self.lengths.count(self.lengths[0]) == len(self.lengths)

    @property
    def offsets(self) -> mx.array:
        """[rows] int32: the position of each row's next token."""
        if self._offsets is None:
            self._offsets = mx.array(self.lengths, dtype=mx.int32)
        return self._offsets

    def mask(self, window: int | None) -> mx.array:
        """[rows, 1, 1, longest + 1] bool: which positions the next token of each row may look at."""
        if self._mask is None or window is not None:
            positions = mx.arange(self.longest + 1)
            last = self.offsets[:, None, None, None]
            mask = positions <= last
            if window is not None:
                return mask & (positions > last - window)
            self._mask = mask
        return self._mask


class SlotKVCache:
    """Keys and values [slots, heads, capacity, head_dim], rows 0 … n-1 in use. Takes one token a row and step."""

    def __init__(self, rows: RowLengths) -> None:
        self._rows = rows
        self._keys: mx.array | None = None
        self._values: mx.array | None = None
        self._used = 0

    @property
    def cache(self) -> SlotKVCache:
        """What the model is given."""
        return self

    def join(self, row: KVCache) -> None:
        length = row.offset
        self._reserve(self._used + 1, length, row)
        if length:
            assert self._keys is not None
            assert self._values is not None
            slot = slice(self._used, self._used + 1)
            self._keys[slot, :, :length] = row.keys[..., :length, :]
            self._values[slot, :, :length] = row.values[..., :length, :]
        if self._keys is not None and self._values is not None:
            # Masked positions weigh nothing, but nothing times what a broken sequence may have left is not nothing.
            self._keys[self._used, :, length:] = 0
            self._values[self._used, :, length:] = 0
        self._used += 1

    def leave(self, index: int, last: int) -> None:
        if index != last and self._keys is not None and self._values is not None:
            self._keys[index] = self._keys[last]
            self._values[index] = self._values[last]
        self._used = last
        if last == 0:
            self._keys = self._values = None

    def _reserve(self, slots: int, tokens: int, like: KVCache | None) -> None:
        """Room for `slots` rows of `tokens` tokens; grows in steps, so that growth is rare."""
        if self._keys is None or self._values is None:
            if like is None or like.offset == 0:
                return
            capacity = -(-(tokens + 1) // GROWTH_TOKENS) * GROWTH_TOKENS
            self._keys = mx.zeros((slots, like.keys.shape[1], capacity, like.keys.shape[3]), like.keys.dtype)
            self._values = mx.zeros((slots, like.values.shape[1], capacity, like.values.shape[3]), like.values.dtype)
            return
        have_slots, _, have_tokens, _ = self._keys.shape
        more_slots = max(0, max(slots, 2 * have_slots) - have_slots) if slots > have_slots else 0
        more_tokens = -(-(tokens - have_tokens) // GROWTH_TOKENS) * GROWTH_TOKENS if tokens > have_tokens else 0
        if more_slots or more_tokens:
            padding = [(0, more_slots), (0, 0), (0, more_tokens), (0, 0)]
            self._keys, self._values = mx.pad(self._keys, padding), mx.pad(self._values, padding)

    # -- what a model's attention calls

    @property
    def offset(self) -> int | mx.array:
        """For the rotary embedding: one number when all rows are as long, else [rows]."""
        return self._rows.lengths[0] if self._rows.aligned else self._rows.offsets

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append one token to each row: [rows, heads, 1, head_dim]. Returns views up to the longest row's end."""
        rows, heads, _, _ = keys.shape
        end = self._rows.longest + 1
        if self._keys is None or self._values is None:
            capacity = -(-end // GROWTH_TOKENS) * GROWTH_TOKENS
            self._keys = mx.zeros((rows, heads, capacity, keys.shape[3]), keys.dtype)
            self._values = mx.zeros((rows, heads, capacity, values.shape[3]), values.dtype)
        self._reserve(rows, end, None)
        if self._rows.aligned:
            self._keys[:rows, :, end - 1 : end] = keys
            self._values[:rows, :, end - 1 : end] = values
        else:
            index = mx.arange(rows)
            self._keys[index, :, self._rows.offsets] = keys[:, :, 0]
            self._values[index, :, self._rows.offsets] = values[:, :, 0]
        return self._keys[:rows, :, :end], self._values[:rows, :, :end]

    def make_mask(self, tokens: int, return_array: bool = False, window_size: int | None = None) -> mx.array | None:
        """None when every row may look at everything, which keeps attention on its fast path."""
        too_long = window_size is not None and self._rows.longest + 1 > window_size
        if self._rows.aligned and not too_long and not return_array:
            return None
        return self._rows.mask(window_size if too_long else None)

    @property
    def nbytes(self) -> int:
        return 0 if self._keys is None or self._values is None else self._keys.nbytes + self._values.nbytes


class MergedCache:
    """A layer whose cache is not a plain one, in mlx-lm's own batch class."""

    def __init__(self) -> None:
        self.cache: Any = None

    def join(self, row: Any) -> None:
        merged = row.merge([row])
        if self.cache is None:
            self.cache = merged
        else:
            self.cache.extend(merged)

    def leave(self, index: int, last: int) -> None:
        order = list(range(last))
        if index != last:
            order[index] = last
        if order:
            self.cache.filter(order)

    @property
    def nbytes(self) -> int:
        return 0 if self.cache is None else self.cache.nbytes


class SoloCache:
    """A layer of a batch of one: the sequence's own cache, whatever its kind."""

    def __init__(self) -> None:
        self.cache: Any = None

    def join(self, row: Any) -> None:
        assert self.cache is None, "a model that cannot be batched has one sequence a batch"
        self.cache = row

    def leave(self, index: int, last: int) -> None:
        assert index == last == 0
        self.cache = None

    @property
    def nbytes(self) -> int:
        return 0 if self.cache is None else self.cache.nbytes
