from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.response_store import ResponseStore, StorePolicy


def _store(**policy: float) -> ResponseStore[str]:
    return ResponseStore(StorePolicy(**{"max_entries": 3, "max_bytes": 100, "ttl_s": 10.0, **policy}))  # pyright: ignore[reportArgumentType]


def test_a_value_is_its_owners_alone() -> None:
    store = _store()
    store.put("a", "alice", "A", 1, 0.0)
    assert store.get("a", "alice", 1.0) == "A"
    assert store.get("a", "bob", 1.0) is None
    assert not store.delete("a", "bob", 1.0)
    assert store.delete("a", "alice", 1.0)
    assert store.get("a", "alice", 1.0) is None


def test_what_was_not_used_for_the_longest_time_goes_first() -> None:
    store = _store()
    for key in "abc":
        store.put(key, "o", key, 1, 0.0)
    store.get("a", "o", 1.0)
    store.put("d", "o", "d", 1, 2.0)
    assert [key for key in "abcd" if store.get(key, "o", 3.0) is not None] == ["a", "c", "d"]


def test_bytes_are_bounded_in_all() -> None:
    store = _store()
    store.put("a", "o", "a", 60, 0.0)
    store.put("b", "o", "b", 60, 0.0)
    assert (store.get("a", "o", 0.0), store.get("b", "o", 0.0)) == (None, "b")
    store.put("c", "o", "c", 101, 0.0)
    assert (store.get("b", "o", 0.0), store.get("c", "o", 0.0)) == ("b", None)


def test_a_value_is_kept_for_a_while_after_its_last_use() -> None:
    store = _store()
    store.put("a", "o", "a", 1, 0.0)
    assert store.get("a", "o", 9.0) == "a"
    assert store.get("a", "o", 18.0) == "a"
    assert store.get("a", "o", 28.0) is None


def test_what_is_dropped_is_told_once() -> None:
    store = _store()
    for key in "abc":
        store.put(key, "o", key, 1, 0.0)
    assert store.take_gone() == []
    store.put("d", "o", "d", 1, 1.0)
    store.delete("c", "o", 2.0)
    assert store.take_gone() == ["a", "c"]
    assert store.get("b", "o", 10.0) is None
    assert store.take_gone() == ["b"]
    store.put("e", "o", "e", 101, 10.0)
    assert store.take_gone() == ["e"]
    assert store.get("d", "o", 10.0) == "d"
    assert store.take_gone() == []


@pytest.mark.parametrize("policy", [{"max_entries": 0}, {"max_bytes": 0}, {"ttl_s": 0}])
def test_bounds_of_nothing_are_refused(policy: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(policy))):
        _store(**policy)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60), st.sampled_from(["put", "delete"]))))
def test_bounds_hold_whatever_is_put(steps: list[tuple[str, int, str]]) -> None:
    store = _store()
    kept: dict[str, int] = {}
    for now, (key, size, kind) in enumerate(steps):
        if kind == "put":
            store.put(f"{key}{now}", "o", key, size, now / 100)
            kept[f"{key}{now}"] = size
        elif kept:
            assert store.delete(next(iter(kept)), "o", now / 100)
        before = set(kept)
        kept = {each: kept[each] for each in kept if store.get(each, "o", now / 100) is not None}
        assert set(store.take_gone()) == before - set(kept)
        assert len(store) == len(kept) <= 3
        assert sum(kept.values()) <= 100
