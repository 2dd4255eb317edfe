from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from mlx_serving.catalog.conversion import Precision
from mlx_serving.errors import ModelLoadError
from mlx_serving.worker.gguf.architecture import Llama, read_architecture
from mlx_serving.worker.gguf.blocks import dequantize
from mlx_serving.worker.gguf.metadata import Metadata
from mlx_serving.worker.gguf.reader import Header, read_header
from mlx_serving.worker.gguf.weights import (
    Slot,
    check_tensors,
    converted,
    converted_size,
    kept_bits,
    slots,
    zero_biases,
)

from .gguf_files import BLOCKS, Tensor, floats, random_tensor, write_gguf
from .loading import all_equal, numbers
from .tiny_llama import HEADS, HIDDEN, INNER, KV_HEADS, TinyLlama

TINY = TinyLlama()
MATRIX = Slot("layer", "weight", (6, 512))


def _read(directory: Path, file: TinyLlama) -> tuple[Header, Llama]:
    header = read_header(file.write(directory / "model.gguf"))
    return header, read_architecture(header, Metadata(header), None)


def _convert(directory: Path, tensor: Tensor, slot: Slot, precision: Precision) -> dict[str, mx.array]:
    path = write_gguf(directory / "one.gguf", {}, {"t": tensor})
    return converted(read_header(path).tensors[0], slot, np.fromfile(path, np.uint8), precision)


def _weights(directory: Path, tensor: Tensor) -> npt.NDArray[np.float32]:
    """What the packed weights of `tensor` are: `test_blocks` compares this with the reference implementation."""
    path = write_gguf(directory / "one.gguf", {}, {"t": tensor})
    info = read_header(path).tensors[0]
    assert info.type is not None
    return dequantize(info.type, np.frombuffer(tensor.data, np.uint8)).reshape(info.shape)


@pytest.mark.parametrize("kind", BLOCKS)
def test_float32_holds_every_weight_exactly(tmp_path: Path, kind: str) -> None:
    tensor = random_tensor(kind, (6, 512), 1)
    arrays = _convert(tmp_path, tensor, MATRIX, "float32")
    assert list(arrays) == ["layer.weight"]
    assert arrays["layer.weight"].dtype == mx.float32
    assert np.array_equal(numbers(arrays["layer.weight"]), _weights(tmp_path, tensor))


@pytest.mark.parametrize(
    ("kind", "bits", "relative_error"),
    [
        ("Q4_0", 4, 0.0),
        ("Q4_1", 4, 0.0),
        ("Q5_0", 5, 0.0),
        ("Q5_1", 5, 0.0),
        ("Q8_0", 8, 0.0),
        ("Q4_K", 4, 1e-3),  # a scale and a minimum, rounded to eleven bits
        ("Q5_K", 5, 1e-3),
        ("Q2_K", 8, 1e-2),  # quantised anew: half a step of 1/255 of a group's range, and the rounding
        ("Q3_K", 8, 1e-2),
        ("Q6_K", 8, 1e-2),
    ],
)
def test_quantized_means_the_same_weights(tmp_path: Path, kind: str, bits: int, relative_error: float) -> None:
    tensor = random_tensor(kind, (6, 512), 2)
    arrays = _convert(tmp_path, tensor, MATRIX, "quantized")
    weight, scales, biases = (arrays[f"layer.{name}"] for name in ("weight", "scales", "biases"))
    assert (weight.dtype, scales.dtype, biases.dtype) == (mx.uint32, mx.float16, mx.float16)
    assert weight.shape[-1] * 32 // 512 == bits
    unpacked = mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), 32, bits)
    expected = _weights(tmp_path, tensor)
    error = np.abs(numbers(unpacked) - expected).max(initial=0.0)
    assert error <= relative_error * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_unpacked_matrices_become_float16_beside_packed_ones(tmp_path: Path, kind: str) -> None:
    tensor = random_tensor(kind, (6, 512), 3)
    arrays = _convert(tmp_path, tensor, MATRIX, "quantized")
    assert list(arrays) == ["layer.weight"]
    assert np.array_equal(numbers(arrays["layer.weight"]), _weights(tmp_path, tensor).astype(np.float16))


def test_a_matrix_larger_than_a_piece_of_work_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random_tensor("Q4_1", (6, 512), 4)
    for precision in ("float32", "quantized"):
        whole = _convert(tmp_path, tensor, MATRIX, precision)
        with monkeypatch.context() as patch:
            patch.setattr("mlx_serving.worker.gguf.weights._PIECE_WEIGHTS", 4 * 512)
            pieces = _convert(tmp_path, tensor, MATRIX, precision)
        assert all_equal(whole, pieces)


def _interleave(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """What the converters to GGUF do to queries and keys (`LlamaModel.permute` of convert_hf_to_gguf.py)."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("precision", ["float32", "quantized"])
def test_interleaved_rows_of_queries_and_keys_are_put_back(tmp_path: Path, precision: Precision) -> None:
    original = np.arange(8 * 32, dtype=np.float32).reshape(8, 32)
    tensor = Tensor(0, original.shape, _interleave(original, 2).tobytes())
    arrays = _convert(tmp_path, tensor, Slot("q", "weight", (8, 32), 2), precision)
    assert np.array_equal(numbers(arrays["q.weight"]), original)


def test_interleaved_biases_are_put_back(tmp_path: Path) -> None:
    original = np.arange(8, dtype=np.float32)
    tensor = Tensor(0, original.shape, _interleave(original, 2).tobytes())
    arrays = _convert(tmp_path, tensor, Slot("q", "bias", (8,), 2), "float32")
    assert np.array_equal(numbers(arrays["q.bias"]), original)


def test_packed_rows_are_put_back_without_unpacking(tmp_path: Path) -> None:
    tensor = random_tensor("Q4_1", (8, 32), 5)
    packed = np.frombuffer(tensor.data, np.uint8).reshape(8, -1)
    mixed = Tensor(
        tensor.type_number, tensor.shape, _interleave(packed.astype(np.float32), 2).astype(np.uint8).tobytes()
    )
    restored = _convert(tmp_path, mixed, Slot("q", "weight", (8, 32), 2), "quantized")
    plain = _convert(tmp_path, tensor, Slot("q", "weight", (8, 32)), "quantized")
    assert all_equal(restored, plain)


def test_the_heads_of_queries_and_keys_are_those_of_the_model(tmp_path: Path) -> None:
    _, model = _read(tmp_path, TINY)
    places = slots(model)
    interleaved = {name.split(".")[-2]: slot.interleaved_heads for name, slot in places.items() if "blk.0" in name}
    assert {name: heads for name, heads in interleaved.items() if heads} == {"attn_q": HEADS, "attn_k": KV_HEADS}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["float32", "quantized"])
def test_weights_that_are_no_numbers_are_damage(tmp_path: Path, value: float, precision: Precision) -> None:
    blocks = np.zeros((6, 16, 18), np.uint8)
    blocks[3, 5, :2] = np.array([value], np.float16).view(np.uint8)
    with pytest.raises(ModelLoadError, match="tensor 't' holds values that are no finite float"):
        _convert(tmp_path, Tensor(2, (6, 512), blocks.tobytes()), MATRIX, precision)


def test_exactly_the_tensors_of_a_llama_are_accepted(tmp_path: Path) -> None:
    check_tensors(*_read(tmp_path, TINY))


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (TINY.without_tensors("blk.1.ffn_up.weight"), "not all tensors of a llama; missing: blk.1.ffn_up.weight"),
        (
            TINY.with_tensors({"blk.0.attn_q_norm.weight": floats([1.0])}),
            "tensors that a llama does not have: blk.0.attn_q_norm.weight",
        ),
        (
            TINY.with_tensors({"blk.0.ffn_down.weight": random_tensor("F32", (INNER, HIDDEN), 0)}),
            "tensors of the wrong shape: blk.0.ffn_down.weight is (512, 256) instead of (256, 512)",
        ),
        (TINY.with_metadata({"llama.block_count": 4}), "blk.2.attn_v.weight and 13 more"),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path: Path, file: TinyLlama, says: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        check_tensors(*_read(tmp_path, file))
    assert says in caught.value.message


def test_biases_that_the_file_lacks_are_zero(tmp_path: Path) -> None:
    file = TINY.with_tensors({"blk.0.attn_q.bias": floats([0.5] * HIDDEN)})
    header, model = _read(tmp_path, file)
    check_tensors(header, model)
    added = dict(zero_biases(header, model, "float32"))
    assert len(added) == 7
    assert "model.layers.0.self_attn.q_proj.bias" not in added
    assert added["model.layers.1.self_attn.k_proj.bias"].shape == (HIDDEN * KV_HEADS // HEADS,)
    assert not any(array.any().item() for array in added.values())


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("precision", ["float32", "quantized"])
def test_the_announced_size_is_the_real_one(tmp_path: Path, kind: str, precision: Precision) -> None:
    path = write_gguf(tmp_path / "one.gguf", {}, {"t": random_tensor(kind, (6, 512), 6)})
    info = read_header(path).tensors[0]
    arrays = converted(info, MATRIX, np.fromfile(path, np.uint8), precision)
    assert sum(array.nbytes for array in arrays.values()) == converted_size(info, precision)
    assert (kept_bits(info, precision) is not None) == ("layer.scales" in arrays)
