"""One draw a row: which token a number leads to."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.worker.sampling import draw as module
from mlx_serving.worker.sampling.draw import draw


def drawn(shares: list[float], numbers: list[float]) -> list[int]:
    rows = mx.array([shares] * len(numbers))
    return np.array(draw(rows, mx.array(numbers)[:, None])).tolist()


def test_a_number_leads_to_the_token_whose_share_it_falls_into() -> None:
    assert drawn([0.25, 0.25, 0.5], [0.1, 0.25, 0.26, 0.5, 0.51, 0.999]) == [0, 0, 1, 1, 2, 2]


def test_shares_need_not_add_up_to_1() -> None:
    assert drawn([1.0, 1.0, 2.0], [0.1, 0.3, 0.7]) == [0, 1, 2]


@pytest.mark.parametrize("size", [1, 5, 500, 4096, 4097, 9000])
def test_the_only_token_with_a_share_always_comes(size: int) -> None:
    for token in {0, size // 2, size - 1}:
        shares = [0.0] * size
        shares[token] = 1e-30
        assert drawn(shares, [1e-8, 0.3, 1 - 2**-25]) == [token] * 3


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 5, 259, 4096, 4097, 9000]),
    number=st.floats(0, 1, exclude_min=True, exclude_max=True, width=32),
    holes=st.floats(0, 0.99),
)
def test_a_token_without_a_share_never_comes_and_the_others_do_in_the_order_of_the_vocabulary(
    seed: int, size: int, number: float, holes: float
) -> None:
    random = np.random.default_rng(seed)
    shares = np.where(random.random(size) < holes, 0.0, random.random(size)).astype(np.float32)
    shares[random.integers(size)] = 1.0
    [token] = drawn(shares.tolist(), [number])
    assert shares[token] > 0
    ends = np.cumsum(shares.astype(np.float64)) / shares.astype(np.float64).sum()
    assert ends[token] >= number - 1e-5
    assert token == 0 or ends[token - 1] <= number + 1e-5


@pytest.mark.parametrize(
    "shares", [[0.0] * 100, [math.nan] * 100, [1.0, math.nan, 1.0], [0.0] * 5000, [math.nan] * 5000]
)
def test_a_row_without_a_choice_gives_token_0_and_leaves_the_others_alone(shares: list[float]) -> None:
    good = [0.0] * (len(shares) - 1) + [1.0]
    rows = mx.array([good, shares, good])
    tokens = np.array(draw(rows, mx.full((3, 1), 0.5))).tolist()
    assert tokens == [len(shares) - 1, 0, len(shares) - 1]


@pytest.mark.parametrize("target", [-1e-9, 0.0, 1e-9])
def test_a_target_that_rounding_brought_to_nothing_leads_to_the_first_share(target: float) -> None:
    first_reaching = module._first_reaching  # pyright: ignore[reportPrivateUsage]  sums in parallel round like that
    index, before = first_reaching(mx.array([[0.0, 0.0, 0.5, 0.5]]), mx.array([[target]]))
    assert (index.item(), before.item()) == (2, 0.0)
