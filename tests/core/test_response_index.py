from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.response_index import Kept, ResponseCachePolicy, ResponseIndex

POLICY = ResponseCachePolicy(max_entries=3, max_tokens=100, max_bytes=1000, ttl_s=10)


def _kept(tokens: int = 1, size: int = 1, at: float = 0) -> Kept:
    return Kept(tokens, size, at)


def test_what_was_stored_is_found_until_it_is_too_old() -> None:
    index = ResponseIndex(POLICY)
    assert not index.find("a", 0)
    assert index.store("a", _kept()) == []
    assert index.find("a", 9.9)
    assert not index.find("a", 10)
    assert "a" not in index
    assert not index.find("a", 10)
    assert (index.stats.hits, index.stats.misses, index.stats.expired) == (1, 3, 1)


def test_an_answer_from_the_future_is_too_old_as_well() -> None:
    index = ResponseIndex(POLICY)
    index.store("a", _kept(at=5))
    assert not index.find("a", 4)


def test_the_least_recently_used_goes_first() -> None:
    index = ResponseIndex(POLICY)
    for key in "abc":
        index.store(key, _kept())
    index.find("a", 0)
    assert index.store("d", _kept()) == ["b"]
    assert index.stats.evicted == 1


@pytest.mark.parametrize("large", [_kept(tokens=99), _kept(size=999)])
def test_tokens_and_bytes_are_bounded_too(large: Kept) -> None:
    index = ResponseIndex(POLICY)
    index.store("a", _kept())
    index.store("b", _kept())
    assert index.store("c", large) == ["a"]


@pytest.mark.parametrize("too_large", [_kept(tokens=101), _kept(size=1001)])
def test_what_is_too_large_is_not_kept_and_drives_nobody_out(too_large: Kept) -> None:
    index = ResponseIndex(POLICY)
    index.store("a", _kept())
    assert index.store("b", too_large) is None
    assert "a" in index
    assert "b" not in index


def test_storing_again_replaces() -> None:
    index = ResponseIndex(POLICY)
    index.store("a", _kept(tokens=60, size=600))
    assert index.store("a", _kept(tokens=70, size=700, at=5)) == []
    assert (index.stats.entries, index.stats.tokens, index.stats.size_bytes) == (1, 70, 700)
    assert index.find("a", 14)


def test_an_earlier_run_is_gone_on_with() -> None:
    index = ResponseIndex(POLICY)
    earlier = [("old", _kept(at=0)), *((key, _kept(at=10)) for key in "abcd"), ("big", _kept(size=2000, at=10))]
    assert index.restore(earlier, 15) == ["old", "a", "big"]
    assert [key in index for key in "abcd"] == [False, True, True, True]
    assert (index.stats.stored, index.stats.evicted) == (0, 0)


def test_an_answer_that_cannot_be_read_was_a_miss() -> None:
    index = ResponseIndex(POLICY)
    index.store("a", _kept())
    index.find("a", 0)
    index.unusable("a")
    assert (index.stats.hits, index.stats.misses, index.stats.entries) == (0, 1, 0)


def test_all_of_it_can_be_forgotten() -> None:
    index = ResponseIndex(POLICY)
    index.store("a", _kept())
    index.store("b", _kept())
    assert index.clear() == 2
    assert (index.stats.entries, index.stats.tokens, index.stats.size_bytes, index.stats.stored) == (0, 0, 0, 2)
    index.forget("a")


@pytest.mark.parametrize("name", ["max_entries", "max_tokens", "max_bytes", "ttl_s"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(POLICY, **{name: 0})


_STEP = st.tuples(
    st.sampled_from(["store", "find", "forget"]), st.sampled_from("abcdef"), st.integers(0, 120), st.integers(0, 1100)
)


@given(st.lists(_STEP, max_size=60))
def test_no_history_exceeds_a_limit_or_loses_count(history: list[tuple[str, str, int, int]]) -> None:
    index, bodies = ResponseIndex(POLICY), dict[str, Kept]()
    for now, (what, key, tokens, size) in enumerate(history):
        if what == "store":
            gone = index.store(key, kept := Kept(tokens, size, now))
            if gone is not None:
                bodies[key] = kept
                for each in gone:
                    del bodies[each]
        elif what == "find":
            found = index.find(key, now)
            if not found:
                bodies.pop(key, None)
            assert found == (key in bodies)
        else:
            index.forget(key)
            bodies.pop(key, None)
        stats = index.stats
        assert stats.entries == len(bodies) <= POLICY.max_entries
        assert stats.tokens == sum(each.tokens for each in bodies.values()) <= POLICY.max_tokens
        assert stats.size_bytes == sum(each.size for each in bodies.values()) <= POLICY.max_bytes
