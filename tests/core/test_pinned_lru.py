"""What is kept is what was used last, and what is held."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.pinned_lru import PinnedLru


def test_what_was_used_longest_ago_goes() -> None:
    lru = PinnedLru[str](10)
    assert lru.add("a", 4) == []
    assert lru.add("b", 4) == []
    lru.use("a")
    lru.use("unknown")
    assert lru.add("c", 4) == ["b"]
    assert ("a" in lru, "b" in lru, len(lru), lru.size) == (True, False, 2, 8)


def test_what_is_held_stays_beyond_the_limit() -> None:
    lru = PinnedLru[str](10)
    lru.add("a", 8)
    lru.pin("a")
    lru.pin("a")
    assert lru.add("b", 8) == ["b"]
    lru.limit = 0
    assert lru.fit() == []
    lru.unpin("a")
    assert lru.fit() == []
    lru.unpin("a")
    assert lru.fit() == ["a"]
    assert lru.size == 0


def test_what_is_held_beforehand_is_added_in_any_case() -> None:
    lru = PinnedLru[str](1)
    lru.pin("a")
    assert lru.add("a", 8) == []
    lru.unpin("a")
    assert lru.fit() == ["a"]


def test_what_is_dropped_is_gone_whoever_holds_it() -> None:
    lru = PinnedLru[str](10)
    lru.add("a", 4)
    lru.pin("a")
    lru.drop("a")
    lru.drop("unknown")
    assert ("a" in lru, lru.size) == (False, 0)


def test_what_comes_again_counts_once() -> None:
    lru = PinnedLru[str]()
    lru.add("a", 4)
    lru.add("a", 6)
    assert (len(lru), lru.size) == (1, 6)


@given(st.lists(st.tuples(st.sampled_from(["add", "pin", "unpin", "limit"]), st.integers(0, 5), st.integers(0, 9))))
def test_no_more_is_kept_than_is_allowed_or_held(events: list[tuple[str, int, int]]) -> None:
    lru = PinnedLru[int](10)
    kept: dict[int, int] = {}
    held: list[int] = []
    for kind, key, size in events:
        gone: list[int] = []
        if kind == "add":
            kept[key] = size
            gone = lru.add(key, size)
        elif kind == "pin" and key in kept:
            lru.pin(key)
            held.append(key)
        elif kind == "unpin" and key in held:
            lru.unpin(key)
            held.remove(key)
            gone = lru.fit()
        elif kind == "limit":
            lru.limit = size
            gone = lru.fit()
        assert not set(gone) & set(held)
        for one in gone:
            del kept[one]
        assert lru.size == sum(kept.values())
        assert lru.size <= max(lru.limit, sum(kept[one] for one in set(held)))
        assert {one for one in range(6) if one in lru} == set(kept)
