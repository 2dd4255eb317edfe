from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.memory_budget import Capacity, MemoryPolicy, plan
from mlx_serving.core.quantization import Matrix
from mlx_serving.core.recommendations import (
    Device,
    ModelSize,
    common_sizes,
    recommend,
    size_from_config,
    wired_limit_mb,
)

GIB = 1 << 30
POLICY = MemoryPolicy()
EIGHT_B = ModelSize("8B", 8_000_000_000, 16_000_000_000, 2, 131_072, 32_768)


def chosen(gib: float, device: Device, model: ModelSize = EIGHT_B) -> str:
    fit = recommend(Capacity(int(gib * GIB), "RAM"), POLICY, device, 1, model).fit
    return "no" if fit is None else str(fit.quantization)


@pytest.mark.parametrize(
    ("gib", "device", "expected"),
    [
        (80, "metal", "8bit-g64"),
        (18, "metal", "8bit-g64"),
        (12, "metal", "4bit-g64"),
        (5, "metal", "3bit-g64"),
        (2, "metal", "no"),
        (80, "cpu", "None"),
        (12, "cpu", "8bit-g64"),
        (80, "cuda", "8bit-g64"),
    ],
)
def test_the_form_follows_the_device_and_what_fits(gib: float, device: Device, expected: str) -> None:
    assert chosen(gib, device) == expected


def test_what_is_quantised_already_is_served_as_it_is_or_not_at_all() -> None:
    packed = replace(EIGHT_B, weights_bytes=4_500_000_000, quantised=True)
    assert chosen(16, "metal", packed) == "None"
    assert chosen(2, "metal", packed) == "no"
    assert len(recommend(Capacity(GIB, "RAM"), POLICY, "metal", 0, packed).forms) == 1


def test_a_model_with_room_for_a_short_conversation_only_is_served_in_the_form_with_the_most() -> None:
    fit = recommend(Capacity(int(2.9 * GIB), "RAM"), POLICY, "metal", 0, EIGHT_B).fit
    assert fit is not None
    assert str(fit.quantization) == "2bit-g64"
    assert 0 < fit.kv_tokens < 4096


def test_settings_follow_the_device() -> None:
    def settings(gib: int, device: Device, gpus: int = 0) -> tuple[object, ...]:
        return tuple(recommend(Capacity(gib * GIB, "RAM"), POLICY, device, gpus, EIGHT_B).settings.values())

    assert settings(1, "metal") == (1, 1024, 1)
    assert settings(24, "metal") == (27, 1024, 1, "8bit-g64")
    assert settings(100, "metal") == (32, 2048, 1, "8bit-g64")
    assert settings(100, "cpu") == (16, 512, 1)
    assert settings(100, "cuda", 1) == (64, 2048, 1, "8bit-g64")
    assert settings(100, "cuda", 4) == (64, 2048, 4, "8bit-g64")


def test_a_recurrent_model_has_room_for_its_context_or_none() -> None:
    recurrent = replace(EIGHT_B, kv_bytes_per_token=0)
    assert chosen(80, "metal", recurrent) == "8bit-g64"
    assert chosen(1, "metal", recurrent) == "no"


def test_a_recurrent_model_has_as_many_sequences_as_the_device_gains_from() -> None:
    recurrent = replace(EIGHT_B, kv_bytes_per_token=0, context_length=2048)
    settings = recommend(Capacity(80 * GIB, "RAM"), POLICY, "metal", 0, recurrent).settings
    assert settings["scheduler.max_num_seqs"] == 32


def test_packing_needs_room_for_the_largest_tensor_beside_what_is_packed() -> None:
    assert chosen(5, "metal") == "3bit-g64"
    assert chosen(5, "metal", replace(EIGHT_B, largest_bytes=2 * GIB)) == "2bit-g64"
    assert chosen(5, "metal", replace(EIGHT_B, largest_bytes=4 * GIB)) == "no"
    assert chosen(18, "cpu", replace(EIGHT_B, largest_bytes=4 * GIB)) == "None", "as it is, nothing stands beside it"


def test_weights_are_packed_in_groups_that_their_rows_divide_into() -> None:
    def size(width: int) -> ModelSize:
        matrices = [Matrix("a.weight", width, 10 * width, 2), Matrix("b.weight", 64, 64, 2)]
        return size_from_config(
            "m", {}, weights=100, weights_bytes=200, item_bytes=2, kv_item_bytes=2, matrices=matrices
        )

    assert [(size(width).group_size, size(width).largest_bytes) for width in (128, 96, 80)] == [
        (64, 2560),
        (32, 1920),
        (None, 1600),
    ]
    assert chosen(12, "metal", replace(EIGHT_B, group_size=32)) == "4bit-g32"
    assert chosen(12, "metal", replace(EIGHT_B, group_size=None)) == "no"


@given(st.integers(1, 512), st.sampled_from(["cpu", "metal", "cuda"]), st.sampled_from(common_sizes("metal")))
def test_what_is_recommended_fits_by_the_servers_own_plan(gib: int, device: Device, model: ModelSize) -> None:
    room = Capacity(gib * GIB, "RAM")
    advice = recommend(room, POLICY, device, 1, model)
    if advice.fit is not None:
        kv_bytes = plan(room, POLICY, weights=advice.fit.weights_bytes).kv_caches
        assert 0 < advice.fit.kv_tokens * model.kv_bytes_per_token <= kv_bytes
        assert advice.fit in advice.forms
    else:
        assert all(form.kv_tokens == 0 for form in advice.forms)


def test_a_config_tells_the_size_of_the_caches() -> None:
    llama = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
    size_of = partial(size_from_config, "m", weights=10, weights_bytes=20, item_bytes=2, kv_item_bytes=2)
    size = size_of({**llama, "max_position_embeddings": 512})
    assert (size.kv_bytes_per_token, size.context_length, size.quantised) == (2 * 2 * 2 * 16 * 2, 512, False)
    nested = size_of({"text_config": {**llama, "head_dim": 32}, "quantization": {"bits": 4}})
    assert (nested.kv_bytes_per_token, nested.context_length, nested.quantised) == (2 * 2 * 2 * 32 * 2, 8192, True)
    assert size_of({"num_hidden_layers": True, "hidden_size": 8}).kv_bytes_per_token == 0


def test_common_sizes_are_in_the_type_that_is_fast_on_the_device() -> None:
    assert [size.item_bytes for size in (common_sizes("cpu")[0], common_sizes("metal")[0])] == [4, 2]


@pytest.mark.parametrize(("gib", "left"), [(8, 3), (16, 4), (24, 6), (32, 8), (128, 8), (2, 2)])
def test_a_wired_limit_leaves_the_system_what_it_needs(gib: int, left: int) -> None:
    assert wired_limit_mb(gib * GIB) == (gib - left) * 1024
