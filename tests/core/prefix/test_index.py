"""What is found is what was kept, never more than is allowed, and what is worth least goes first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.core.prefix.entries import Entry
from mlx_serving.core.prefix.index import PrefixCachePolicy, PrefixIndex
from mlx_serving.core.prefix.token_chain import TokenChain, common, root_key

BLOCK = 16
SIZE = 10  # bytes a token


def chain(text: str, owner: str = "m", salt: str = "", fingerprint: str = "f") -> TokenChain:
    return TokenChain(owner, root_key(fingerprint, salt), [ord(letter) for letter in text], BLOCK)


def keep(
    index: PrefixIndex, text: str, now: float = 0.0, *, limit: float = 1e9, tail: bool = True, owner: str = "m"
) -> list[Entry]:
    found = chain(text, owner)
    return index.insert_blocks(found, len(found), tail=tail, token_bytes=SIZE, limit=limit, now=now).gone


def found(index: PrefixIndex, text: str, *, states: bool = False) -> int:
    return index.match(chain(text), states=states).tokens


def use(index: PrefixIndex, text: str, now: float) -> None:
    index.use(index.match(chain(text), states=False), len(text), now)


A, B, C = "a" * BLOCK, "b" * BLOCK, "c" * BLOCK


# -- blocks


def test_all_but_the_last_token_of_what_was_kept_is_found() -> None:
    index = PrefixIndex()
    keep(index, A + B + "cc")
    assert found(index, A + B + "cc") == 33
    assert found(index, A + B + "cc!") == 34
    assert found(index, A + B + "cc and more") == 34
    assert found(index, A + B) == 31
    assert found(index, A) == 15
    assert found(index, "a") == 0
    assert found(index, "b") == 0


def test_of_the_last_block_as_much_is_found_as_is_the_same() -> None:
    index = PrefixIndex()
    keep(index, A + B + C)
    keep(index, A + "bbbb" + "d" * 12)
    match = index.match(chain(A + "bbbbb" + "d" * 12), states=False)
    assert match.tokens == 21
    assert [entry.end for entry in match.entries] == [16, 32]


def test_without_a_tail_whole_blocks_are_kept_only() -> None:
    index = PrefixIndex()
    keep(index, A + "bb", tail=False)
    assert (found(index, A + "bb!"), index.size) == (16, 16 * SIZE)


def test_what_sequences_have_in_common_is_kept_once() -> None:
    index = PrefixIndex()
    keep(index, A + B)
    keep(index, A + C)
    assert (len(index), index.size) == (3, 48 * SIZE)


def test_a_longer_block_takes_the_place_of_a_shorter_one_that_it_begins_with() -> None:
    index = PrefixIndex()
    keep(index, A + "bb")
    use(index, A + "bb!", 1.0)
    gone = keep(index, A + B)
    assert [entry.end for entry in gone] == [18]
    assert (len(index), found(index, A + B + "!")) == (2, 32)


def test_a_tail_that_is_the_beginning_of_a_kept_block_is_not_kept_again() -> None:
    index = PrefixIndex()
    keep(index, A + B)
    keep(index, A + "bbb")
    assert len(index) == 2


def test_another_tenant_finds_nothing() -> None:
    index = PrefixIndex()
    keep(index, A)
    assert index.match(chain(A, salt="other"), states=False).tokens == 0


# -- states


def test_a_state_is_found_by_those_who_begin_with_all_of_its_tokens() -> None:
    index = PrefixIndex()
    for end in (10, 16, 40):
        index.insert_state(chain(A + B + C), end, size=7, limit=100, now=0.0)
    assert [found(index, text, states=True) for text in (A + B + C, A + B, A + "x", "a" * 12, "a" * 10, "ab")] == [
        40,
        16,
        16,
        10,
        0,
        0,
    ]
    assert found(index, A + B + C) == 0  # of another kind
    assert (len(index), index.size) == (3, 21)


def test_a_state_is_kept_once_and_only_where_there_is_room() -> None:
    index = PrefixIndex()
    assert len(index.insert_state(chain(A), 16, size=7, limit=10, now=0.0).added) == 1
    assert not index.insert_state(chain(A), 16, size=7, limit=10, now=1.0).added
    assert not index.insert_state(chain(B), 16, size=11, limit=10, now=1.0).added
    assert len(index.insert_state(chain(B), 16, size=7, limit=10, now=2.0).gone) == 1
    assert (found(index, A + "!", states=True), found(index, B + "!", states=True)) == (0, 16)


# -- looking up what is kept


def test_a_store_can_ask_for_what_is_kept() -> None:
    index = PrefixIndex()
    keep(index, A + B + "ccc")
    asked = chain(A + B + "cc")
    assert [entry.end for entry in index.blocks(asked, 16, 34) or []] == [32, 35]
    assert index.blocks(chain(A + C), 0, 32) is None
    assert index.state(asked, 16) is None


# -- why no more


def why(index: PrefixIndex, text: str, *, states: bool = False) -> str | None:
    return index.reason(chain(text), found(index, text, states=states), states=states)


def test_it_is_told_why_no_more_is_found() -> None:
    index = PrefixIndex()

    def reason(text: str, *, states: bool = False) -> str | None:
        return why(index, text, states=states)

    assert reason(A) == "absent"
    keep(index, A + B)
    assert reason(A) is None
    assert reason(A + B + "!") is None
    assert reason(A + B + C) == "absent"
    assert reason(A + "bx" + C) == "differs"
    assert reason("x") is None  # there is nothing of it to be found
    assert reason("xx") == "differs"
    index.evict(16 * SIZE)
    assert reason(A + B + C) == "evicted"
    index.insert_state(chain(A + C), 20, size=1, limit=1000, now=0.0)
    assert reason(A + C, states=True) == "absent"
    assert reason(A + "x" + C, states=True) == "differs"


def test_of_what_had_to_go_the_latest_is_remembered() -> None:
    index = PrefixIndex()
    texts = [f"{number:016}" for number in range(4100)]
    for text in texts:
        keep(index, text)
    index.evict(0)
    assert [why(index, text + "!") for text in (texts[0], texts[-1])] == ["absent", "evicted"]


def test_a_block_that_had_to_go_is_remembered_if_all_of_it_or_of_the_rest_was_the_same() -> None:
    index = PrefixIndex()
    keep(index, A + "bbbb its answer")
    index.evict(16 * SIZE)
    assert why(index, A + "bbbb its") == "evicted"
    assert why(index, A + "bbbb its answer, and more") == "evicted"
    assert why(index, A + "bbbb its own") == "absent"
    assert why(index, A + "xxxx") == "absent"
    keep(index, A + "bbbb another")
    assert why(index, A + "bbbb a") is None
    assert why(index, A + "bbbb its") == "evicted"
    assert why(index, A + "bbbb its own") == "differs"
    keep(index, A + "bbbb its answer")
    assert why(index, A + "bbbb its answer, and more") == "absent"


def test_a_state_that_had_to_go_is_remembered_by_those_who_begin_with_all_of_it() -> None:
    index = PrefixIndex()

    def state(text: str, end: int) -> None:
        index.insert_state(chain(text), end, size=1, limit=1000, now=0.0)

    state(A + B + C, 40)
    state(A + B + C, 20)
    index.evict(0)
    assert why(index, A + B + C, states=True) == "evicted"
    assert why(index, A + B, states=True) == "evicted"
    assert why(index, A + "bbbb", states=True) == "absent"  # the last token is computed in any case
    assert why(index, A + "bbbx" + B, states=True) == "absent"
    state(A + B + C, 20)
    assert why(index, A + B, states=True) == "absent"
    assert why(index, A + B + C, states=True) == "evicted"
    state(A + B + C, 40)
    assert why(index, A + B + C, states=True) == "absent"


def test_uses_are_counted() -> None:
    index = PrefixIndex()
    keep(index, A + B)
    use(index, A + B + C, 1.0)
    use(index, C, 2.0)
    counts = index.counts
    assert (counts.hits, counts.misses, counts.hit_tokens, counts.missed_tokens) == (1, 1, 32, 32)
    assert counts.evictions == 0
    index.evict(0)
    assert counts.evictions == 2


# -- eviction


def test_what_was_used_least_lately_goes_first() -> None:
    index = PrefixIndex()
    for now, text in enumerate((A, B, C)):
        keep(index, text, now)
    keep(index, A, 3.0)
    assert [chr(entry.token_ids[0]) for entry in index.evict(16 * SIZE)] == ["b", "c"]


def test_what_is_used_often_stays_longer() -> None:
    index = PrefixIndex()
    keep(index, A)
    for _ in range(3):
        use(index, A + "!", 1.0)
    keep(index, B, 60.0)
    assert [chr(entry.token_ids[0]) for entry in index.evict(16 * SIZE)] == ["b"]
    keep(index, C, 1000.0)
    assert [chr(entry.token_ids[0]) for entry in index.evict(16 * SIZE)] == ["a"]


def test_no_block_goes_before_those_behind_it() -> None:
    index = PrefixIndex()
    keep(index, A + B + C, 0.0)
    assert [entry.end for entry in index.evict(0)] == [48, 32, 16]
    assert (len(index), index.size) == (0, 0)


def test_room_for_a_block_is_not_made_by_what_it_needs() -> None:
    index = PrefixIndex()
    keep(index, A, 0.0)
    keep(index, C, 1.0)
    keep(index, A + B, 2.0, limit=32 * SIZE)
    assert (found(index, A + B + "!"), found(index, C + "!")) == (32, 0)
    keep(index, A + B + C, 3.0, limit=32 * SIZE)
    assert found(index, A + B + C) == 32
    assert [entry.end for entry in index.evict(0)] == [32, 16]  # it may go when nothing needs it


def test_a_model_that_goes_takes_everything_with_it_also_what_others_need() -> None:
    index = PrefixIndex()
    keep(index, A + B)
    keep(index, A + B + C, owner="another name of it")
    keep(index, C, owner="another name of it")
    index.insert_state(chain(A), 10, size=5, limit=1e9, now=0.0)
    assert sorted(entry.end for entry in index.drop("m")) == [10, 16, 32, 48]
    assert index.size == 16 * SIZE
    assert [entry.end for entry in index.evict(0)] == [16]


def test_looking_at_the_same_again_and_again_takes_no_more_memory() -> None:
    index = PrefixIndex()
    keep(index, A)
    for now in range(1000):
        use(index, A + "!", float(now))
    order: object = vars(index)["_leaving"]
    filed: list[object] = vars(order)["_heap"]
    assert len(filed) < 100


@pytest.mark.parametrize(("name", "wrong"), [("memory_bytes", -1), ("block_tokens", 15), ("block_tokens", 257)])
def test_a_policy_names_what_is_wrong(name: str, wrong: int) -> None:
    with pytest.raises(ValueError, match=name):
        replace(PrefixCachePolicy(), **{name: wrong})


# -- any history

TEXTS = st.text("ab", min_size=1, max_size=60)
EVENTS = st.lists(st.tuples(st.sampled_from(["keep", "keep", "keep whole", "use", "evict"]), TEXTS), max_size=40)


def longest(index: PrefixIndex, text: str) -> int:
    """What is found by looking at everything that is kept."""
    tokens = tuple(ord(letter) for letter in text)
    best = 0
    for entry in index:
        prefix: list[int] = []
        one: Entry | None = entry
        while one is not None:
            prefix[:0] = one.token_ids
            one = one.parent
        best = max(best, common(tokens, prefix))
    return min(best, len(tokens) - 1)


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.integers(0, 1500))
def test_the_longest_is_found_and_no_bound_is_exceeded(events: list[tuple[str, str]], limit: int) -> None:
    index = PrefixIndex()
    for now, (kind, text) in enumerate(events):
        if kind == "use":
            use(index, text, float(now))
        elif kind == "evict":
            index.evict(limit / 2)
            assert index.size <= limit / 2
        else:
            keep(index, text, float(now), limit=limit, tail=kind == "keep whole")
        assert index.size == sum(entry.size for entry in index) <= limit
        assert all(entry.parent is None or entry.parent.kept for entry in index)
        for asked in {text, text + "a", "ab" * 20}:
            assert found(index, asked) == longest(index, asked)
    index.evict(0)
    assert (len(index), index.size) == (0, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.integers(1, 20)), max_size=20), st.integers(0, 100), TEXTS)
def test_the_longest_state_is_found(kept: list[tuple[str, int]], limit: int, asked: str) -> None:
    index = PrefixIndex()
    for now, (text, size) in enumerate(kept):
        index.insert_state(chain(text), len(text), size=size, limit=limit, now=float(now))
        assert index.size == sum(entry.size for entry in index) <= limit
    there = {text for text, _ in kept if index.state(chain(text), len(text)) is not None}
    naive = max((len(text) for text in there if asked.startswith(text) and len(text) < len(asked)), default=0)
    assert found(index, asked, states=True) == naive
