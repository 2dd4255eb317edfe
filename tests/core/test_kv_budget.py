from mlx_serving.core.kv_budget import KvBudget, ReplyLength, extension


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
