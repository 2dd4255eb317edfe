"""Which tokens a row may draw: top-k, top-p and min-p, typical-p, XTC.

A filter takes shares, [rows, vocabulary] float32 that are not negative, and returns them with zeros for what it
removes. They need not add up to 1, but for the first filter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import mlx.core as mx
import numpy as np

from mlx_serving.worker.sampling.logits import column
from mlx_serving.worker.sampling.randomness import coin
from mlx_serving.worker.sampling.row import SamplingRow

_SORTED_AT_ONCE = 1024
_MAX_KEY = (1 << 31) - 1

Entries: TypeAlias = Sequence[mx.array]
"""Keys [rows, n] int32, at least 0, and the shares they belong to, float32. Shares that are keys themselves stand once:
the bits of numbers that are not negative order as the numbers do, and give NaN a place as well."""


class LikeliestFilter:
    """Top-k, top-p and min-p. Each looks at all shares, and what all of them keep is kept. They must add up to 1."""

    def __init__(self, rows: Sequence[SamplingRow], vocabulary: int) -> None:
        chosen = [row.sampling for row in rows]
        self._searches = any(_limits_the_likeliest(row) for row in rows)
        top_k = [min(one.top_k or vocabulary, vocabulary) for one in chosen]
        self._bound = max(top_k)
        self._top_k = mx.array(top_k)[:, None]
        # Rounding may bring the sum of all shares above 1, and 1 is to keep them all.
        self._top_p = column([one.top_p if one.top_p < 1 else math.inf for one in chosen])
        self._min_p = column([one.min_p for one in chosen]) if any(one.min_p > 0 for one in chosen) else None

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return _limits_the_likeliest(row) or row.sampling.min_p > 0

    def apply(self, shares: mx.array) -> mx.array:
        if self._min_p is not None:
            least = self._min_p * mx.max(shares, axis=-1, keepdims=True)
            kept = shares * (shares >= least)
        else:
            kept = shares
        if self._searches:
            last = last_kept([_bits(shares)], self._top_k, self._top_p, bound=self._bound)
            kept = kept * (shares >= last.view(mx.float32))
        return kept


class TypicalFilter:
    """Locally typical sampling (Meister et al., arXiv:2202.00666): what is nearest to the entropy in information
    content, up to a total probability of `typical_p`."""

    def __init__(self, rows: Sequence[SamplingRow], vocabulary: int) -> None:
        self._mass = column([row.sampling.typical_p for row in rows])
        self._vocabulary = vocabulary
        self._all = mx.array([[vocabulary]] * len(rows))

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return row.sampling.typical_p < 1

    def apply(self, shares: mx.array) -> mx.array:
        shares = shares / _sum(shares)
        some = shares > 0
        information = -mx.log(mx.where(some, shares, 1.0))
        entropy = _sum(shares * information)
        distance = mx.where(some, mx.abs(information - entropy), mx.inf)
        nearness = _MAX_KEY - _bits(distance)
        last = last_kept([nearness, shares], self._all, self._mass, bound=self._vocabulary)
        return shares * (nearness >= last)


class XtcFilter:
    """Exclude top choices: of the tokens above `xtc_threshold` only the least likely stays, in `xtc_probability` of
    the draws. As in mlx-lm, the end of the turn and line breaks are spared."""

    def __init__(self, rows: Sequence[SamplingRow], vocabulary: int) -> None:
        self._rows = rows
        self._threshold = column([row.sampling.xtc_threshold for row in rows])
        self._probability = column([row.sampling.xtc_probability for row in rows])
        spared = np.zeros((len(rows), vocabulary), dtype=np.uint8)
        for place, row in enumerate(rows):
            spared[place, list(row.rules.spared)] = 1
        self._removable = mx.array(spared) == 0

    @staticmethod
    def is_asked(row: SamplingRow) -> bool:
        return row.sampling.xtc_probability > 0

    def apply(self, shares: mx.array) -> mx.array:
        shares = shares / _sum(shares)
        least = mx.min(mx.where(shares > self._threshold, shares, mx.inf), axis=-1, keepdims=True)
        happens = column([coin(row.seed, row.position) for row in self._rows]) <= self._probability
        return shares * ~(happens & (shares > least) & self._removable)


def last_kept(entries: Entries, most: mx.array, mass: mx.array, *, bound: int) -> mx.array:
    """The smallest key that is kept, [rows, 1], when entries are taken from the largest key down.

    An entry is taken while fewer than `most` [rows, 1] came before it and their shares add up to less than `mass`
    [rows, 1]; the first always is. What ties with the last one is kept, too. `bound` is the largest `most`.

    The part that holds the last one is halved until it is short enough to be sorted. On the CPU that costs a fifth of
    sorting 49,152 entries, whatever they are, and takes no decision on the host. Elsewhere MLX partitions by sorting,
    and one sort is the cheapest.
    """
    size = entries[0].shape[-1]
    if bound < size:
        entries = [each[:, size - bound :] for each in _parted(entries, size - bound)]
        size = bound
    count: int | mx.array = 0  # before the part, and what they weigh
    weight: float | mx.array = 0.0
    sorted_at_once = _SORTED_AT_ONCE if mx.default_device() == mx.Device(mx.cpu) else size
    while size > sorted_at_once:
        if size % 2:
            entries = [mx.pad(each, [(0, 0), (0, 1)]) for each in entries]  # 0: the smallest key, and no share
        size = (size + 1) // 2
        entries = _parted(entries, size)
        counted = count + size
        weighed = weight + _sum(entries[-1][:, size:].view(mx.float32))
        in_upper = (counted >= most) | (weighed >= mass)
        entries = [mx.where(in_upper, each[:, size:], each[:, :size]) for each in entries]
        count, weight = mx.where(in_upper, count, counted), mx.where(in_upper, weight, weighed)
    entries = _sorted(entries)
    before = mx.cumsum(entries[-1].view(mx.float32), axis=-1, reverse=True, inclusive=False)
    taken = (mx.arange(size - 1, -1, -1) < most - count) & (before < mass - weight)
    last = size - mx.maximum(taken.sum(axis=-1, keepdims=True), 1)
    return mx.take_along_axis(entries[0], last, axis=-1)


def _parted(entries: Entries, at: int) -> Entries:
    """The `at` entries with the smallest keys first."""
    if len(entries) == 1:
        return [mx.partition(entries[0], at, axis=-1)]
    order = mx.argpartition(entries[0], at, axis=-1)
    return [mx.take_along_axis(each, order, axis=-1) for each in entries]


def _sorted(entries: Entries) -> Entries:
    if len(entries) == 1:
        return [mx.sort(entries[0], axis=-1)]
    order = mx.argsort(entries[0], axis=-1)
    return [mx.take_along_axis(each, order, axis=-1) for each in entries]


def _limits_the_likeliest(row: SamplingRow) -> bool:
    return row.sampling.top_k > 0 or row.sampling.top_p < 1


def _bits(values: mx.array) -> mx.array:
    return values.view(mx.int32)


def _sum(shares: mx.array) -> mx.array:
    return mx.sum(shares, axis=-1, keepdims=True)
