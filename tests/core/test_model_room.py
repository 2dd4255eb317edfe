from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.model_room import Resident, RoomPolicy, Use, give_way, give_way_to_caches, next_due, overdue

POLICY = RoomPolicy(half_life_s=10)


def idle(name: str, size: int = 10, *, used: float = 0.0, **fields: object) -> Resident:
    return Resident(name, size, Use(1, used), idle_since=used, **fields)  # type: ignore[arg-type]


def busy(name: str, size: int = 10, *, used: float = 0.0, pinned: bool = False) -> Resident:
    return Resident(name, size, Use(1, used), None, pinned)


def test_every_use_counts_one_and_half_as_much_after_each_half_life() -> None:
    used = Use().again(0, 10).again(0, 10)
    assert used == Use(2, 0)
    assert used.again(10, 10) == Use(2, 10)
    assert used.again(20, 10).count == 1.5


def test_a_clock_that_went_back_makes_nothing_warmer() -> None:
    assert Use(2, 100).again(50, 10) == Use(3, 50)


def test_the_coldest_give_way_first() -> None:
    residents = [idle("late", used=30), idle("early", used=10), idle("middle", used=20)]
    assert give_way(10, residents, POLICY) == ["early"]
    assert give_way(11, residents, POLICY) == ["early", "middle"]


def test_a_model_that_was_used_often_outlasts_one_that_was_used_once_after_it() -> None:
    often = Resident("often", 10, Use(8, 0), idle_since=0)
    once = Resident("once", 10, Use(1, 20), idle_since=20)  # two half-lives later
    assert give_way(5, [often, once], POLICY) == ["once"]
    assert give_way(5, [often, Resident("once", 10, Use(1, 40), idle_since=40)], POLICY) == ["often"]


def test_a_model_that_was_never_used_is_the_coldest() -> None:
    assert Use().warmth(10) == -math.inf
    assert give_way(5, [idle("used"), Resident("never", 10, idle_since=5)], POLICY) == ["never"]


def test_those_that_nobody_uses_go_before_those_that_somebody_does() -> None:
    residents = [busy("busy", used=0), idle("idle", used=50)]
    assert give_way(10, residents, POLICY) == ["idle"]
    assert give_way(20, residents, POLICY) == ["idle", "busy"]


def test_one_in_use_is_not_asked_where_nothing_may_be_drained() -> None:
    residents = [busy("busy"), idle("idle")]
    assert give_way(10, residents, POLICY, may_drain=False) == ["idle"]
    assert give_way(20, residents, POLICY, may_drain=False) is None


def test_a_pinned_model_stays() -> None:
    assert give_way(10, [idle("pinned", pinned=True)], POLICY) is None
    assert give_way(10, [busy("pinned", pinned=True), busy("free")], POLICY) == ["free"]


def test_nobody_gives_way_in_vain() -> None:
    assert give_way(100, [idle("one"), idle("two")], POLICY) is None
    assert give_way(40, [idle("small", 10, used=1), idle("large", 50, used=2)], POLICY) == ["large"]
    assert give_way(0, [idle("one")], POLICY) == []


def sharing(name: str, own: int, *, used: float = 0.0, idle: bool = True, of: str = "base") -> Resident:
    return Resident(name, own, Use(1, used), used if idle else None, shares=of, shared_size=100)


def test_shared_weights_go_with_the_last_one_that_has_them() -> None:
    residents = [sharing("first", 2, used=1), sharing("second", 3, used=2)]
    assert give_way(2, residents, POLICY) == ["first"]
    assert give_way(5, residents, POLICY) == give_way(105, residents, POLICY) == ["first", "second"]
    assert give_way(106, residents, POLICY) is None
    stays = sharing("stays", 0, idle=False)
    assert give_way(6, [*residents, stays], POLICY, may_drain=False) is None
    assert give_way(6, [*residents, stays], POLICY) == ["first", "second", "stays"]


def test_one_that_would_free_nothing_of_use_is_not_asked() -> None:
    """Its weights stay, because another one that is in use has them."""
    residents = [sharing("shared", 0, used=1), sharing("in use", 0, idle=False), idle("other", 10, used=5)]
    assert give_way(10, residents, POLICY) == ["other"]
    assert give_way(10, [*residents, sharing("apart", 0, used=9, of="else")], POLICY) == ["other"]


def test_caches_get_the_memory_of_those_that_are_idle_and_need_not_stay() -> None:
    residents = [
        idle("pinned", pinned=True),
        busy("busy"),
        idle("for ever", keep_alive_s=-1.0),
        idle("late", used=9),
        idle("early", used=5, keep_alive_s=100.0),
    ]
    assert give_way_to_caches(10, residents, POLICY) == ["early"]
    assert give_way_to_caches(20, residents, POLICY) == ["early", "late"]
    assert give_way_to_caches(21, residents, POLICY) is None
    assert give_way_to_caches(10, residents, RoomPolicy(keep_alive_s=-1.0)) == ["early"]
    assert next_due(residents[:3], POLICY) is next_due(residents[3:4], RoomPolicy(keep_alive_s=-1.0)) is None


def test_a_model_that_was_idle_for_as_long_as_it_may_be_is_overdue() -> None:
    residents = [
        idle("soon", keep_alive_s=5.0),
        idle("later", used=3, keep_alive_s=5.0),
        idle("for ever"),
        idle("pinned", pinned=True, keep_alive_s=1.0),
        Resident("busy", 1, keep_alive_s=1.0),
    ]
    assert overdue(residents, POLICY, 4.9) == []
    assert overdue(residents, POLICY, 5.0) == ["soon"]
    assert overdue(residents, POLICY, 8.0) == ["soon", "later"]
    assert next_due(residents, POLICY) == 5.0
    assert next_due(residents[2:], POLICY) is None


def test_the_policy_holds_for_those_of_which_nothing_else_is_said() -> None:
    policy = RoomPolicy(keep_alive_s=2.0)
    residents = [idle("own", keep_alive_s=5.0), idle("all"), idle("pinned", pinned=True)]
    assert overdue(residents, policy, 3.0) == ["all"]
    assert next_due(residents, policy) == 2.0


def test_a_policy_out_of_its_limits_is_refused() -> None:
    with pytest.raises(ValueError, match="half_life_s must be greater than 0"):
        RoomPolicy(half_life_s=0)
    with pytest.raises(ValueError, match="drain_timeout_s must be at least 0"):
        RoomPolicy(drain_timeout_s=-1)


RESIDENTS = st.lists(
    st.builds(
        Resident,
        name=st.uuids().map(str),
        size=st.integers(0, 100),
        use=st.builds(Use, st.floats(0, 100), st.floats(0, 1000)),
        idle_since=st.none() | st.floats(0, 1000),
        pinned=st.booleans(),
        keep_alive_s=st.none() | st.floats(0, 100) | st.just(-1.0),
        shares=st.none() | st.sampled_from(["a", "b"]),
        shared_size=st.just(50),
    ),
    max_size=8,
)


def freed_by(names: Sequence[str], residents: list[Resident]) -> int:
    """By counting what stays."""

    def total(models: list[Resident]) -> int:
        return sum(one.size for one in models) + 50 * len({one.shares for one in models} - {None})

    return total(residents) - total([one for one in residents if one.name not in names])


@given(needed=st.integers(0, 500), residents=RESIDENTS, may_drain=st.booleans(), for_caches=st.booleans())
def test_any_choice_keeps_the_invariants(
    needed: int, residents: list[Resident], may_drain: bool, for_caches: bool
) -> None:
    if for_caches:
        names = give_way_to_caches(needed, residents, POLICY)
        able = [one for one in residents if not one.pinned and one.idle_since is not None and one.keep_alive_s != -1.0]
    else:
        names = give_way(needed, residents, POLICY, may_drain=may_drain)
        able = [one for one in residents if not one.pinned and (may_drain or one.idle_since is not None)]
    if names is None:
        assert freed_by([one.name for one in able], residents) < needed
        return
    chosen = [one for one in able if one.name in names]
    assert len(chosen) == len(names)
    assert freed_by(names, residents) >= needed
    # Without any one of them it would not be enough.
    assert all(freed_by([other for other in names if other != one], residents) < needed for one in names)
    idle_ones = [one.name for one in able if one.idle_since is not None]
    if freed_by(idle_ones, residents) >= needed:
        assert all(one.idle_since is not None for one in chosen)
