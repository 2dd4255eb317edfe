"""When small calls are sent, and together with how many others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.batch_queue import BatchQueuePolicy, calls_to_send

POLICY = BatchQueuePolicy(max_batch_size=4)


def test_those_who_came_together_go_together() -> None:
    assert calls_to_send(3, 0, POLICY) == 3


def test_nobody_waiting_is_nothing_to_send() -> None:
    assert calls_to_send(0, 0, POLICY) == 0


def test_those_who_come_while_a_message_is_under_way_gather() -> None:
    assert calls_to_send(1, 1, POLICY) == calls_to_send(3, 1, POLICY) == 0


def test_a_full_message_does_not_wait() -> None:
    assert calls_to_send(4, 1, POLICY) == calls_to_send(9, 2, POLICY) == 4


def test_a_message_has_no_more_than_fit() -> None:
    assert calls_to_send(100, 0, POLICY) == 4


@given(st.integers(1, 1000), st.integers(0, 5))
def test_with_messages_of_one_nobody_waits_for_another(waiting: int, under_way: int) -> None:
    assert calls_to_send(waiting, under_way, BatchQueuePolicy(max_batch_size=1)) == 1


@given(st.integers(0, 1000), st.integers(0, 5), st.integers(1, 100))
def test_all_are_sent_once_messages_are_answered(waiting: int, under_way: int, size: int) -> None:
    policy = BatchQueuePolicy(max_batch_size=size)
    while waiting:
        count = calls_to_send(waiting, under_way, policy)
        assert count <= size
        if count:
            waiting, under_way = waiting - count, under_way + 1
        else:
            assert under_way > 0  # else nothing would ever wake them
            under_way -= 1


@pytest.mark.parametrize("wrong", [{"max_batch_size": 0}, {"max_text_chars": -1}])
def test_a_policy_outside_its_limits_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        BatchQueuePolicy(**wrong)
