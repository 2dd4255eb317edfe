from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.core.speculation.pass_cost import DraftCost, PassCost


@settings(deadline=None)
@given(
    true=st.floats(6, 300),
    each_s=st.floats(1e-5, 0.1),
    prior=st.floats(6, 300),
    widths=st.lists(st.integers(2, 120), min_size=120, max_size=120),
)
def test_it_finds_what_passes_of_different_widths_show(
    true: float, each_s: float, prior: float, widths: list[int]
) -> None:
    cost = PassCost(prior)
    for tokens in [*widths, *range(4, 124, 2)]:
        cost.learn(tokens, each_s * (true + tokens))
    assert cost.tokens == pytest.approx(true, rel=0.5)


@settings(deadline=None)
@given(prior=st.floats(6, 300), seconds=st.floats(1e-4, 10), tokens=st.integers(2, 100))
def test_passes_of_one_width_say_nothing(prior: float, seconds: float, tokens: int) -> None:
    cost = PassCost(prior)
    for _ in range(50):
        cost.learn(tokens, seconds)
    assert cost.tokens == pytest.approx(prior, rel=1e-3)


def test_what_costs_no_more_with_more_tokens_is_all_pass() -> None:
    cost = PassCost(24)
    for number in range(100):
        cost.learn(2 + number % 10, 0.02)
    assert cost.tokens > 60
    for number in range(100):
        cost.learn(2 + number % 10, 0.02 - 0.001 * (number % 10))
    assert cost.tokens == 512


def test_what_costs_as_much_as_its_tokens_is_hardly_any_pass() -> None:
    cost = PassCost(24)
    for number in range(100):
        cost.learn(10 * (1 + number % 10), 0.01 * (1 + number % 10))
    assert cost.tokens == 4


def test_a_hiccup_is_forgotten() -> None:
    dice, cost = random.Random(1), PassCost(24)
    for number in range(200):
        tokens = dice.randint(2, 60)
        cost.learn(tokens, 0.001 * (50 + tokens) * (100 if number == 120 else 1))
    assert cost.tokens == pytest.approx(50, rel=0.1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 100)), max_size=50))
def test_whatever_is_measured_it_stays_within_bounds(measured: list[tuple[int, float]]) -> None:
    cost = PassCost(24)
    for tokens, seconds in measured:
        cost.learn(tokens, seconds)
        assert 4 <= cost.tokens <= 512


def test_what_is_not_tried_is_thought_as_before_in_the_end() -> None:
    cost = PassCost(24)
    cost.doubt()
    assert (cost.tokens, cost.expected_s(3)) == (24, 0)
    for number in range(100):
        cost.learn(10 * (1 + number % 10), 0.01 * (1 + number % 10))
    assert cost.tokens < 6
    for _ in range(400):
        cost.doubt()
    assert cost.tokens > 23


@settings(deadline=None)
@given(true=st.floats(6, 300), each_s=st.floats(1e-5, 0.1))
def test_it_tells_how_long_a_pass_takes(true: float, each_s: float) -> None:
    cost = PassCost(true)
    for tokens in range(2, 60):
        cost.learn(tokens, each_s * (true + tokens))
    assert cost.expected_s(7) == pytest.approx(each_s * (true + 7), rel=0.01)


def test_what_drafting_costs_is_measured_in_passes() -> None:
    cost = DraftCost(0.1)
    cost.learn(4, 1.0, 0.0)
    cost.learn(0, 1.0, 1.0)
    assert cost.part == 0.1
    for _ in range(60):
        cost.learn(4, 0.08, 0.05)
    assert cost.part == pytest.approx(0.4, rel=0.01)
    cost.learn(4, 100.0, 0.05)
    assert cost.part < 0.6
    for _ in range(200):
        cost.doubt()
    assert cost.part == pytest.approx(0.1, rel=0.01)
