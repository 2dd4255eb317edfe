"""The key-value cache of a decode batch: one slot a sequence, each with a length of its own.

A step feeds every row as many tokens as the row of most, `RowLengths.width`: rows that have fewer are padded at their
end, and what was computed for padding is behind the end of the row, where nobody looks and the next tokens go.

Joining copies the newcomer into a free slot, leaving moves one row into the hole: nobody else's cache is touched while
there is room. mlx-lm's batch classes keep rows right-aligned, so every change of membership copies the whole batch.

`decode_layer.py` says which layers have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import KVCache

GROWTH_TOKENS = 64
_TIGHT_GROWTH_TOKENS = 8
_SPARE_PART = 8  # capacity grows by this part of itself at least: a long context is copied less often


def growth(tokens: int) -> int:
    """By how many tokens a cache grows that has room for so many, while there is memory."""
    return max(1, -(-tokens // (_SPARE_PART * GROWTH_TOKENS))) * GROWTH_TOKENS


class RowLengths:
    """How many tokens each row holds; shared by all layers of a batch, so its arrays are built once a step."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.shifts: list[int] = []
        """By how much the position of each row's next token is beyond its length: the tokens of an image are at fewer
        positions than they are many."""
        self.width = 1
        """Tokens that each row is fed in this step, with padding."""
        self.spare_tokens = math.inf
        """For how many tokens there may be room to grow, over all rows together."""
        self._offsets: mx.array | None = None
        self._places: mx.array | None = None
        self._mask: mx.array | None = None

    def changed(self) -> None:
        self._offsets = self._places = self._mask = None

    def put(self, index: int, length: int, shift: int = 0) -> None:
        """A row of this length takes the place of another one, or the next one."""
        self.lengths[index : index + 1] = [length]
        self.shifts[index : index + 1] = [shift]
        self.changed()

    def arrange(self, order: Sequence[int]) -> None:
        """Keep the rows with these indices, in this order."""
        self.lengths = [self.lengths[index] for index in order]
        self.shifts = [self.shifts[index] for index in order]
        self.changed()

    def widen(self, width: int) -> None:
        """The next step feeds each row so many tokens."""
        if width != self.width:
            self.width = width
            self.changed()

    def advance(self, counts: Sequence[int] | None = None) -> None:
        """Every row has so many tokens more, or one."""
        counts = counts or [1] * len(self.lengths)
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.changed()

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def end(self) -> int:
        """Where the tokens of this step end in the longest row."""
        return self.longest + self.width

    @property
    def aligned(self) -> bool:
        return self.lengths.count(self.lengths[0]) == len(self.lengths)

    @property
    def offsets(self) -> mx.array:
        """[rows] int32: the position of each row's next token."""
        if self._offsets is None:
            self._offsets = mx.array(self.lengths, dtype=mx.int32)
        return self._offsets

    def places(self, slots: int) -> mx.array:
        """[slots, 1, width, 1] int32: where each row's next tokens go; from 0 on in slots without a row."""
        if self._places is None or self._places.shape[0] != slots:
            free = [0] * (slots - len(self.lengths))
            first = mx.array(self.lengths + free, dtype=mx.int32)[:, None, None, None]
            self._places = first + mx.arange(self.width)[:, None] if self.width > 1 else first
        return self._places

    def mask(self, window: int | None) -> mx.array:
        """[rows, 1, width, end] bool: which positions the next tokens of each row may look at."""
        if self._mask is None or window is not None:
            positions = mx.arange(self.end)
            last = self.offsets[:, None, None, None]
            if self.width > 1:
                last = last + mx.arange(self.width)[:, None]
            mask = positions <= last
            if window is not None:
                return mask & (positions > last - window)
            self._mask = mask
        return self._mask


class SlotKVCache:
    """Keys and values [slots, heads, capacity, head_dim], rows 0 … n-1 in use.

    Growing copies everything, so it grows by more than is asked for, but by no more than the rows may spare.
    """

    def __init__(self, rows: RowLengths) -> None:
        self._rows = rows
        self._keys: mx.array | None = None
        self._values: mx.array | None = None
        self._touched = 0  # slots that have been used: beyond, there is nothing but zeros

    @property
    def cache(self) -> SlotKVCache:
        """What the model is given."""
        return self

    def put(self, index: int, row: KVCache) -> None:
        """A sequence takes the place of another one, or the next one."""
        length = row.offset
        self._reserve(index + 1, length, row)
        if self._keys is not None and self._values is not None:
            if length:
                self._keys[index : index + 1, :, :length] = row.keys[..., :length, :]
                self._values[index : index + 1, :, :length] = row.values[..., :length, :]
            if index < self._touched:
                # Masked positions weigh nothing, but nothing times what a broken sequence left is not nothing.
                self._keys[index, :, length:] = 0
                self._values[index, :, length:] = 0
        self._touched = max(self._touched, index + 1)

    def arrange(self, order: Sequence[int]) -> None:
        """Keep the rows with these indices, in this order; the places of those that move are free."""
        moves = [(index, source) for index, source in enumerate(order) if index != source]
        if not moves or self._keys is None or self._values is None:
            return
        keys, values = self._keys, self._values
        rows = [
            (mx.contiguous(keys[source : source + 1]), mx.contiguous(values[source : source + 1]))
            for _, source in moves
        ]
        del keys, values
        # Computed at once: as long as these copies are only ordered they hold all rows, which are then copied as well.
        cast(Any, mx).eval(rows)
        for (index, _), (key, value) in zip(moves, rows, strict=True):
            self._keys[index : index + 1] = key
            self._values[index : index + 1] = value

    def extract(self, index: int) -> KVCache:
        """A copy of one row, as a cache of its own."""
        row = self.peek(index)
        if row.offset:
            row.keys, row.values = mx.contiguous(row.keys), mx.contiguous(row.values)
        return row

    def peek(self, index: int) -> KVCache:
        """A view of one row."""
        row, length = KVCache(), self._rows.lengths[index]
        if length:
            assert self._keys is not None
            assert self._values is not None
            row.keys = self._keys[index : index + 1, :, :length]
            row.values = self._values[index : index + 1, :, :length]
            row.offset = length
        return row

    def _reserve(self, slots: int, tokens: int, like: KVCache | None) -> None:
        """Room for `slots` rows of `tokens` tokens; grows in steps, so that growth is rare."""
        if self._keys is None or self._values is None:
            if like is None or like.offset == 0:
                return
            capacity = self._in_steps(slots, tokens + 1)
            self._keys = mx.zeros((slots, like.keys.shape[1], capacity, like.keys.shape[3]), like.keys.dtype)
            self._values = mx.zeros((slots, like.values.shape[1], capacity, like.values.shape[3]), like.values.dtype)
            return
        have_slots, _, have_tokens, _ = self._keys.shape
        more_tokens = max(0, tokens - have_tokens)
        if more_tokens:
            spare = min(growth(have_tokens), self._rows.spare_tokens / have_slots)
            more_tokens = self._in_steps(have_slots, max(more_tokens, int(spare)))
        more_slots = max(0, slots - have_slots)
        if more_slots:
            spare_slots = min(self._rows.spare_tokens / (have_tokens + more_tokens), have_slots)
            more_slots = max(more_slots, int(spare_slots))
        if more_slots or more_tokens:
            padding = [(0, more_slots), (0, 0), (0, more_tokens), (0, 0)]
            self._keys, self._values = mx.pad(self._keys, padding), mx.pad(self._values, padding)

    def _in_steps(self, slots: int, tokens: int) -> int:
        step = GROWTH_TOKENS if slots * GROWTH_TOKENS <= self._rows.spare_tokens else _TIGHT_GROWTH_TOKENS
        return -(-tokens // step) * step

    def shrink(self) -> None:
        """Give back what no row needs for its next token."""
        if self._keys is None or self._values is None:
            return
        slots = len(self._rows.lengths)
        tokens = self._in_steps(slots, self._rows.end)  # what was drafted, and not read yet, is behind the ends of rows
        have_slots, _, have_tokens, _ = self._keys.shape
        if slots < have_slots or tokens < have_tokens:
            self._keys = mx.contiguous(self._keys[:slots, :, :tokens])
            self._values = mx.contiguous(self._values[:slots, :, :tokens])
            self._touched = min(self._touched, slots)
            # Computed at once: so no more than one layer is in memory twice.
            cast(Any, mx).eval(self._keys, self._values)

    # -- what a model's attention calls

    @property
    def offset(self) -> int | mx.array:
        """For the rotary embedding: one number when all rows are as long, else [rows]."""
        return self._rows.lengths[0] if self._rows.aligned else self._rows.offsets

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append tokens to each row: [rows, heads, width, head_dim]. Returns views up to the longest row's end."""
        rows, heads, width, _ = keys.shape
        end = self._rows.end
        if self._keys is None or self._values is None:
            capacity = self._in_steps(rows, end)
            self._keys = mx.zeros((rows, heads, capacity, keys.shape[3]), keys.dtype)
            self._values = mx.zeros((rows, heads, capacity, values.shape[3]), values.dtype)
        self._reserve(rows, end, None)
        if self._rows.aligned:
            self._keys[:rows, :, end - width : end] = keys
            self._values[:rows, :, end - width : end] = values
        else:
            self._keys = self._put_along(self._keys, keys)
            self._values = self._put_along(self._values, values)
        return self._keys[:rows, :, :end], self._values[:rows, :, :end]

    def _put_along(self, slots: mx.array, tokens: mx.array) -> mx.array:
        """Each row's tokens at its end: cheaper than assigning to indices. Slots without a row get zeros."""
        free = slots.shape[0] - tokens.shape[0]
        if free:
            tokens = mx.pad(tokens, [(0, free), (0, 0), (0, 0), (0, 0)])
        places = self._rows.places(slots.shape[0])
        return mx.put_along_axis(slots, mx.broadcast_to(places, tokens.shape), tokens, axis=2)

    def make_mask(
        self, tokens: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """None or "causal" when every row may look at everything before, which keeps attention on its fast path."""
        too_long = window_size is not None and self._rows.end > window_size
        if self._rows.aligned and not too_long and not return_array:
            return None if tokens == 1 else "causal"
        return self._rows.mask(window_size if too_long else None)

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None]:
        return self._keys, self._values

    @property
    def nbytes(self) -> int:
        return 0 if self._keys is None or self._values is None else self._keys.nbytes + self._values.nbytes
