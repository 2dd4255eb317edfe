from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.placement import Holding, Placement, PlacementPolicy, WorkerView, deal, place

POLICY = PlacementPolicy(replicate_above=2)
IDLE = WorkerView(ready=True, given_up=False, reserved=False, streams=0, models=0, holding=Holding.ABSENT)
HOLDER = replace(IDLE, models=1, holding=Holding.READY)
VIEWS = st.lists(
    st.builds(
        WorkerView,
        ready=st.booleans(),
        given_up=st.booleans(),
        reserved=st.booleans(),
        streams=st.integers(0, 9),
        models=st.integers(0, 3),
        holding=st.sampled_from(Holding),
        alone=st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


def test_a_model_is_served_where_it_is() -> None:
    assert place([IDLE, HOLDER], POLICY) == Placement(1)


def test_who_is_loading_it_goes_before_who_would_have_to() -> None:
    assert place([IDLE, replace(IDLE, holding=Holding.LOADING, streams=9)], POLICY) == Placement(1)


def test_among_those_who_have_it_the_one_with_fewest_streams_serves() -> None:
    assert place([replace(HOLDER, streams=3), replace(HOLDER, streams=2)], POLICY) == Placement(1)


def test_a_new_model_goes_to_the_emptiest_worker() -> None:
    assert place([replace(IDLE, models=2), replace(IDLE, models=1), replace(IDLE, streams=1)], POLICY) == Placement(1)


@pytest.mark.parametrize("away", [{"ready": False}, {"given_up": True}, {"reserved": True}])
def test_a_worker_that_cannot_serve_is_left_out_while_another_can(away: dict[str, bool]) -> None:
    assert place([replace(HOLDER, **away), IDLE], POLICY) == Placement(1)


def test_who_failed_to_load_it_is_asked_last_of_those_who_may_come_back() -> None:
    failed = replace(IDLE, holding=Holding.FAILED)
    assert place([failed, replace(IDLE, ready=False)], POLICY) == Placement(1)
    assert place([replace(IDLE, given_up=True), failed], POLICY) == Placement(1)


def test_a_busy_model_gets_another_worker_once() -> None:
    busy = replace(HOLDER, streams=2)
    assert place([busy, IDLE], POLICY) == Placement(0, replica=1)
    assert place([replace(busy, streams=1), IDLE], POLICY) == Placement(0)
    assert place([busy, replace(IDLE, streams=1)], POLICY) == Placement(0)
    assert place([busy, IDLE, replace(IDLE, holding=Holding.LOADING)], POLICY) == Placement(0)
    assert place([busy, replace(IDLE, holding=Holding.FAILED)], POLICY) == Placement(0)
    assert place([busy, replace(IDLE, models=1), IDLE], POLICY) == Placement(0, replica=2)


def test_preloaded_models_are_dealt_until_everybody_has_one() -> None:
    assert deal(["a", "b", "c"], 2) == [(0, "a"), (1, "b"), (0, "c")]
    assert deal(["a"], 3) == [(0, "a"), (1, "a"), (2, "a")]
    assert deal([], 2) == []


@given(VIEWS)
def test_the_best_there_is_serves_and_only_the_idle_get_replicas(views: list[WorkerView]) -> None:
    placement = place(views, POLICY)
    chosen = views[placement.worker]
    able = [view for view in views if view.ready and not view.reserved and not view.given_up]
    if any(view.holding is Holding.READY for view in able):
        assert chosen in able
        assert chosen.holding is Holding.READY
        assert _cost(chosen) == min(_cost(view) for view in able if view.holding is Holding.READY)
    if not chosen.ready:
        assert all(view.holding is Holding.FAILED for view in able)
    if placement.replica is not None:
        replica = views[placement.replica]
        assert replica.holding is Holding.ABSENT
        assert replica.streams + POLICY.replicate_above <= chosen.streams


def _cost(view: WorkerView) -> int:
    return view.streams + POLICY.replicate_above * view.alone


def test_the_policy_has_limits() -> None:
    with pytest.raises(ValueError, match="replicate_above must be at least 1, got 0"):
        PlacementPolicy(replicate_above=0)


def test_who_has_what_goes_with_the_model_serves_unless_others_have_much_less_to_do() -> None:
    alone = replace(HOLDER, alone=True)
    assert place([alone, HOLDER], POLICY) == Placement(1)
    assert place([alone, replace(HOLDER, streams=1)], POLICY) == Placement(1)
    assert place([alone, replace(HOLDER, streams=3)], POLICY) == Placement(0)
    assert place([replace(IDLE, alone=True), IDLE], POLICY) == Placement(1)
