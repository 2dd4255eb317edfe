import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.request_queue import RequestQueue
from mlx_serving.core.schedule.scheduled_sequence import Caller, Lane, Sequence

from .schedule.sequences import lane, sequence


def order(queue: RequestQueue, now: float = 0.0) -> list[str]:
    ids: list[str] = []
    while (claim := queue.first(now)) is not None:
        queue.remove(claim[0])
        ids.append(claim[0].id)
    return ids


def filled(*sequences: Sequence) -> RequestQueue:
    queue = RequestQueue(ageing_s=10.0)
    for one in sequences:
        queue.push(one)
    return queue


def test_the_highest_priority_is_first() -> None:
    queue = filled(
        sequence("b", priority="background"),
        sequence("l", priority="low"),
        sequence("n"),
        sequence("h", priority="high"),
        sequence("c", priority="critical"),
    )
    assert order(queue) == ["c", "h", "n", "l", "b"]


@pytest.mark.parametrize(("arrived", "expected"), [(9.9, ["new", "old"]), (10.1, ["old", "new"])])
def test_waiting_raises_by_one_priority_per_ageing_time(arrived: float, expected: list[str]) -> None:
    old = sequence("old", priority="low", arrived=0.0, caller=Caller("a"))
    new = sequence("new", arrived=arrived, caller=Caller("b"))
    assert order(filled(old, new), now=12.0) == expected


def test_priorities_keep_their_distance_however_long_all_wait() -> None:
    old = sequence("background", priority="background", arrived=0.0)
    queue = filled(old, sequence("normal", arrived=15.0), sequence("high", priority="high", arrived=24.0))
    assert order(queue, now=1000.0) == ["high", "normal", "background"]


def test_a_preemption_is_worth_as_much_as_an_ageing_time() -> None:
    queue = filled(sequence("a", arrived=0.0), sequence("b", priority="low", arrived=1.0, boosts=2))
    assert order(queue) == ["b", "a"]


def test_the_rank_that_waiting_has_earned_comes_along() -> None:
    queue = filled(sequence("a", priority="low", arrived=100.0))
    ranks = [queue.first(now) for now in (100.0, 110.0, 125.0, 999.0)]
    assert [claim and claim[1] for claim in ranks] == [3, 2, 1, 0]


def test_the_place_that_an_old_request_earns_goes_round_within_its_priority() -> None:
    flood = [sequence(f"flood {number}", caller=Caller("greedy", served=900)) for number in range(3)]
    modest = sequence("modest", caller=Caller("modest"), arrived=29.0)
    urgent = sequence("urgent", priority="critical", arrived=30.0)
    queue = filled(*flood, modest, urgent)
    assert queue.first(30.0) == (modest, 0)


def test_ageing_gives_no_claim_on_the_place_of_others() -> None:
    old = sequence("old", priority="low")
    new = sequence("new", priority="high", arrived=100.0)
    queue = filled(old, new)
    assert queue.first(200.0) == (old, 0)
    assert queue.most_urgent() is new
    assert filled().most_urgent() is None


def test_within_a_priority_the_model_with_fewest_slots_for_its_weight_is_first() -> None:
    small, large = lane("small"), lane("large", weight=4.0)
    for number in range(2):
        small.enter(sequence(f"s{number}"))
        large.enter(sequence(f"l{number}"))
    queue = filled(sequence("a", of=small), sequence("b", of=large, arrived=1.0))
    assert order(queue) == ["b", "a"]


def test_within_a_model_the_caller_who_was_served_least_is_first() -> None:
    queue = filled(
        sequence("a", caller=Caller("a", served=100)), sequence("b", caller=Caller("b", served=99), arrived=1.0)
    )
    assert order(queue) == ["b", "a"]


def test_a_caller_is_served_in_the_order_of_arrival() -> None:
    caller = Caller("a")
    queue = filled(*(sequence(str(number), caller=caller, arrived=float(number)) for number in range(5)))
    assert order(queue) == ["0", "1", "2", "3", "4"]


def known(second_tokens: int) -> Lane:
    """A model that computes so many tokens of a prompt in a second."""
    model = lane()
    model.cost.base_s = 1 / second_tokens
    return model


def test_a_short_prompt_overtakes_a_long_one_that_has_not_waited_long() -> None:
    model, caller = known(1000), Caller("a")
    long = sequence("long", of=model, caller=caller, prompt=500)  # half a second
    soon = sequence("soon", of=model, caller=caller, prompt=10, arrived=3.9)
    late = sequence("late", of=model, caller=caller, prompt=10, arrived=4.1)
    assert order(filled(long, soon, late)) == ["soon", "long", "late"]


def test_of_which_much_is_kept_is_a_short_prompt() -> None:
    model, caller = known(1000), Caller("a")
    queue = RequestQueue(ageing_s=10.0)
    queue.push(sequence("new", of=model, caller=caller, prompt=500))
    queue.push(sequence("goes on", of=model, caller=caller, prompt=1000, arrived=1.0), 950)
    assert order(queue) == ["goes on", "new"]


def test_a_long_prompt_keeps_the_claim_of_its_arrival_on_a_place_for_its_priority() -> None:
    model, caller = known(1), Caller("a")
    long = sequence("long", of=model, caller=caller, priority="low", prompt=100)
    short = sequence("short", of=model, caller=caller, priority="low", prompt=1, arrived=19.0)
    urgent = sequence("urgent", of=model, caller=Caller("b"), arrived=19.0)
    assert order(filled(long, urgent, short), now=20.0) == ["long", "urgent", "short"]


@given(
    prompts=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 100_000), st.floats(0, 1)), min_size=1, max_size=20),
    again=st.integers(0, 3),
)
def test_nobody_waits_for_who_came_an_ageing_time_later(prompts: list[tuple[float, int, float]], again: int) -> None:
    model, caller = known(1000), Caller("a")
    queue = RequestQueue(ageing_s=10.0)
    waiting = [
        sequence(str(number), of=model, caller=caller, prompt=prompt, arrived=arrived)
        for number, (arrived, prompt, _) in enumerate(prompts)
    ]
    for one, (_, prompt, kept) in zip(waiting, prompts, strict=True):
        queue.push(one, int(kept * (prompt - 1)))
    for one in waiting[:again]:
        queue.remove(one)
        queue.push_front(one)
    served = [waiting[int(name)] for name in order(queue, now=100.0)]
    had_turns = waiting[:again][::-1]
    assert served[: len(had_turns)] == had_turns
    rest = served[len(had_turns) :]
    assert all(one.arrived < later.arrived + 10.0 for place, one in enumerate(rest) for later in rest[place + 1 :])
    assert (queue.depth, queue.work) == (0, 0)


def test_callers_served_alike_take_turns_by_arrival() -> None:
    queue = filled(sequence("a", caller=Caller("a"), arrived=2.0), sequence("b", caller=Caller("b"), arrived=1.0))
    assert order(queue) == ["b", "a"]


def test_who_had_a_turn_before_goes_first() -> None:
    caller = Caller("a")
    queue = filled(sequence("1", caller=caller), sequence("2", caller=caller))
    queue.push_front(sequence("0", caller=caller))
    assert order(queue) == ["0", "1", "2"]


@pytest.mark.parametrize("gone", ["0", "1", "2"])
def test_anybody_can_leave(gone: str) -> None:
    waiting = {name: sequence(name) for name in "012"}
    queue = filled(*waiting.values())
    queue.remove(waiting[gone])
    assert queue.depth == 2
    assert gone not in order(queue)
    assert (queue.depth, queue.work) == (0, 0)


def test_work_is_what_is_left_of_prompts_and_expected_of_replies() -> None:
    queue = filled(sequence("a", prompt=100, max_tokens=20), sequence("b", prompt=7, max_tokens=3))
    assert queue.work == 130
    known = lane()
    known.replies.learn(5)
    queue.push(sequence("c", of=known, prompt=10, max_tokens=20))
    assert queue.work == 145
