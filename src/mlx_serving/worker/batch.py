"""The decode batch of one model: rows join, take one token a step together, and leave.

A step launches the next forward pass before the host looks at the tokens of the one before, so the host's work
(detokenizing, stop strings, frames) happens while the device computes. A row that turns out to be finished has then
been computed once too often; that token is dropped with the row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache

from mlx_serving.worker.kv_cache import MergedCache, RowLengths, SlotKVCache, SoloCache
from mlx_serving.worker.sampler import BatchSampler, SamplingRow

Token: TypeAlias = tuple[str, int]
"""A stream id, and the token that its sequence got."""


@dataclass(slots=True, eq=False)
class _Row:
    stream_id: str
    sampling: SamplingRow
    gone: bool = False  # nobody wants its tokens any more


class DecodeBatch:
    """`shared`: whether more than one row may join; without it the caches need not be mergeable."""

    def __init__(self, model: nn.Module, vocabulary: int, *, shared: bool) -> None:
        self._shared = shared
        self._model: Any = model
        self._vocabulary = vocabulary
        self._rows: list[_Row] = []
        self._lengths = RowLengths()
        self._layers: list[SlotKVCache | MergedCache | SoloCache] = []
        self._inputs = mx.array([], dtype=mx.uint32)  # [rows]: what each row is fed next
        self._sampler: BatchSampler | None = None
        self._unread: tuple[list[_Row], mx.array] | None = None  # launched: the rows, and the tokens they get

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def cache_bytes(self) -> int:
        """What the caches of its rows take, their room to grow included."""
        return sum(layer.nbytes for layer in self._layers)

    def join(self, stream_id: str, caches: Sequence[Any], tokens: int, last_token: int, sampling: SamplingRow) -> None:
        """Add a sequence: its own caches hold its first `tokens` tokens, `last_token` is the one after them."""
        if not self._layers:
            self._layers = [self._layer(cache) for cache in caches]
        for layer, cache in zip(self._layers, caches, strict=True):
            layer.join(cache)
        self._rows.append(_Row(stream_id, sampling))
        self._lengths.append(tokens)
        self._inputs = mx.concatenate([self._inputs, mx.array([last_token], dtype=mx.uint32)])
        self._sampler = None

    def leave(self, stream_id: str) -> None:
        """Drop a sequence, and what was launched for it; unknown ids are ignored."""
        if self._unread is not None:
            for row in self._unread[0]:
                row.gone = row.gone or row.stream_id == stream_id
        self._drop(stream_id)

    def step(self, ending: Collection[str] = ()) -> list[Token]:
        """Launch a forward pass for every row, then read the tokens of the launch before.

        Rows in `ending` need no further token after this launch: they leave the batch, and their last token is read
        with the others'.
        """
        if not self._rows:
            return self.drain()
        if self._sampler is None:
            self._sampler = BatchSampler([row.sampling for row in self._rows], self._vocabulary)
        caches = [layer.cache for layer in self._layers]
        logits = cast(mx.array, self._model(self._inputs[:, None], cache=caches))
        self._lengths.advance()
        sampled = self._sampler(logits[:, -1, :], self._inputs)
        mx.async_eval(sampled)  # pyright: ignore[reportUnknownMemberType]  untyped in MLX's stub
        earlier, self._unread, self._inputs = self._unread, (list(self._rows), sampled), sampled
        for stream_id in ending:
            self._drop(stream_id)
        return _read(earlier)

    def drain(self) -> list[Token]:
        """Read what was launched, without launching anything."""
        earlier, self._unread = self._unread, None
        return _read(earlier)

    def _layer(self, cache: Any) -> SlotKVCache | MergedCache | SoloCache:
        if not self._shared:
            return SoloCache()
        return SlotKVCache(self._lengths) if type(cache) is KVCache else MergedCache()

    def _drop(self, stream_id: str) -> None:
        index = next((index for index, row in enumerate(self._rows) if row.stream_id == stream_id), None)
        if index is None:
            return
        last = len(self._rows) - 1
        for layer in self._layers:
            layer.leave(index, last)
        self._lengths.leave(index)
        self._rows[index] = self._rows[last]
        self._rows.pop()
        kept = self._inputs[:last]
        if index != last:
            kept = mx.concatenate([kept[:index], self._inputs[last:], kept[index + 1 :]])
        self._inputs = kept
        self._sampler = None
        if not self._rows:
            self._layers = []


def _read(launched: tuple[list[_Row], mx.array] | None) -> list[Token]:
    if launched is None:
        return []
    rows, sampled = launched
    tokens: list[Token] = []
    for row, token in zip(rows, cast(list[int], sampled.tolist()), strict=True):
        if not row.gone:
            row.sampling.drawn.append(token)
            tokens.append((row.stream_id, token))
    return tokens
