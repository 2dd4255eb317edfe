"""Attention for MLX's CPU backend.

MLX has no kernel for it there and takes its softmax, whose exponential calls the C library for every step of its
polynomial: 10 ns an element, which behind a long context costs more than everything else that a model computes. The
polynomial of `_powers` is made of whole-array operations, which the compiler turns into vector instructions.

mlx-lm's and mlx-vlm's models call one function for attention, by a name in their module. `speed_up` gives the attention
modules of one model a class whose methods are those of their own one, but see another function under that name. The
libraries and models that were not given to it stay as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias, cast

import mlx.core as mx
import mlx.nn as nn

_NAME = "scaled_dot_product_attention"
_LIBRARIES = ("mlx_lm.models.base", "mlx_vlm.models.base")

_FEWEST_SCORES = 1 << 14
"""Below, the number of operations costs more than what they compute."""
_BLOCK_SCORES = 1 << 18
"""As many are computed at a time: they stay in the processor's caches, and the allocator keeps their memory."""
_BLOCKS = 8
"""A prompt is computed in so many at least, if they are not too small then."""
_FEWEST_ROWS = 8

_UNSEEN = -1e9
"""The score of what must not be looked at: far below all others, and small enough for `_split`."""

# A polynomial for 2**x over [-0.5, 0.5], relative error 7e-8, divided by its first coefficient: that one cancels out in
# a softmax.
_C5 = 1.3276471991e-3
_C4, _C3, _C2, _C1, _C0 = (
    coefficient / _C5
    for coefficient in (9.6755413345e-3, 5.5507132735e-2, 2.4022119724e-1, 6.9314696706e-1, 1.0000000717)
)
_ROUNDING = 1.5 * 2**23 + 127
"""Added to a float32 near 0 it leaves an integer in the lowest bits: its argument, rounded, with an exponent's bias."""
_ROUNDING_BITS = 0x4B400000  # of that number, less the bias
_EXPONENT_SHIFT = 23

_LOG2_E = math.log2(math.e)

Attention: TypeAlias = Callable[..., mx.array]


def speed_up(model: nn.Module) -> None:
    """Have a model's attention computed by `attend`, as far as it goes through mlx-lm's or mlx-vlm's function. Nothing
    happens where MLX has a device with kernels of its own."""
    if mx.default_device() != mx.Device(mx.cpu):
        return
    for module in cast("list[nn.Module]", model.modules()):
        if (faster := _class_for(type(module))) is not type(module):
            module.__class__ = faster


@functools.cache
def _class_for(own: type[nn.Module]) -> type[nn.Module]:
    methods = {
        name: _with_attend(method)
        for kind in reversed(own.__mro__)
        for name, method in vars(kind).items()
        if isinstance(method, FunctionType) and _calls_library(method) and getattr(own, name) is method
    }
    return type(own.__name__, (own,), {"__module__": own.__module__, **methods}) if methods else own


def _calls_library(method: FunctionType) -> bool:
    called = method.__globals__.get(_NAME)
    return _NAME in method.__code__.co_names and isinstance(called, FunctionType) and called.__module__ in _LIBRARIES


def _with_attend(method: FunctionType) -> FunctionType:
    names = {**method.__globals__, _NAME: functools.partial(attend, method.__globals__[_NAME])}
    copy = FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)
    copy.__kwdefaults__ = method.__kwdefaults__
    return copy


def attend(
    library: Attention,
    queries: mx.array,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """softmax(queries keys^T * scale) values, float32: [rows, heads, tokens, values' head_dim].

    `queries` [rows, heads, tokens, head_dim]; `keys` and `values` [rows, kv_heads, context, head_dim], the tokens' own
    at the end; `mask` None, "causal" or bool, with the last axes [tokens, context]. Whatever else it may be, packed and
    small ones are left to `library`, the function that is called otherwise.
    """
    if not _is_ours(queries, keys, values, mask, sinks):
        return library(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
    rows, heads, tokens, head_dim = queries.shape
    groups, context = keys.shape[1:3]
    queries = mx.reshape(queries * (scale * _LOG2_E), (rows, groups, heads // groups, tokens, head_dim))
    # Query heads that share keys stand below each other in one matrix. A block is some kv heads, then some tokens.
    scores = rows * heads * tokens * context
    # MLX orders operations ahead of those that run, so about ten arrays of a block's size are alive at once. As much as
    # two of all scores is counted on (`core.schedule.prefill_memory`).
    at_once = min(_BLOCK_SCORES, max(_FEWEST_SCORES, scores // _BLOCKS)) if tokens > 1 else _BLOCK_SCORES
    groups_at_once = max(1, groups * at_once // scores)
    pieces = max(1, min(tokens // _FEWEST_ROWS, math.ceil(scores * min(1, groups_at_once / groups) / at_once)))
    width = math.ceil(tokens / pieces)
    outputs: list[mx.array] = []
    last: list[mx.array] = []
    for group in range(0, groups, groups_at_once):
        shared = slice(group, group + groups_at_once)
        parts: list[mx.array] = []
        for first in range(0, tokens, width):
            block = _after(last, queries[:, shared, :, first : first + width])
            parts.append(_block(block, keys[:, shared], values[:, shared], mask, first, tokens))
            last = parts[-1:]
        outputs.append(parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=3))
    output = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1)
    return mx.reshape(output, (rows, heads, tokens, values.shape[3]))


def _is_ours(queries: mx.array, keys: Any, values: Any, mask: mx.array | str | None, sinks: mx.array | None) -> bool:
    arrays = (queries, keys, values)
    if sinks is not None or any(type(array) is not mx.array or array.dtype != mx.float32 for array in arrays):
        return False
    if isinstance(mask, mx.array) and (mask.dtype != mx.bool_ or (mask.ndim > 2 and mask.shape[-3] != 1)):
        return False
    return queries.size // queries.shape[3] * keys.shape[2] >= _FEWEST_SCORES


def _after(last: list[mx.array], block: mx.array) -> mx.array:
    """Blocks are computed one after another, else MLX keeps the scores of several."""
    return cast(mx.array, cast(Any, mx).depends([block], last)[0]) if last else block


def _block(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None, first: int, tokens: int
) -> mx.array:
    """`queries` [rows, kv_heads, heads per kv head, width, head_dim], in units of log 2, of the `tokens` from `first`
    on."""
    rows, groups, repeats, width, head_dim = queries.shape
    seen = context = keys.shape[2]
    is_causal = isinstance(mask, str)
    if is_causal:
        seen = context - tokens + first + width
        keys, values = keys[:, :, :seen], values[:, :, :seen]
    stacked = (rows, groups, repeats * width)
    scores = mx.reshape(queries, (*stacked, head_dim)) @ mx.swapaxes(keys, -1, -2)
    if isinstance(mask, mx.array):
        visible = mask[..., first : first + width, :] if mask.shape[-2] == tokens else mask
        visible = mx.reshape(visible, (*[1] * (4 - mask.ndim), *visible.shape))[:, :, None]
        scores = mx.where(visible, mx.reshape(scores, (rows, groups, repeats, width, seen)), _UNSEEN)
        scores = mx.reshape(scores, (*stacked, seen))
    elif is_causal and width > 1:
        scores = _hide_later(scores, width)
    weights = _powers(scores - mx.max(scores, axis=-1, keepdims=True))
    del scores
    output = (weights @ values) / (weights @ mx.ones((seen, 1)))  # a product with ones: faster than a sum
    return mx.reshape(output, (rows, groups, repeats, width, values.shape[3]))


def _hide_later(scores: mx.array, width: int) -> mx.array:
    """Of the last `width` keys each token sees those up to its own. All keys before them are seen."""
    *stacked, lines, seen = scores.shape
    own = mx.reshape(scores[..., seen - width :], (*stacked, lines // width, width, width))
    places = mx.arange(width)
    own = mx.reshape(mx.where(places[:, None] >= places, own, _UNSEEN), (*stacked, lines, width))
    if seen == width:
        return own
    return mx.slice_update(scores, own, mx.array([seen - width]), axes=[scores.ndim - 1])


def _powers(exponents: mx.array) -> mx.array:
    """2**x for float32 x <= 0, times a constant; 0 below 2**-126."""
    rounded, rest = _split(exponents)
    power = mx.view(_power_bits(mx.view(rounded, mx.int32)), mx.float32)
    return _second_half(_first_half(rest), rest, power)


# Each is few enough operations for MLX to make one loop of it, and its arrays have one shape, so that it is vectorised.
_fused = functools.partial(mx.compile, shapeless=True)


@_fused
def _split(exponents: mx.array) -> tuple[mx.array, mx.array]:
    rounded = exponents + _ROUNDING
    return rounded, exponents - (rounded - _ROUNDING)


@_fused
def _power_bits(rounded: mx.array) -> mx.array:
    return mx.left_shift(mx.maximum(rounded, _ROUNDING_BITS), _EXPONENT_SHIFT)


@_fused
def _first_half(rest: mx.array) -> mx.array:
    return ((rest + _C4) * rest + _C3) * rest + _C2


@_fused
def _second_half(begun: mx.array, rest: mx.array, power: mx.array) -> mx.array:
    return ((begun * rest + _C1) * rest + _C0) * power
