"""Packed weights of GGUF files, unpacked.

In every packed kind a weight is an integer `code`, and a group of 16 or 32 neighbours shares a scale and sometimes a
minimum: `weight = (code - zero) * scale - minimum`. The kinds differ in how these are laid out in a block. The layouts
are those of the `block_*` structures in ggml's `ggml-common.h`; the arithmetic is ggml's `dequantize_row_*`, in float32
and in its order, so that results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlx_serving.worker.gguf import tensor_types
from mlx_serving.worker.gguf.tensor_types import TensorType

Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Groups:
    """Unpacked blocks. `codes` is (blocks, groups, weights of a group); `scales` and `minima` are (blocks, groups)."""

    codes: Bytes
    zero: int
    scales: Floats
    minima: Floats | None

    def weights(self) -> Floats:
        """All weights in order, flat."""
        values = (self.codes.astype(np.float32) - np.float32(self.zero)) * self.scales[..., None]
        if self.minima is not None:
            values -= self.minima[..., None]
        return values.reshape(-1)


def dequantize(kind: TensorType, data: Bytes) -> Floats:
    """The weights that the whole blocks `data` of the given kind hold, flat, in float32."""
    if kind is tensor_types.F32:
        return data.view(np.float32)
    if kind is tensor_types.F16:
        return data.view(np.float16).astype(np.float32)
    if kind is tensor_types.BF16:  # the upper half of a float32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return unpack(kind, data).weights()


def unpack(kind: TensorType, data: Bytes) -> Groups:
    """The groups that the whole blocks `data` of a packed kind hold."""
    return _UNPACK[kind](data.reshape(-1, kind.block_bytes))


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of every block, as (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _field(packed: Bytes, first: int, count: int) -> Bytes:
    """`count` bits of every byte, from bit `first` upwards."""
    return packed >> np.uint8(first) & np.uint8((1 << count) - 1)


def _above(low: Bytes, high: Bytes, low_bits: int) -> Bytes:
    """Codes of which `low` holds the lower bits and `high` those above."""
    return low | high << np.uint8(low_bits)


def _nibbles(packed: Bytes) -> Bytes:
    """The low nibbles of all bytes of the last axis, then the high ones."""
    return np.concatenate([_field(packed, 0, 4), _field(packed, 4, 4)], axis=-1)


def _pairs(packed: Bytes) -> Bytes:
    """The lowest pairs of bits of all bytes of the last axis, then the next ones, …: (…, n) becomes (…, 4, n)."""
    return np.stack([_field(packed, first, 2) for first in (0, 2, 4, 6)], axis=-2)


def _each_bit(packed: Bytes) -> Bytes:
    """The lowest bits of all bytes of the last axis, then the next ones, …: (…, n) becomes (…, 8, n)."""
    return np.stack([_field(packed, first, 1) for first in range(8)], axis=-2)


def _q4_0(blocks: Bytes) -> Groups:
    return Groups(_nibbles(blocks[:, 2:])[:, None], 8, _half(blocks, 0), None)


def _q4_1(blocks: Bytes) -> Groups:
    return Groups(_nibbles(blocks[:, 4:])[:, None], 0, _half(blocks, 0), -_half(blocks, 2))


def _q5_0(blocks: Bytes) -> Groups:
    high = np.unpackbits(blocks[:, 2:6], axis=-1, bitorder="little")
    return Groups(_above(_nibbles(blocks[:, 6:]), high, 4)[:, None], 16, _half(blocks, 0), None)


def _q5_1(blocks: Bytes) -> Groups:
    high = np.unpackbits(blocks[:, 4:8], axis=-1, bitorder="little")
    return Groups(_above(_nibbles(blocks[:, 8:]), high, 4)[:, None], 0, _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: Bytes) -> Groups:
    return Groups(blocks[:, None, 2:] ^ np.uint8(0x80), 128, _half(blocks, 0), None)  # signed codes, made unsigned


def _q2_k(blocks: Bytes) -> Groups:
    factors = blocks[:, :16]
    codes = _pairs(blocks[:, 16:80].reshape(-1, 2, 32))
    return Groups(
        codes.reshape(-1, 16, 16),
        0,
        _half(blocks, 80) * _field(factors, 0, 4).astype(np.float32),
        _half(blocks, 82) * _field(factors, 4, 4).astype(np.float32),
    )


def _q3_k(blocks: Bytes) -> Groups:
    low = _pairs(blocks[:, 32:96].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    high = _each_bit(blocks[:, :32]).reshape(-1, 16, 16)
    # Sixteen factors of 6 bits: the lower four of each in bytes 96 to 103, the upper two in bytes 104 to 107.
    factors = _above(_nibbles(blocks[:, 96:104]), _pairs(blocks[:, 104:108]).reshape(-1, 16), 4)
    scales = _half(blocks, 108) * (factors.astype(np.float32) - 32)
    return Groups(_above(low, high, 2), 4, scales, None)


def _q4_k(blocks: Bytes) -> Groups:
    scales, minima = _k_factors(blocks)
    return Groups(_nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32), 0, scales, minima)


def _q5_k(blocks: Bytes) -> Groups:
    scales, minima = _k_factors(blocks)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return Groups(_above(low, _each_bit(blocks[:, 16:48]), 4), 0, scales, minima)


def _q6_k(blocks: Bytes) -> Groups:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 16, 16)
    high = _pairs(blocks[:, 128:192].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    factors = blocks[:, 192:208].view(np.int8).astype(np.float32)
    return Groups(_above(low, high, 4), 32, _half(blocks, 208) * factors, None)


def _k_factors(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima, (blocks, 8) each, of the kinds that pack eight pairs of 6-bit factors into 12 bytes.

    The first four scales and minima are the lower six bits of bytes 4 to 7 and 8 to 11. The upper two bits of these
    top the nibbles of bytes 12 to 15, which are the other four.
    """
    first_scales, first_minima, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    last_scales = _above(_field(rest, 0, 4), _field(first_scales, 6, 2), 4)
    last_minima = _above(_field(rest, 4, 4), _field(first_minima, 6, 2), 4)
    scales = np.concatenate([_field(first_scales, 0, 6), last_scales], axis=1)
    minima = np.concatenate([_field(first_minima, 0, 6), last_minima], axis=1)
    return _half(blocks, 0) * scales.astype(np.float32), _half(blocks, 2) * minima.astype(np.float32)


_UNPACK: Mapping[TensorType, Callable[[Bytes], Groups]] = {
    tensor_types.Q4_0: _q4_0,
    tensor_types.Q4_1: _q4_1,
    tensor_types.Q5_0: _q5_0,
    tensor_types.Q5_1: _q5_1,
    tensor_types.Q8_0: _q8_0,
    tensor_types.Q2_K: _q2_k,
    tensor_types.Q3_K: _q3_k,
    tensor_types.Q4_K: _q4_k,
    tensor_types.Q5_K: _q5_k,
    tensor_types.Q6_K: _q6_k,
}
