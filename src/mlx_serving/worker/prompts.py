"""Computing prompts: pieces of one prompt, and the beginnings of several in one forward pass.

In a shared pass shorter prompts are padded at their end. Attention is causal, so no token of a prompt sees padding, and
what was computed for it is cut off before the next piece. Caches of other kinds (rotating, recurrent) could take it in:
mlx-lm's own batch classes see to these, and only in models of which a probe has shown that they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ConcatenateKVCache, KVCache, QuantizedKVCache

from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.schedule.prefill_passes import passes
from mlx_serving.worker.kv_cache import growth
from mlx_serving.worker.packed_kv import form_of, make_caches, pack, parts_of

PASS_TOKENS = 24
"""What a pass costs besides its tokens, in tokens: reading all weights. Measured on the CPU backend 25 for a model of
135 million weights, 80 for a tiny one; on accelerators more."""

_PADDING = 0


class Prompt:
    """Tokens to be computed, and the caches that hold the first `done` of them.

    The last token is left to the decode batch: it is the first thing the sequence is fed there, and that step gives its
    first token. So no piece of a prompt pays for logits.
    """

    is_alone = False
    """Whether it shares no pass with others."""

    def __init__(self, model: nn.Module, token_ids: Sequence[int], kv: KvForm | None = None) -> None:
        self.token_ids = token_ids
        self.caches = make_caches(model, kv)
        self.done = 0

    def advance(self, model: nn.Module, end: int) -> None:
        """Compute up to `end`."""
        if end > self.done:
            self._let_grow()
            self._compute(model, end)
            evaluate_caches(self.caches)
            self.done = end

    def _let_grow(self) -> None:
        for cache in self.caches:
            if type(cache) in (KVCache, QuantizedKVCache):
                cache.step = growth(cache.offset)

    def _compute(self, model: nn.Module, end: int) -> None:
        tokens = mx.array([self.token_ids[self.done : end]], dtype=mx.uint32)
        cast(Any, model)(tokens, cache=self.caches)


def advance_all(model: nn.Module, pieces: Sequence[tuple[Prompt, int]], *, together: bool) -> None:
    """Compute each prompt up to its end. `together`: beginnings may share passes."""
    beginnings: list[tuple[Prompt, int]] = []
    for prompt, end in pieces:
        if together and not prompt.is_alone and prompt.done == 0 < end:
            beginnings.append((prompt, end))
        else:
            prompt.advance(model, end)
    for group in passes([end for _, end in beginnings], PASS_TOKENS):
        begin_together(model, [beginnings[index] for index in group])


def begin_together(model: nn.Module, beginnings: Sequence[tuple[Prompt, int]]) -> None:
    """Compute the beginnings of prompts up to their ends, in one pass."""
    if len(beginnings) == 1:
        [(prompt, end)] = beginnings
        prompt.advance(model, end)
        return
    prompts = [prompt for prompt, _ in beginnings]
    lengths = [end for _, end in beginnings]
    width = max(lengths)
    tokens = [[*prompt.token_ids[:end], *[_PADDING] * (width - end)] for prompt, end in beginnings]
    layers = [_Layer(caches, lengths) for caches in zip(*(prompt.caches for prompt in prompts), strict=True)]
    cast(Any, model)(mx.array(tokens, dtype=mx.uint32), cache=[layer.cache for layer in layers])
    split = [layer.split() for layer in layers]
    for index, (prompt, end) in enumerate(beginnings):
        prompt.caches = [rows[index] for rows in split]
        prompt.done = end
    evaluate_caches([cache for prompt in prompts for cache in prompt.caches])


class _Layer:
    """One layer's cache of a shared pass, made of the empty caches of its rows."""

    def __init__(self, rows: Sequence[Any], lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self.cache: Any
        if type(rows[0]) is KVCache:
            self.cache = ConcatenateKVCache()
            return
        if type(rows[0]) is QuantizedKVCache:
            form = form_of(rows[0])
            self.cache = QuantizedKVCache(form.group_size, form.bits)
            return
        self.cache = rows[0].merge(rows)
        longest = max(lengths)
        self._padded = min(lengths) < longest
        if self._padded:
            self.cache.prepare(lengths=lengths, right_padding=[longest - length for length in lengths])

    def split(self) -> list[Any]:
        """A cache a row, without the padding."""
        if isinstance(self.cache, ConcatenateKVCache):
            return [_row(self.cache, index, length) for index, length in enumerate(self._lengths)]
        if isinstance(self.cache, QuantizedKVCache):
            form, parts = form_of(self.cache), parts_of(self.cache)
            return [
                pack([_row(part, index, length) for part in parts], form) for index, length in enumerate(self._lengths)
            ]
        if self._padded:
            self.cache.finalize()
        return [self.cache.extract(index) for index in range(len(self._lengths))]


def _row(rows: Any, index: int, length: int) -> KVCache:
    row = KVCache()
    row.keys = rows.keys[index : index + 1, :, :length]
    row.values = rows.values[index : index + 1, :, :length]
    row.offset = length
    return row


def evaluate_caches(caches: Sequence[Any]) -> None:
    cast(Any, mx).eval([cache.state for cache in caches])
