from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.rate_limit import RateLimit


def test_a_minutes_worth_may_be_used_at_once_and_comes_back_evenly() -> None:
    rate = RateLimit(60, 100)
    assert rate.left(100) == 60
    assert rate.wait_s(60, 100) == 0
    rate.take(60, 100)
    assert (rate.left(100), rate.wait_s(1, 100), rate.full_in_s(100)) == (0, 1.0, 60.0)
    assert (rate.left(101.5), rate.left(1000)) == (1, 60)


def test_a_debt_is_paid_first() -> None:
    rate = RateLimit(60, 0)
    rate.take(90, 0)
    assert (rate.left(0), rate.wait_s(1, 0)) == (0, 31.0)
    assert rate.wait_s(1, 31) == 0


def test_what_was_taken_too_much_comes_back_but_no_more_than_there_is() -> None:
    rate = RateLimit(60, 0)
    rate.take(30, 0)
    rate.take(-20, 0)
    assert rate.left(0) == 50
    rate.take(-20, 0)
    assert rate.left(0) == 60


def test_more_than_there_ever_is_waits_for_all_of_it() -> None:
    assert RateLimit(60, 0).wait_s(1000, 0) == 0


def test_a_clock_that_runs_backwards_stands_still() -> None:
    rate = RateLimit(60, 100)
    rate.take(60, 100)
    rate.take(0, 50)
    assert (rate.left(50), rate.left(101)) == (0, 1)


def test_use_is_kept_under_another_limit() -> None:
    rate = RateLimit(60, 0)
    rate.take(50, 0)
    assert rate.rescaled(100, 0).left(0) == 50
    assert rate.rescaled(30, 0).wait_s(1, 0) == pytest.approx(42)


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=40))
def test_no_history_lets_more_through_than_a_minutes_worth_and_what_came_back(
    per_minute: int, history: list[tuple[float, int]]
) -> None:
    rate, now, used = RateLimit(per_minute, 0), 0.0, 0
    for pause_s, amount in history:
        now += pause_s
        if amount <= per_minute and rate.wait_s(amount, now) == 0:
            rate.take(amount, now)
            used += amount
        assert used <= per_minute * (1 + now / 60) + 1e-6
        assert 0 <= rate.left(now) <= per_minute


@given(st.integers(1, 1000), st.integers(0, 5000), st.integers(1, 1000))
def test_who_waits_as_long_as_he_is_told_is_let_in(per_minute: int, used: int, amount: int) -> None:
    rate = RateLimit(per_minute, 0)
    rate.take(used, 0)
    wait_s = rate.wait_s(amount, 0)
    assert rate.wait_s(amount, wait_s + 1e-6) == 0
