from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.core.speculation.ngram_index import CANDIDATES, MAX_MATCH, MIN_MATCH, NgramIndex

FEW_TOKENS = st.lists(st.integers(0, 3), max_size=60)


def reference(text: Sequence[int], most: int) -> list[int]:
    """The same by comparing the end of the text with every place in it."""
    pairs = [end for end in range(1, len(text) - 1) if list(text[end - 1 : end + 1]) == list(text[-2:])]
    best, longest = None, MIN_MATCH - 1
    for end in pairs[::-1][:CANDIDATES]:
        length = max(n for n in range(1, MAX_MATCH + 1) if n <= end + 1 and text[end + 1 - n : end + 1] == text[-n:])
        if length > longest:
            best, longest = end + 1, length
    if best is None:
        return []
    going_on = list(text)
    for _ in range(most):
        going_on.append(going_on[best + len(going_on) - len(text)])
    return going_on[len(text) :]


@settings(deadline=None)
@given(text=FEW_TOKENS, most=st.integers(1, 12), cut=st.integers(0, 60))
def test_it_finds_what_comparing_with_every_place_finds(text: list[int], most: int, cut: int) -> None:
    index = NgramIndex(text[:cut])
    index.extend(text[cut:])
    assert len(index) == len(text)
    assert index.propose(most) == reference(text, most)


@settings(deadline=None)
@given(text=FEW_TOKENS)
def test_asking_changes_nothing(text: list[int]) -> None:
    asked, silent = NgramIndex(), NgramIndex()
    for token in text:
        asked.extend([token])
        asked.propose(5)
        silent.extend([token])
    assert asked.propose(9) == silent.propose(9)


def test_a_text_that_repeats_itself_is_thought_to_go_on() -> None:
    assert NgramIndex([7, 1, 2, 3, 1, 2, 3]).propose(5) == [1, 2, 3, 1, 2]
    assert NgramIndex([4, 4, 4, 4, 4]).propose(3) == [4, 4, 4]


def test_the_longest_match_is_taken_and_of_equal_ones_the_latest() -> None:
    assert NgramIndex([9, 1, 2, 3, 50, 0, 1, 2, 3, 60, 9, 1, 2, 3]).propose(1) == [50]
    assert NgramIndex([1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3]).propose(1) == [60]


def test_nothing_is_said_of_what_is_new_or_too_short() -> None:
    assert NgramIndex().propose(3) == []
    assert NgramIndex([1]).propose(3) == []
    assert NgramIndex([5, 1, 2, 6, 1, 2]).propose(3) == []
    assert NgramIndex(range(20)).propose(3) == []


def test_only_the_latest_places_are_compared() -> None:
    pairs = [token for number in range(CANDIDATES) for token in (1, 2, 100 + number, 200 + number)]
    assert NgramIndex([8, 1, 2, 50, *pairs[4:], 8, 1, 2]).propose(1) == [50]
    assert NgramIndex([8, 1, 2, 50, *pairs, 8, 1, 2]).propose(1) == []


def test_the_largest_ids_are_told_apart() -> None:
    top = 2**31 - 1
    assert NgramIndex([top, 0, top, 5, top, 0, top]).propose(1) == [5]
    assert NgramIndex([top, 1, 0, 5, top, 0, 0]).propose(1) == []
