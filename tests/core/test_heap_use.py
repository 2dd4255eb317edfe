from __future__ import annotations

import pytest

from mlx_serving.core.heap_use import gives_back

MIB = 1 << 20


@pytest.mark.parametrize(
    ("kept", "given_back"),
    [(50 * MIB, False), (51 * MIB, False), (51 * MIB + 1, True), (10 * MIB, False)],
)
def test_more_than_a_hundredth_of_the_budget_goes_back(kept: int, given_back: bool) -> None:
    assert gives_back(kept, 50 * MIB, 100 * MIB) is given_back
