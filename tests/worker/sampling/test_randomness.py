"""Numbers that are functions of a seed and a position."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.sampling_defaults import MAX_SEED
from mlx_serving.worker.sampling.randomness import coin, uniform

PINNED = [0.6524485051631927, 0.7012121379375458, 0.3681895434856415, 0.937957376241684]
PINNED_COINS = [0.5966279208660126, 0.49458935856819153, 0.40579989552497864]


def test_the_numbers_of_seeds_and_positions_stay_what_they_are() -> None:
    """A text that was drawn with a seed must come again in a later release."""
    assert [uniform(0, 0), uniform(0, 1), uniform(1, 0), uniform(MAX_SEED, 10_000)] == PINNED
    assert [coin(0, 0), coin(0, 1), coin(MAX_SEED, 10_000)] == PINNED_COINS


def test_numbers_are_spread_evenly_and_differ_between_close_seeds() -> None:
    numbers = {uniform(seed, position) for seed in (0, 1, 2, MAX_SEED) for position in range(250)}
    assert len(numbers) > 990
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.03
    by_tenth = Counter(int(number * 10) for number in numbers)
    assert set(by_tenth) == set(range(10))
    assert min(by_tenth.values()) > 70
    assert all(0 < number < 1 for number in numbers)


@given(st.integers(0, MAX_SEED), st.integers(0, 1 << 32))
def test_a_number_is_between_0_and_1_and_never_either(seed: int, position: int) -> None:
    assert 0 < uniform(seed, position) < 1
    assert 0 < coin(seed, position) < 1


def test_a_coin_says_nothing_about_the_draw_at_its_place() -> None:
    pairs = Counter((uniform(seed, p) < 0.5, coin(seed, p) < 0.5) for seed in range(40) for p in range(100))
    assert all(abs(count / 4000 - 0.25) < 0.03 for count in pairs.values())
    assert len(pairs) == 4
