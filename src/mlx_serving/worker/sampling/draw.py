"""One draw from each row's shares."""

from __future__ import annotations

import mlx.core as mx

_BLOCK = 64
_SUMMED_AT_ONCE = _BLOCK**2


def draw(shares: mx.array, uniforms: mx.array) -> mx.array:
    """[rows, vocabulary] shares and a number in (0, 1) a row, [rows, 1] -> tokens, [rows].

    Inverse transform sampling: the first token whose share of the cumulative sum reaches the number. Shares stand in
    the order of the vocabulary whether filtered or not. A token without a share never comes; a row without any, or with
    a NaN, gives token 0. Over a large vocabulary the sum goes by blocks, which is cheaper than one, and more exact.
    """
    if shares.shape[-1] <= _SUMMED_AT_ONCE:
        token, _ = _first_reaching(shares, uniforms * mx.sum(shares, axis=-1, keepdims=True))
        return token[:, 0]
    padding = -shares.shape[-1] % _BLOCK
    if padding:
        shares = mx.pad(shares, [(0, 0), (0, padding)])
    blocks = mx.unflatten(shares, -1, (-1, _BLOCK))
    sums = mx.sum(blocks, axis=-1)
    target = uniforms * mx.sum(sums, axis=-1, keepdims=True)
    block, before = _first_reaching(sums, target)
    place, _ = _first_reaching(mx.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0], target - before)
    return (block * _BLOCK + place)[:, 0]


def _first_reaching(shares: mx.array, target: mx.array) -> tuple[mx.array, mx.array]:
    """The index of the first share, not 0, with which the sum reaches `target`, and the sum before it; both [rows, 1].

    Where rounding keeps the sum below the target, it is the last share that is not 0. A parallel sum may step by its
    rounding even where nothing is added, so that comparing the sums alone would choose what has no share.
    """
    some = shares > 0
    ends = mx.cumsum(shares, axis=-1)
    target = mx.minimum(target, mx.max(ends * some, axis=-1, keepdims=True))
    index = mx.argmax((ends >= target) & some, axis=-1, keepdims=True)
    return index, mx.take_along_axis(ends - shares, index, axis=-1)
