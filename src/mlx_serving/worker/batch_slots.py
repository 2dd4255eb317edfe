"""The slots of a decode batch: which sequence is in which row, with what caches, and what it is fed next.

The slot of a row that left is taken by the next one to join, or closed before the next step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from mlx_serving.worker.decode_layer import DecodeLayer, SoloCache, decode_layer
from mlx_serving.worker.kv_cache import RowLengths
from mlx_serving.worker.sampling.row import SamplingRow


@dataclass(slots=True, eq=False)
class Row:
    stream_id: str
    sampling: SamplingRow
    left: bool = False  # it takes no more steps: its slot is free
    gone: bool = False  # nobody wants its tokens any more


class BatchSlots:
    """`shared`: whether more than one row may join; without it the caches need not be mergeable."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._layers: list[DecodeLayer] = []
        self.rows: list[Row] = []
        """Those that have left, too, until `close_gaps`."""
        self.lengths = RowLengths()
        self.inputs = mx.array([], dtype=mx.uint32)
        """[rows]: what each row is fed next."""
        self.changed = False
        """Whether somebody has joined or rows have moved since this was set to False."""

    def __len__(self) -> int:
        return len(self._present())

    def isdisjoint(self, stream_ids: Collection[str]) -> bool:
        """Whether none of these is here."""
        return not any(self.rows[index].stream_id in stream_ids for index in self._present())

    def padding_with(self, tokens: int) -> float:
        """By how many tokens all rows together fall short of the longest if one of this length joins; infinite if it
        may not."""
        lengths = [self.lengths.lengths[index] for index in self._present()]
        if lengths and not self._shared:
            return math.inf
        return (len(lengths) + 1) * max([tokens, *lengths]) - sum(lengths) - tokens

    @property
    def nbytes(self) -> int:
        """What the caches of its rows take, their room to grow included."""
        return sum(layer.nbytes for layer in self._layers)

    @property
    def caches(self) -> list[Any]:
        """What the model is given: a cache of all rows for each layer."""
        return [layer.cache for layer in self._layers]

    def join(
        self,
        stream_id: str,
        caches: Sequence[Any],
        tokens: int,
        last_token: int,
        sampling: SamplingRow,
        *,
        shift: int = 0,
    ) -> None:
        """Add a sequence: its own caches hold its first `tokens` tokens, `last_token` is the one after them, at a
        position that is beyond its number by `shift`."""
        if not self._layers:
            self._layers = [self._layer(cache) for cache in caches]
        slot = next((index for index, row in enumerate(self.rows) if row.left), len(self.rows))
        for layer, cache in zip(self._layers, caches, strict=True):
            layer.put(slot, cache)
        self.lengths.put(slot, tokens, shift)
        self.rows[slot : slot + 1] = [Row(stream_id, sampling)]
        fed = mx.array([last_token], dtype=mx.uint32)
        self.inputs = mx.concatenate([self.inputs[:slot], fed, self.inputs[slot + 1 :]])
        self.changed = True

    def extract(self, stream_id: str) -> list[Any] | None:
        """Copies of a sequence's caches, with which it can join again; None when it is not here.

        They are computed at once: as long as a copy is only ordered it holds the caches of the whole batch, which the
        next step could then not change in place.
        """
        index = self._index(stream_id)
        if index is None:
            return None
        caches = [layer.extract(index) for layer in self._layers]
        cast(Any, mx).eval([cache.state for cache in caches])
        return caches

    def peek(self, stream_id: str) -> list[Any] | None:
        """The same, but to be copied from before the next step: they may be views of what the batch has. None as well
        for a sequence that has no token in its caches yet: there need not be anything to copy from."""
        index = self._index(stream_id)
        if index is None or self.lengths.lengths[index] == 0:
            return None
        return [layer.peek(index) for layer in self._layers]

    def length(self, stream_id: str) -> int | None:
        """Tokens in the caches of a sequence; None when it is not here."""
        index = self._index(stream_id)
        return None if index is None else self.lengths.lengths[index]

    def leave(self, stream_id: str) -> None:
        """Drop a sequence; unknown ids are ignored."""
        index = self._index(stream_id)
        if index is None:
            return
        self.rows[index].left = True
        if not self._present():
            self._arrange([])

    def close_gaps(self) -> None:
        """The last rows take the slots of those that left: nobody else's cache is touched."""
        present = self._present()
        count = len(present)
        if count == len(self.rows):
            return
        tail = [index for index in present if index >= count]
        self._arrange([tail.pop() if self.rows[index].left else index for index in range(count)])

    def shrink(self) -> None:
        """Give back the memory that rows do not need for their next tokens."""
        self.close_gaps()
        for layer in self._layers:
            layer.shrink()

    def _arrange(self, order: list[int]) -> None:
        """Keep the rows with these indices, in this order."""
        self.lengths.arrange(order)
        self.rows = [self.rows[index] for index in order]
        if order:
            for layer in self._layers:
                layer.arrange(order)
            self.inputs = self.inputs[mx.array(order)]
        else:
            self._layers = []
            self.inputs = self.inputs[:0]
        self.changed = True

    def _layer(self, cache: Any) -> DecodeLayer:
        return decode_layer(cache, self.lengths) if self._shared else SoloCache()

    def _present(self) -> list[int]:
        return [index for index, row in enumerate(self.rows) if not row.left]

    def _index(self, stream_id: str) -> int | None:
        return next((index for index in self._present() if self.rows[index].stream_id == stream_id), None)
