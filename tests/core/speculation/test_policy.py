from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_serving.core.speculation.policy import READING_PART, Drafting, Hope, SpeculationCounts, draft_width

hopes = st.builds(Hope, st.floats(0, 1), st.integers(0, 8))


def rate(hopes: list[Hope], rows: int, width: int, pass_tokens: float, draft_tokens: float) -> float:
    """Tokens in the time of one token's computation, with drafts of so many tokens."""
    expected = sum(hope.acceptance**place for hope in hopes for place in range(1, min(width, hope.tokens) + 1))
    reading = READING_PART * pass_tokens if width else 0
    return (rows + expected) / (pass_tokens + reading + rows * (1 + width) + draft_tokens * width)


@settings(deadline=None)
@given(
    given_hopes=st.lists(hopes, max_size=6),
    others=st.integers(0, 6),
    pass_tokens=st.floats(1, 300),
    draft_tokens=st.floats(0, 50),
)
def test_no_other_width_gives_more_tokens(
    given_hopes: list[Hope], others: int, pass_tokens: float, draft_tokens: float
) -> None:
    rows = len(given_hopes) + others
    if rows == 0:
        return
    chosen = draft_width(given_hopes, rows, pass_tokens, draft_tokens)
    assert 0 <= chosen <= max((hope.tokens for hope in given_hopes), default=0)
    best = rate(given_hopes, rows, chosen, pass_tokens, draft_tokens)
    for width in range(9):
        assert rate(given_hopes, rows, width, pass_tokens, draft_tokens) <= best * (1 + 1e-9)


def test_a_row_alone_drafts_while_it_pays_and_one_of_a_crowd_does_not() -> None:
    alone = draft_width([Hope(0.9, 10)], 1, 24)
    assert alone == 10
    assert draft_width([Hope(0.3, 10)], 1, 24) < alone
    assert draft_width([Hope(0.05, 10)], 1, 24) == 0
    assert draft_width([Hope(0.9, 10)], 16, 24) == 0
    assert draft_width([Hope(0.9, 10)] * 16, 16, 24) > 0


def test_what_drafting_costs_makes_drafts_shorter() -> None:
    dear, cheap = draft_width([Hope(0.8, 10)], 1, 24, 12), draft_width([Hope(0.8, 10)], 1, 24, 1)
    assert dear < cheap
    assert draft_width([Hope(0.8, 10)], 1, 24, 24) == 0


def test_a_sequence_rests_when_its_drafts_are_poor_and_longer_each_time() -> None:
    drafting = Drafting("ngram")
    rested: list[int] = []
    position = 0
    for _ in range(200):
        position += 1
        if drafting.is_eager(position):
            before = drafting.rests
            drafting.checked(4, 0, position)
            if drafting.rests > before:
                rested.append(drafting.resumes_at - position)
                position = drafting.resumes_at
    assert rested[:8] == [16, 32, 64, 128, 256, 512, 1024, 1024]


def test_one_on_trial_that_does_well_forgets_its_rests() -> None:
    drafting = Drafting("ngram")
    while not drafting.rests:
        drafting.missed(0)
    assert not drafting.is_eager(15)
    assert drafting.is_eager(16)
    drafting.checked(10, 10, 16)
    while drafting.rests == 1:
        drafting.missed(20)
    assert drafting.resumes_at == 20 + 16


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 10)), max_size=60))
def test_counts_add_up_and_the_estimate_stays_a_probability(checks: list[tuple[int, int]]) -> None:
    drafting = Drafting("draft")
    for position, (drafted, right) in enumerate(checks):
        drafting.checked(drafted, min(drafted, right), position)
        assert 0 <= drafting.acceptance <= 1
        assert drafting.resumes_at <= position + 1024
    assert drafting.checks == len(checks)
    assert drafting.drafted == sum(drafted for drafted, _ in checks)
    assert drafting.accepted == sum(min(pair) for pair in checks)


@pytest.mark.parametrize("right", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_share_of_steps_that_try_follows_the_acceptance(right: float) -> None:
    """Steady acceptance: who is mostly wrong hardly ever tries, who is mostly right never stops."""
    drafting, tries, debt, position = Drafting("ngram"), 0, 0.0, 0
    for position in range(4000):
        if drafting.is_eager(position):
            tries += 1
            debt += right
            is_right = debt >= 1
            debt -= is_right
            drafting.checked(1, int(is_right), position)
    assert tries < 100 if right <= 0.2 else tries > 3000


def test_a_long_text_is_taken_in_by_parts() -> None:
    prompt, answer = [1, 2, 3, 4] * 2500, [1, 2, 3]
    drafting = Drafting("ngram")
    said = [drafting.look_up(prompt, answer, 2) for _ in range(4)]
    assert said == [[], [], [4, 1], [4, 1]]
    assert drafting.look_up(prompt, [*answer, 4, 1], 3) == [2, 3, 4]
    assert drafting.look_up(prompt, [*answer, 4, 1], 0) == []


def test_of_a_very_long_prompt_the_end_is_taken_in() -> None:
    far, near = [1, 2, 3, 90], [5, 6, 7, 91]
    prompt = [*far, *range(100, 50_000), *near, *range(60_000, 70_000)]
    drafting = Drafting("ngram")
    for _ in range(20):
        drafting.look_up(prompt, [], 1)
    assert drafting.look_up(prompt, [5, 6, 7], 1) == [91]
    assert drafting.look_up(prompt, [5, 6, 7, 1, 2, 3], 1) == []
    assert len(drafting.index) < 33_000


@settings(deadline=None)
@given(
    text=st.lists(st.integers(0, 2), min_size=2, max_size=40),
    cuts=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_prompt_and_answer_are_one_text(text: list[int], cuts: tuple[int, int]) -> None:
    first, second = sorted(min(cut, len(text)) for cut in cuts)
    drafting, whole = Drafting("ngram"), Drafting("ngram")
    drafting.look_up(text[:first], text[first:second], 3)
    assert drafting.look_up(text[:first], text[first:], 3) == whole.look_up(text, [], 3)


def test_who_has_lost_its_draft_model_says_so_unless_it_has_drafted() -> None:
    new, old = Drafting("draft"), Drafting("draft")
    old.checked(3, 1, 4)
    for drafting in (new, old):
        drafting.lose()
        assert not drafting.is_eager(1000)
    assert (new.outcome, old.outcome) == ("draft_lost", "draft")


def test_what_cannot_be_drafted_never_is() -> None:
    assert not Drafting("structured", is_possible=False).is_eager(0)


def test_counts_of_models_are_added() -> None:
    assert SpeculationCounts(1, 2, 3, 4, 5) + SpeculationCounts(5, 4, 3, 2, 1) == SpeculationCounts(6, 6, 6, 6, 6)


def test_what_an_answer_is_thought_to_be_is_looked_up_as_if_it_had_been_said() -> None:
    drafting = Drafting.by_ngrams(4, [10, 11, 12, 13, 14, 15, 16])
    assert drafting.look_up([1, 2], [], 4) == []
    assert drafting.look_up([1, 2], [10, 11], 4) == []
    assert drafting.look_up([1, 2], [10, 11, 12], 4) == [13, 14, 15, 16]
    assert drafting.look_up([1, 2], [10, 11, 12, 13, 9], 4) == []
    assert drafting.look_up([1, 2], [10, 11, 12, 13, 9, 12, 13, 14], 2) == [15, 16]
    without = Drafting.by_ngrams(4)
    assert (without.outcome, without.most, without.foreign, len(without.index)) == ("ngram", 4, 0, 0)
