"""After so many tokens of reasoning its end is forced."""

from __future__ import annotations

from mlx_serving.core.reasoning_budget import ThoughtBudget

START, END = [1], [2, 3]


def budget(tokens: int, *, thinking: bool = True) -> ThoughtBudget:
    return ThoughtBudget(tokens, START, END, [*END, 4], thinking=thinking)


def write(thought: ThoughtBudget, tokens: list[int]) -> list[int | None]:
    return [thought.see(tokens[:count]) for count in range(len(tokens) + 1)]


def test_the_end_is_forced_token_by_token() -> None:
    thought = budget(2)
    assert write(thought, [9, 9, 2, 3, 4, 9]) == [None, None, 2, 3, 4, None, None]
    assert thought.is_over


def test_no_token_may_be_thought_with_a_budget_of_none() -> None:
    assert budget(0).see([]) == 2


def test_reasoning_that_ends_by_itself_is_left_alone() -> None:
    thought = budget(5)
    assert set(write(thought, [9, 2, 3, 9, 9, 9, 9, 9])) == {None}
    assert thought.is_over


def test_it_counts_from_where_the_reasoning_begins() -> None:
    assert write(budget(1, thinking=False), [7, 1, 9]) == [None, None, None, 2]


def test_an_answer_without_reasoning_is_not_followed_for_long() -> None:
    thought = budget(1, thinking=False)
    assert thought.see([7] * 8) is None
    assert thought.is_over


def test_what_could_not_be_forced_is_tried_again() -> None:
    assert write(budget(1), [9, 9, 2, 9, 2, 3, 4]) == [None, 2, 2, 3, 2, 3, 4, None]


def test_the_end_may_be_spelled_with_other_tokens() -> None:
    words = {1: "<think>", 2: "</think", 3: ">", 5: "</th", 6: "ink", 7: ">\n", 9: "a"}

    def spelled(tokens: int, *, thinking: bool = True) -> ThoughtBudget:
        return ThoughtBudget(
            tokens,
            START,
            END,
            END,
            thinking=thinking,
            end_text="</think>",
            decode=lambda ids: "".join(words[each] for each in ids),
        )

    assert set(write(spelled(9), [9, 5, 6, 7, *[9] * 9])) == {None}
    assert set(write(spelled(9, thinking=False), [5, 6, 1, 7, 5, 6, 7, *[9] * 9])) == {None}
    assert write(spelled(3), [9, 5, 6, 7, 9]) == [None, None, None, 2, None, None]


def test_it_is_the_same_after_an_interruption() -> None:
    assert budget(2).see([9, 9, 2]) == 3
