"""KV caches borrow the buffer cache's memory before anybody has to wait, and give it back when they need it no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.buffer_squeeze import Apart, Lent, SqueezeState, step

OWN = 100


def after(state: SqueezeState, demand: int, now: float) -> SqueezeState:
    return step(state, demand=demand, own=OWN, now=now, hold_s=10.0)


@pytest.mark.parametrize(("demand", "expected"), [(0, Apart()), (100, Apart()), (101, Lent(5.0))])
def test_it_is_lent_when_kv_caches_need_more_than_is_theirs(demand: int, expected: SqueezeState) -> None:
    assert after(Apart(), demand, 5.0) == expected


def test_it_is_called_back_when_nobody_has_needed_it_for_a_while() -> None:
    lent = after(Lent(0.0), 150, 3.0)
    assert lent == Lent(3.0)
    assert after(lent, 50, 12.9) == Lent(3.0)
    assert after(lent, 50, 13.0) == Apart()


@given(moves=st.lists(st.tuples(st.integers(0, 200), st.floats(0, 20)), max_size=30))
def test_it_is_lent_whenever_it_is_needed_and_stays_so_for_the_time_set(moves: list[tuple[int, float]]) -> None:
    state: SqueezeState = Apart()
    now, needed = 0.0, -100.0
    for demand, pause in moves:
        now += pause
        needed = now if demand > OWN else needed
        state = after(state, demand, now)
        assert isinstance(state, Lent) is (now - needed < 10.0)
