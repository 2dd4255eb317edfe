from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core import quantization
from mlx_serving.core.quantization import AFFINE_BITS, AFFINE_GROUPS, Matrix, Quantization, of, parse
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("none", None),
        ("4bit", Quantization(4, 64)),
        ("4-bit", Quantization(4, 64)),
        ("4 bits", Quantization(4, 64)),
        ("4", Quantization(4, 64)),
        ("int8", Quantization(8, 64)),
        ("3bit-g32", Quantization(3, 32)),
        ("INT4-g128", Quantization(4, 128)),
        ("mxfp4", Quantization(4, 32, "mxfp4")),
        ("mxfp8", Quantization(8, 32, "mxfp8")),
        ("nvfp4", Quantization(4, 16, "nvfp4")),
    ],
)
def test_what_people_write_is_understood(text: str | None, expected: Quantization | None) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("7bit", "the bits must be one of 2, 3, 4, 5, 6, 8, got 7"),
        ("4bit-g16", "the group size must be one of 32, 64, 128, got 16"),
        ("fp4", "must be none, 4bit"),
        ("mxfp4-g32", "got 'mxfp4-g32'"),
    ],
)
def test_what_there_is_not_is_refused(text: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as caught:
        parse(text, "models.served.0.quantization")
    assert caught.value.field == "models.served.0.quantization"


def test_values_that_are_left_out_are_the_modes_own() -> None:
    assert of(None) == Quantization(4, 64)
    assert of(8, 32) == Quantization(8, 32)
    assert of(None, None, "mxfp8") == Quantization(8, 32, "mxfp8")
    with pytest.raises(InvalidRequest, match="mxfp8 has 8 bits in groups of 32, got 4 bits and groups of None"):
        of(4, None, "mxfp8")
    with pytest.raises(InvalidRequest, match="the mode must be one of affine, mxfp4, mxfp8, nvfp4, got 'awq'"):
        of(4, 64, "awq")


@given(st.sampled_from(AFFINE_BITS), st.sampled_from(AFFINE_GROUPS))
def test_what_is_written_is_understood_again(bits: int, group: int) -> None:
    assert parse(str(Quantization(bits, group))) == Quantization(bits, group)


def test_packed_weights_take_their_bits_and_their_scales() -> None:
    assert Quantization(4, 64).packed_bytes(640, 4) == 320 + 10 * 8
    assert Quantization(3, 32).packed_bytes(64, 2) == 24 + 2 * 4
    assert Quantization(4, 16, "nvfp4").packed_bytes(160, 2) == 80 + 10


def test_a_prediction_counts_what_stays_as_it_is() -> None:
    matrices = [Matrix("a", 64, 640, 4), Matrix("b", 60, 600, 4)]
    assert quantization.predicted_bytes(Quantization(4, 64), matrices, 100) == 100 + 400 + 2400


def test_a_model_whose_rows_do_not_divide_is_refused_with_the_groups_that_would_do() -> None:
    small, large = Matrix("gate", 60, 60, 4), Matrix("layers.0", 96, 960, 4)
    quantization.require_packable(Quantization(4, 32), [small, *[large] * 10], "m")  # a gate may stay as it is
    with pytest.raises(
        InvalidRequest, match=r"rows of layers\.0 have 96 weights, which 64 does not divide; groups of 32 or nvfp4"
    ):
        quantization.require_packable(Quantization(4, 64), [small, large], "m")
    with pytest.raises(InvalidRequest, match="no group size of MLX divides it"):
        quantization.require_packable(Quantization(4, 64), [small], "m")
    with pytest.raises(InvalidRequest, match="m has no weights that could be quantised"):
        quantization.require_packable(Quantization(4, 64), [], "m")


def test_options_are_written_in_one_way() -> None:
    assert WeightOptions("int4") == WeightOptions("4bit-g64")
    assert WeightOptions("none") == WeightOptions()
    assert WeightOptions().is_plain
    assert not WeightOptions("mxfp4").is_plain
    assert not WeightOptions(adapter="x").is_plain
    assert str(WeightOptions()) == "it is on disk"
    assert str(WeightOptions("4bit", "x", fuse_adapter=True)) == "4bit-g64 with the adapter x fused"
    assert str(WeightOptions(adapter="x")) == "it is on disk with the adapter x"
    with pytest.raises(InvalidRequest, match="fuse_adapter needs an adapter"):
        WeightOptions(fuse_adapter=True)
