from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.key_usage import Allowance, DaySpent, KeyLimits, KeyUsage, Refusal

DAY = 86_400
NOON = 20_000 * DAY + DAY / 2


def test_without_limits_everything_is_allowed() -> None:
    usage = KeyUsage(KeyLimits(), 0)
    for _ in range(1000):
        assert usage.enter(0, NOON) is None
        usage.spend(1_000_000, 0, NOON)
    assert usage.running == 1000
    assert usage.allowances(0) == []
    assert KeyLimits().allows("any")
    assert not KeyLimits().expired(NOON)


def test_models_and_the_end_of_a_key() -> None:
    limits = KeyLimits(models=frozenset({"a"}), expires_at=100)
    assert (limits.allows("a"), limits.allows("b")) == (True, False)
    assert (limits.expired(99.9), limits.expired(100)) == (False, True)


def test_so_many_at_a_time() -> None:
    usage = KeyUsage(KeyLimits(max_concurrent=1), 0)
    assert usage.enter(0, NOON) is None
    assert usage.enter(0, NOON) == Refusal("concurrent requests", 1, 1.0)
    usage.leave()
    assert usage.enter(0, NOON) is None


def test_so_many_requests_a_minute() -> None:
    usage = KeyUsage(KeyLimits(requests_per_minute=2), 0)
    assert [usage.enter(0, NOON) for _ in range(3)] == [None, None, Refusal("requests per minute", 2, 30.0)]
    assert usage.enter(30, NOON) is None


def test_tokens_are_counted_when_they_are_there_and_the_debt_is_paid_first() -> None:
    usage = KeyUsage(KeyLimits(tokens_per_minute=60), 0)
    assert usage.enter(0, NOON) is None
    usage.spend(90, 0, NOON)
    assert usage.enter(0, NOON) == Refusal("tokens per minute", 60, 31.0)
    assert usage.enter(31, NOON) is None


def test_a_refusal_uses_nothing() -> None:
    usage = KeyUsage(KeyLimits(requests_per_minute=5, tokens_per_minute=60), 0)
    usage.spend(60, 0, NOON)
    for _ in range(10):
        assert usage.enter(0, NOON) is not None
    assert usage.allowances(0)[0].remaining == 5
    assert usage.running == 0


def test_so_many_tokens_a_day_until_midnight() -> None:
    usage = KeyUsage(KeyLimits(daily_tokens=100), 0)
    usage.spend(100, 0, NOON)
    assert usage.enter(0, NOON) == Refusal("tokens per day", 100, DAY / 2)
    assert usage.enter(0, NOON + DAY / 2) is None
    assert usage.spent(NOON + DAY / 2) == DaySpent(20_001, 0)


def test_a_day_goes_on_after_a_restart() -> None:
    usage = KeyUsage(KeyLimits(daily_tokens=100), 0, DaySpent(20_000, 99))
    usage.spend(1, 0, NOON)
    assert usage.enter(0, NOON) is not None
    assert usage.spent(NOON) == DaySpent(20_000, 100)


def test_what_was_assumed_too_much_is_given_back() -> None:
    usage = KeyUsage(KeyLimits(tokens_per_minute=60, daily_tokens=100), 0)
    usage.spend(50, 0, NOON)
    usage.spend(-40, 0, NOON)
    assert usage.allowances(0) == [Allowance("tokens", 60, 50, 10.0)]
    assert usage.spent(NOON).tokens == 10
    usage.spend(-40, 0, NOON)
    assert usage.spent(NOON).tokens == 0


def test_other_limits_hold_at_once_and_use_is_not_forgotten() -> None:
    usage = KeyUsage(KeyLimits(requests_per_minute=2), 0)
    usage.enter(0, NOON)
    usage.enter(0, NOON)
    usage.reconfigure(KeyLimits(requests_per_minute=3, tokens_per_minute=10), 0)
    assert usage.allowances(0) == [Allowance("requests", 3, 1, 40.0), Allowance("tokens", 10, 10, 0.0)]
    usage.reconfigure(KeyLimits(), 0)
    assert usage.allowances(0) == []
    assert usage.running == 2


_EVENTS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "spend"]), st.integers(0, 40), st.floats(0, 20)), max_size=60
)


@given(_EVENTS)
@pytest.mark.parametrize("limits", [KeyLimits(None, 10, 100, 3, 500), KeyLimits(max_concurrent=1, daily_tokens=1)])
def test_no_history_breaks_a_limit(limits: KeyLimits, history: list[tuple[str, int, float]]) -> None:
    usage, now, entered, spent = KeyUsage(limits, 0), 0.0, 0, 0
    for what, tokens, pause_s in history:
        now += pause_s
        if what == "enter":
            refusal = usage.enter(now, now)
            if refusal is None:
                entered += 1
                assert limits.daily_tokens is None or spent < limits.daily_tokens
            else:
                assert refusal.retry_after_s > 0
        elif what == "leave" and usage.running:
            usage.leave()
        elif what == "spend":
            usage.spend(tokens, now, now)
            spent += tokens
        assert 0 <= usage.running <= (limits.max_concurrent or 0)
        if limits.requests_per_minute is not None:
            assert entered <= limits.requests_per_minute * (1 + now / 60) + 1e-6
