"""Tensors of a GGUF file under mlx-lm's names, in mlx-lm's order and precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_serving.catalog.conversion import Precision
from mlx_serving.errors import ModelLoadError
from mlx_serving.worker.gguf import tensor_types
from mlx_serving.worker.gguf.architecture import ROPE_FACTORS, Llama
from mlx_serving.worker.gguf.blocks import Bytes, Floats, Groups, dequantize, unpack
from mlx_serving.worker.gguf.reader import Header, TensorInfo
from mlx_serving.worker.gguf.tensor_types import TensorType

Array: TypeAlias = npt.NDArray[Any]

GROUP_SIZE = 32
"""Weights that share a scale and a bias in the affine format: the size of GGUF's own groups, where it can be."""

_PIECE_WEIGHTS = 1 << 24

# Codes of these kinds are kept as they are, with so many bits each. The others have groups of 16, which the affine
# format lacks; they are quantised anew with 8 bits, whose error is far below that of their own few bits.
_KEPT_BITS: Mapping[TensorType, int] = {
    tensor_types.Q4_0: 4,
    tensor_types.Q4_1: 4,
    tensor_types.Q4_K: 4,
    tensor_types.Q5_0: 5,
    tensor_types.Q5_1: 5,
    tensor_types.Q5_K: 5,
    tensor_types.Q8_0: 8,
}
_ANEW_BITS = 8


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor goes. `interleaved_heads` is the number of heads whose rows llama.cpp stores interleaved, or 0."""

    module: str
    parameter: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0


def slots(model: Llama) -> dict[str, Slot]:
    """Every tensor that the GGUF file of `model` may have, by its name there."""
    hidden, inner = model.hidden_size, model.intermediate_size
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    found = {
        "token_embd.weight": Slot("model.embed_tokens", "weight", (model.vocabulary, hidden)),
        "output_norm.weight": Slot("model.norm", "weight", (hidden,)),
    }
    if not model.tied:
        found["output.weight"] = Slot("lm_head", "weight", (model.vocabulary, hidden))
    for layer in range(model.layers):
        source, target = f"blk.{layer}", f"model.layers.{layer}"
        for name, module in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            found[f"{source}.{name}.weight"] = Slot(f"{target}.{module}", "weight", (hidden,))
        for name, module, rows, columns, heads, biased in (
            ("attn_q", "self_attn.q_proj", queries, hidden, model.heads, model.attention_bias),
            ("attn_k", "self_attn.k_proj", keys, hidden, model.kv_heads, model.attention_bias),
            ("attn_v", "self_attn.v_proj", keys, hidden, 0, model.attention_bias),
            ("attn_output", "self_attn.o_proj", hidden, queries, 0, model.attention_bias),
            ("ffn_gate", "mlp.gate_proj", inner, hidden, 0, model.mlp_bias),
            ("ffn_up", "mlp.up_proj", inner, hidden, 0, model.mlp_bias),
            ("ffn_down", "mlp.down_proj", hidden, inner, 0, model.mlp_bias),
        ):
            found[f"{source}.{name}.weight"] = Slot(f"{target}.{module}", "weight", (rows, columns), heads)
            if biased:
                found[f"{source}.{name}.bias"] = Slot(f"{target}.{module}", "bias", (rows,), heads)
    return found


def check_tensors(header: Header, model: Llama) -> None:
    """Raise `ModelLoadError` unless the file has exactly the tensors of `model`, in the right shapes.

    Biases may be missing: a llama of mlx-lm has all of a kind or none, and those that are missing are zero.
    """
    places = slots(model)
    tensors = {tensor.name: tensor for tensor in header.tensors if tensor.name != ROPE_FACTORS}
    unknown = [name for name in tensors if name not in places]
    missing = [name for name, slot in places.items() if name not in tensors and slot.parameter == "weight"]
    misshapen = [
        f"{name} is {tensor.shape} instead of {places[name].shape}"
        for name, tensor in tensors.items()
        if name in places and tensor.shape != places[name].shape
    ]
    for what, found in (
        ("tensors that a llama does not have", unknown),
        ("not all tensors of a llama; missing", missing),
        ("tensors of the wrong shape", misshapen),
    ):
        if found:
            raise ModelLoadError(
                f"{header.path} has {what}: {', '.join(found[:5])}{f' and {len(found) - 5} more' if found[5:] else ''}",
                path=str(header.path),
                tensors=found[:5],
            )


def read_floats(tensor: TensorInfo, data: Bytes) -> Floats:
    """The weights of a small tensor, flat. `data` is the whole file."""
    assert tensor.type is not None
    return dequantize(tensor.type, data[tensor.start : tensor.start + tensor.size])


def converted(tensor: TensorInfo, slot: Slot, data: Bytes, precision: Precision) -> dict[str, mx.array]:
    """The arrays that `tensor` becomes, by their names in the model. `data` is the whole file.

    A matrix of packed weights becomes `weight`, `scales` and `biases` with the precision `quantized`. Everything else
    becomes one array, float32 or float16.
    """
    # Damaged scales overflow; what comes of that is checked, so numpy need not warn of it.
    with np.errstate(over="ignore", invalid="ignore"):
        arrays = _arrays(tensor, slot, data, precision)
    return {f"{slot.module}.{name}": mx.array(array) for name, array in arrays.items()}


def _arrays(tensor: TensorInfo, slot: Slot, data: Bytes, precision: Precision) -> dict[str, Array]:
    assert tensor.type is not None
    rows = tensor.shape[0]
    stored = data[tensor.start : tensor.start + tensor.size]
    if len(tensor.shape) == 1:
        flat = _deinterleaved(dequantize(tensor.type, stored), slot.interleaved_heads)
        return {slot.parameter: _finite(tensor, flat.astype(_dense_type(precision)))}
    # Interleaving moves whole rows, so it is undone on the packed bytes.
    packed = _deinterleaved(stored.reshape(rows, -1), slot.interleaved_heads)
    parts: dict[str, Array] = {}
    step = max(1, _PIECE_WEIGHTS // tensor.shape[1])
    for start in range(0, rows, step):
        piece = _convert_rows(tensor, tensor.type, packed[start : start + step], precision)
        for name, array in piece.items():
            whole = parts.setdefault(name, np.empty((rows, *array.shape[1:]), array.dtype))
            whole[start : start + step] = array
    return parts


def zero_biases(header: Header, model: Llama, precision: Precision) -> Iterator[tuple[str, mx.array]]:
    """The biases that the model has by its config but the file does not."""
    present = {tensor.name for tensor in header.tensors}
    for name, slot in slots(model).items():
        if slot.parameter == "bias" and name not in present:
            yield f"{slot.module}.bias", mx.array(np.zeros(slot.shape, _dense_type(precision)))


def kept_bits(tensor: TensorInfo, precision: Precision) -> int | None:
    """How many bits a weight of `tensor` has after conversion if it stays packed, else None."""
    assert tensor.type is not None
    if precision == "float32" or len(tensor.shape) == 1 or tensor.type.block_weights == 1:
        return None
    return _KEPT_BITS.get(tensor.type, _ANEW_BITS)


def converted_size(tensor: TensorInfo, precision: Precision) -> int:
    """The bytes that `tensor` has after conversion."""
    bits = kept_bits(tensor, precision)
    if bits is None:
        return tensor.weights * np.dtype(_dense_type(precision)).itemsize
    return tensor.weights * bits // 8 + tensor.weights // GROUP_SIZE * 4


def _dense_type(precision: Precision) -> type[np.float32] | type[np.float16]:
    # One 16-bit type for all: a single float32 array would widen every activation after it.
    return np.float32 if precision == "float32" else np.float16


def _deinterleaved(rows: Array, heads: int) -> Array:
    """Undo llama.cpp's order of the rows of queries and keys.

    Its rotary embedding turns neighbouring rows (0, 1), (2, 3), … of a head as pairs; mlx-lm's, as in the original
    checkpoints, pairs the first half of the head with the second. The converters to GGUF interleave the halves.
    """
    if not heads:
        return rows
    pairs = rows.shape[0] // heads // 2
    return rows.reshape(heads, pairs, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _convert_rows(tensor: TensorInfo, kind: TensorType, rows: Bytes, precision: Precision) -> dict[str, Array]:
    flat = np.ascontiguousarray(rows).reshape(-1)
    if kept_bits(tensor, precision) is not None and kind in _KEPT_BITS:
        return _affine(tensor, unpack(kind, flat), len(rows), _KEPT_BITS[kind])
    dense = dequantize(kind, flat).reshape(len(rows), -1)
    if kept_bits(tensor, precision) is None:
        return {"weight": _finite(tensor, dense.astype(_dense_type(precision), copy=False))}
    anew = mx.quantize(mx.array(_finite(tensor, dense.astype(np.float16))), GROUP_SIZE, _ANEW_BITS)
    return {name: np.array(array) for name, array in zip(("weight", "scales", "biases"), anew, strict=True)}


def _affine(tensor: TensorInfo, groups: Groups, rows: int, bits: int) -> dict[str, Array]:
    """MLX's affine format, `weight = code * scale + bias`, with scales and biases in float16.

    For Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 no bit is lost: their scales are float16, and so is a power of two times one.
    Scales of Q4_K and Q5_K are products of a float16 and a 6-bit integer and lose what float16 cannot hold of those.
    """
    biases = groups.scales * np.float32(-groups.zero)
    if groups.minima is not None:
        biases = biases - groups.minima
    return {
        "weight": _packed(groups.codes, bits).reshape(rows, -1),
        "scales": _finite(tensor, groups.scales.astype(np.float16)).reshape(rows, -1),
        "biases": _finite(tensor, biases.astype(np.float16)).reshape(rows, -1),
    }


def _packed(codes: Bytes, bits: int) -> npt.NDArray[np.uint32]:
    """Codes one after the other as a stream of bits, the lowest first, in little-endian words."""
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.view("<u4")
    if bits == 4:
        return (flat[0::2] | flat[1::2] << np.uint8(4)).view("<u4")
    stream = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(stream.reshape(-1), bitorder="little").view("<u4")


def _finite(tensor: TensorInfo, values: Array) -> Array:
    """`values`, if all of them are numbers."""
    if not np.isfinite(values).all():
        raise ModelLoadError(
            f"tensor {tensor.name!r} holds values that are no finite {values.dtype} numbers; the file is damaged",
            tensor=tensor.name,
        )
    return values
