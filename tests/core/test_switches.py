from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.switches import Switches, SwitchPolicy

POLICY = SwitchPolicy(min_switches=2, likely=0.6, decay=1.0)


def used(switches: Switches, models: str) -> list[str | None]:
    return [switches.use(model) for model in models]


def test_a_guess_is_made_when_enough_switches_were_seen() -> None:
    assert used(Switches(POLICY), "abab") == [None, None, None, None]
    assert used(Switches(POLICY), "ababa")[-1] == "b"


def test_only_a_switch_brings_a_guess() -> None:
    switches = Switches(POLICY)
    used(switches, "ababa")
    assert switches.use("a") is None


def test_uses_without_a_switch_count_nothing() -> None:
    assert used(Switches(POLICY), "aabaaabbba")[-1] == "b"
    assert used(Switches(POLICY), "aaaaab")[-1] is None


def test_one_successor_must_have_most_of_them() -> None:
    assert used(Switches(POLICY), "abacabaca")[-1] is None
    assert used(Switches(POLICY), "abacaba")[-1] == "b"


def test_what_was_long_ago_counts_less() -> None:
    switches = Switches(SwitchPolicy(min_switches=1, likely=0.6, decay=0.5))
    assert used(switches, "abababa")[-1] == "b"
    assert used(switches, "caca")[-1] == "c"


def test_a_model_that_is_gone_is_no_guess() -> None:
    switches = Switches(POLICY)
    used(switches, "ababa")
    switches.forget("b")
    assert used(switches, "ca") == [None, None]
    switches.forget("a")  # the last one that was used
    assert used(switches, "bc") == [None, None]


def test_a_policy_out_of_its_limits_is_refused() -> None:
    for wrong in ({"min_switches": 0}, {"likely": 2}, {"decay": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SwitchPolicy(**wrong)


@given(models=st.lists(st.sampled_from("abcd")), forgotten=st.sets(st.sampled_from("abcd")))
def test_a_guess_is_another_model_that_was_used(models: list[str], forgotten: set[str]) -> None:
    switches = Switches(SwitchPolicy())
    seen: set[str] = set()
    for number, model in enumerate(models):
        if number == len(models) // 2:
            for name in forgotten:
                switches.forget(name)
            seen -= forgotten
        guess = switches.use(model)
        seen.add(model)
        assert guess is None or (guess != model and guess in seen)
