import pytest

from mlx_serving.core.schedule.kv_budget import KvBudget, ReplyLength, extension
from mlx_serving.errors import ContextLengthExceeded, EngineError, Overloaded


def test_max_tokens_are_expected_while_nothing_is_known() -> None:
    assert ReplyLength().expected(500) == 500


def test_the_first_reply_is_the_mean_and_later_ones_move_it() -> None:
    replies = ReplyLength()
    replies.learn(100)
    assert replies.expected(500) == 100
    replies.learn(180)
    assert replies.expected(500) == 110


def test_no_more_than_max_tokens_is_expected() -> None:
    replies = ReplyLength()
    replies.learn(100)
    assert replies.expected(20) == 20


def test_an_extension_grows_with_the_reply() -> None:
    assert extension(1) == 64
    assert extension(1000) == 500


def test_a_budget_without_a_limit_has_room_for_everything() -> None:
    budget = KvBudget(None)
    budget.held = budget.reserved = 10**15
    assert budget.room > 10**15
    assert not budget.overcommitted


def test_a_budget_is_overcommitted_when_more_is_reserved_than_there_is() -> None:
    budget = KvBudget(100)
    budget.held, budget.reserved = 60, 100
    assert budget.room == 40
    assert not budget.overcommitted
    budget.reserved = 101
    assert budget.overcommitted


def test_models_that_go_give_a_part_of_their_bytes_up_to_what_is_configured() -> None:
    budget = KvBudget(100)
    assert budget.weights_for(150) == 0  # nothing would help
    budget.relief, budget.most = 0.5, 180
    assert budget.weights_for(100) == 0
    assert budget.weights_for(150) == 100
    assert budget.weights_for(181) == 0


@pytest.mark.parametrize(("tokens", "error"), [(50, Overloaded), (100, ContextLengthExceeded)])
def test_who_is_refused_is_told_how_much_models_would_have_to_give(tokens: int, error: type[EngineError]) -> None:
    budget = KvBudget(100)
    budget.ceiling = 600
    with pytest.raises(error) as refused:
        budget.require(tokens, 11, 10)
    assert "lacking_bytes" not in refused.value.details
    budget.relief = 1.0
    with pytest.raises(error) as refused:
        budget.require(tokens, 11, 10)
    assert refused.value.details["lacking_bytes"] == (tokens + 10) * 10 - 100
