from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.prefix.traffic import PendingSaves, ReadingRate, patience_s


def test_saves_are_taken_in_the_order_they_were_offered() -> None:
    saves = PendingSaves(3)
    for key, parent in (("a", "root"), ("b", "a"), ("a", "root")):
        assert saves.offer(key, parent) == []
    assert (len(saves), "a" in saves, "c" in saves) == (2, True, False)
    assert [saves.take(), saves.take(), saves.take()] == ["a", "b", None]


def test_the_oldest_is_given_up_with_what_goes_on_from_it() -> None:
    saves = PendingSaves(3)
    for key, parent in (("a", "root"), ("x", "root"), ("b", "a")):
        saves.offer(key, parent)
    assert saves.offer("c", "b") == ["a", "b", "c"]
    assert saves.take() == "x"


def test_what_cannot_be_written_takes_along_what_goes_on_from_it() -> None:
    saves = PendingSaves(9)
    for key, parent in (("b", "a"), ("x", "root"), ("c", "b")):
        saves.offer(key, parent)
    assert saves.drop("a") == ["b", "c"]  # itself it does not wait any more
    assert saves.take() == "x"


@given(st.lists(st.integers(0, 99), max_size=60), st.integers(1, 5))
def test_no_more_wait_than_may_and_nothing_waits_for_what_was_given_up(parents: list[int], most: int) -> None:
    saves = PendingSaves(most)
    offered: list[str] = []
    waiting: dict[str, str] = {}
    for number, choice in enumerate(parents):
        key, parent = str(number), offered[choice % len(offered)] if offered else "root"
        offered.append(key)
        waiting[key] = parent
        dropped = saves.offer(key, parent)
        for each in dropped:
            del waiting[each]
        assert not set(dropped) & set(waiting.values())
        assert len(saves) == len(waiting) <= most
    assert [saves.take() for _ in range(len(saves))] == list(waiting)


def test_the_rate_follows_what_is_measured() -> None:
    rate = ReadingRate()
    presumed = rate.seconds_for(1_000_000)
    assert presumed == pytest.approx(0.002)
    for _ in range(60):
        rate.learn(1_000_000, 0.01)
    assert rate.seconds_for(2_000_000) == pytest.approx(0.02, rel=1e-3)


def test_nobody_waits_longer_than_computing_takes() -> None:
    assert patience_s(reading_s=1, computing_s=3) == 3
    assert patience_s(reading_s=3, computing_s=3) is None
    assert patience_s(reading_s=4, computing_s=3) is None


def test_whoever_does_not_know_better_waits_for_the_disk() -> None:
    assert patience_s(reading_s=0.001, computing_s=0) == 2
    assert patience_s(reading_s=5, computing_s=0) == 20
