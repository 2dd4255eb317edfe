"""Forms of KV caches: which there are, and which models can have them."""

from __future__ import annotations

import pytest

from mlx_serving.core import kv_form
from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.errors import InvalidRequest


def test_settings_make_a_form() -> None:
    assert kv_form.of(None, None) is None
    assert kv_form.of(8, None) == KvForm(8, 64)
    assert kv_form.of(4, 32) == KvForm(4, 32)


@pytest.mark.parametrize(
    ("bits", "group_size", "field", "message"),
    [
        (3, None, "kv_bits", "kv_bits must be one of 4, 8; got 3"),
        (8, 48, "kv_group_size", "kv_group_size must be one of 32, 64, 128; got 48"),
        (None, 32, "kv_group_size", "kv_group_size needs kv_bits"),
    ],
)
def test_other_settings_are_refused_by_name(bits: int | None, group_size: int | None, field: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        kv_form.of(bits, group_size)
    assert refused.value.details["field"] == field


def test_heads_must_divide_into_groups() -> None:
    KvForm(8, 64).require([64, 128], "m")
    with pytest.raises(InvalidRequest, match=r"The heads of m are 64 and 96 wide.*can be 32$") as refused:
        KvForm(8, 64).require([96, 64], "m")
    assert refused.value.details["field"] == "kv_group_size"
    with pytest.raises(InvalidRequest, match="no group size would do"):
        KvForm(4, 64).require([80], "m")


def test_it_is_told_with_the_form_of_the_weights() -> None:
    assert str(WeightOptions(kv=KvForm(4, 32))) == "it is on disk with its KV caches in 4 bits in groups of 32"
    form = WeightOptions("8bit", "a", kv=KvForm(8))
    assert str(form) == "8bit-g64 with the adapter a with its KV caches in 8 bits in groups of 64"
    assert WeightOptions(kv=KvForm(8)) != WeightOptions(kv=KvForm(8, 32)) != WeightOptions()
