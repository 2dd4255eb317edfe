import pytest

from mlx_serving.core.schedule.fair_turns import Callers, FairTurns
from mlx_serving.core.schedule.scheduled_sequence import Lane

from .sequences import lane


def take(turns: FairTurns, seconds: dict[str, float]) -> str:
    chosen = turns.next()
    assert chosen is not None
    chosen.virtual_s += seconds[chosen.model] / chosen.weight
    return chosen.model


def device_time(turns: FairTurns, seconds: dict[str, float], count: int) -> dict[str, float]:
    spent = dict.fromkeys(seconds, 0.0)
    for _ in range(count):
        model = take(turns, seconds)
        spent[model] += seconds[model]
    return spent


def busy(*lanes: Lane) -> FairTurns:
    turns = FairTurns()
    for one in lanes:
        turns.enter(one)
    return turns


def test_nobody_busy_has_no_turn() -> None:
    assert FairTurns().next() is None


def test_models_share_time_equally_whatever_a_step_costs() -> None:
    spent = device_time(busy(lane("a"), lane("b")), {"a": 0.01, "b": 0.07}, 1000)
    assert spent["a"] == pytest.approx(spent["b"], rel=0.02)


def test_a_model_of_twice_the_weight_gets_twice_the_time() -> None:
    spent = device_time(busy(lane("a", weight=2.0), lane("b")), {"a": 0.01, "b": 0.03}, 1000)
    assert spent["a"] == pytest.approx(2 * spent["b"], rel=0.02)


def test_an_idle_model_earns_no_claim_on_the_past() -> None:
    a, b = lane("a"), lane("b")
    turns = busy(a)
    device_time(turns, {"a": 0.01, "b": 0.01}, 1000)
    turns.enter(b)
    spent = device_time(turns, {"a": 0.01, "b": 0.01}, 10)
    assert spent["a"] == pytest.approx(spent["b"], abs=0.011)


def test_a_model_that_left_and_came_back_keeps_what_it_owes() -> None:
    a, b = lane("a"), lane("b")
    turns = busy(a, b)
    a.virtual_s = 5.0
    turns.leave(a)
    turns.enter(a)
    assert turns.next() is b


def test_the_share_is_by_weight_among_the_busy() -> None:
    a, b = lane("a", weight=3.0), lane("b")
    turns = busy(a)
    assert turns.share(a) == 1.0
    turns.enter(b)
    assert turns.share(a) == 0.75
    assert turns.share(b) == 0.25


def test_a_caller_who_comes_is_lifted_to_the_least_served_of_the_others() -> None:
    callers = Callers()
    first, second = callers.enter("first"), callers.enter("second")
    first.served, second.served = 100, 60
    assert callers.enter("third").served == 60


def test_a_caller_with_requests_under_way_is_not_lifted() -> None:
    callers = Callers()
    first, second = callers.enter("first"), callers.enter("second")
    first.served, second.served = 100, 10
    assert callers.enter("second") is second
    assert second.served == 10


def test_a_caller_who_was_served_more_keeps_it_while_away() -> None:
    callers = Callers()
    first, second = callers.enter("first"), callers.enter("second")
    first.served, second.served = 10, 500
    callers.leave(second)
    assert callers.enter("second").served == 500


def test_ten_thousand_callers_who_left_take_no_room() -> None:
    callers = Callers()
    stayed = callers.enter("stayed")
    for number in range(10_000):
        caller = callers.enter(str(number))
        caller.served += 10
        stayed.served += 10
        callers.leave(caller)
    assert len(callers._by_name) < 100  # pyright: ignore[reportPrivateUsage]  memory is what this is about
    callers.leave(stayed)
    for number in range(100):
        callers.leave(callers.enter(f"again {number}"))
    assert len(callers._by_name) < 100  # pyright: ignore[reportPrivateUsage]
