from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.schedule.prefill_passes import passes


def cost(groups: list[list[int]], lengths: list[int], pass_tokens: int) -> int:
    return sum(pass_tokens + len(group) * max(lengths[index] for index in group) for group in groups)


def test_prompts_of_one_length_share_a_pass() -> None:
    assert passes([64] * 5, 24) == [[0, 1, 2, 3, 4]]


def test_a_short_prompt_is_not_padded_to_a_long_one() -> None:
    assert passes([5, 500, 7], 24) == [[1], [2, 0]]


def test_padding_is_worth_what_a_pass_costs() -> None:
    assert passes([40, 17], 24) == [[0, 1]]
    assert passes([40, 15], 24) == [[0], [1]]


def test_many_rows_are_not_padded_where_few_would_be() -> None:
    assert passes([40, 30], 24) == [[0, 1]]
    assert passes([40, *[30] * 8], 24) == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]


def test_no_prompts_need_no_pass() -> None:
    assert passes([], 24) == []


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=8), pass_tokens=st.integers(0, 60))
def test_every_prompt_is_in_one_pass_and_no_other_cut_of_the_order_costs_less(
    lengths: list[int], pass_tokens: int
) -> None:
    groups = passes(lengths, pass_tokens)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    inner = range(1, len(order))
    for count in range(len(order)):
        for cuts in combinations(inner, count):
            bounds = [0, *cuts, len(order)]
            other = [order[start:end] for start, end in pairwise(bounds)]
            assert cost(groups, lengths, pass_tokens) <= cost(other, lengths, pass_tokens)
