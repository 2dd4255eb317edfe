from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.alias_table import KEPT, AliasTable, Target
from mlx_serving.core.model_profile import ModelProfile
from mlx_serving.errors import InvalidRequest, NotFound

A, B, C = Target("a", since=1), Target("b", since=2), Target("c", since=3)
CONFIGURED = Target("configured")


def table(*targets: Target, configured: bool = False) -> AliasTable:
    made = AliasTable({"x": CONFIGURED} if configured else {})
    for target in targets:
        made = made.with_target("x", target)
    return made


def test_what_was_set_wins_over_what_is_configured() -> None:
    assert table(configured=True).target("x") == CONFIGURED
    assert table(A, B, configured=True).target("x") == B
    assert table().target("x") is None
    assert table(A, configured=True).with_target("y", B).names() == ["x", "y"]


def test_the_history_is_what_it_meant_before_latest_first() -> None:
    assert table(A, B, C, configured=True).history("x") == (B, A, CONFIGURED)
    assert table(A, B).history("x") == (A,)
    assert table(configured=True).history("x") == ()
    assert table().history("x") == ()


def test_to_set_the_same_again_makes_no_history() -> None:
    again = table(A, B).with_target("x", Target("b", since=9))
    assert (again.target("x"), again.history("x")) == (Target("b", since=9), (A,))
    other = table(A).with_target("x", Target("a", ModelProfile(temperature=0), since=9))
    assert other.history("x") == (A,)


def test_only_the_last_targets_are_remembered() -> None:
    made = table(*(Target(str(number)) for number in range(20)))
    assert [target.model for target in made.history("x")] == [str(number) for number in range(18, 19 - KEPT, -1)]


def test_a_roll_back_leads_to_what_was_before() -> None:
    assert table(A, B, configured=True).rolled_back("x", is_served=False).target("x") == A
    back = table(A, configured=True).rolled_back("x", is_served=False)
    assert back == table(configured=True)


def test_the_model_of_that_name_is_what_was_before_the_first() -> None:
    assert table(A).rolled_back("x", is_served=True) == AliasTable()


def test_where_nothing_was_before_there_is_no_way_back() -> None:
    for made in (table(A), table(configured=True)):
        with pytest.raises(InvalidRequest, match="no way back"):
            made.rolled_back("x", is_served=False)
    with pytest.raises(NotFound, match="there is: x"):
        table(A).rolled_back("y", is_served=True)


def test_what_is_removed_leaves_what_is_configured() -> None:
    assert table(A, B, configured=True).without("x") == table(configured=True)
    assert table(A).with_target("y", B).without("x").names() == ["y"]
    with pytest.raises(InvalidRequest, match="goes with the configuration"):
        table(configured=True).without("x")
    with pytest.raises(NotFound, match="there is: no alias"):
        AliasTable().without("x")


def test_another_configuration_changes_what_nobody_has_set() -> None:
    made = table(A, B).with_target("gone", C)
    changed, ended = made.reconfigured({"y": CONFIGURED}, ["b", "configured"])
    assert changed.configured == {"y": CONFIGURED}
    assert (changed.target("x"), changed.history("x")) == (B, ())  # the way back to a model that is gone is gone
    assert ended == {"gone": C}
    assert changed.target("gone") is None


def test_an_alias_is_shown_with_all_that_is_known_of_it() -> None:
    [view] = table(A, B, configured=True).views()
    assert (view.name, view.target, view.is_set, view.configured, view.history) == (
        "x",
        B,
        True,
        CONFIGURED,
        (A, CONFIGURED),
    )
    [view] = table(configured=True).views()
    assert (view.target, view.is_set, view.history) == (CONFIGURED, False, ())


ACTIONS = st.lists(st.tuples(st.sampled_from(["set", "back", "remove", "reconfigure"]), st.integers(0, 3)))


@given(actions=ACTIONS, configured=st.booleans())
def test_any_history_keeps_the_invariants(actions: list[tuple[str, int]], configured: bool) -> None:
    made = table(configured=configured)
    for action, number in actions:
        before = made
        try:
            match action:
                case "set":
                    made = made.with_target("x", Target(str(number)))
                    assert made.target("x") == Target(str(number))
                case "back":
                    made = made.rolled_back("x", is_served=False)
                    assert made.target("x") == before.history("x")[0]
                    assert made.history("x") == before.history("x")[1:]
                case "remove":
                    made = made.without("x")
                    assert made.target("x") == before.configured.get("x")
                case _:
                    made, _ = made.reconfigured(made.configured, [str(number)])
        except (InvalidRequest, NotFound):
            assert made is before
        assert len(made.history("x")) <= KEPT
        assert all(targets for targets in made.set.values())
        assert (made.target("x") is not None) == ("x" in made.names())
