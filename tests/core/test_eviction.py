from mlx_serving.core.eviction import least_worth, victims_for
from mlx_serving.core.schedule.scheduled_sequence import Sequence, State

from .schedule.sequences import sequence

NEWCOMER = sequence("new", priority="high")


def running(name: str, *, rank: int = 2, arrived: float = 0.0, reserved: int = 10, boosts: int = 0) -> Sequence:
    return sequence(name, state=State.RUNNING, rank=rank, arrived=arrived, reserved=reserved, boosts=boosts)


def paused(name: str, reserved: int = 10) -> Sequence:
    return sequence(name, state=State.PAUSED, rank=0, reserved=reserved)


def ids(victims: list[Sequence] | None) -> list[str] | None:
    return None if victims is None else [one.id for one in victims]


def victims(
    *residents: Sequence, slots: int = 0, size: float = 0, pinned: frozenset[str] = frozenset()
) -> list[str] | None:
    return ids(victims_for(NEWCOMER, residents, slots_short=slots, bytes_short=size, pinned=pinned))


def test_nobody_goes_when_there_is_place() -> None:
    assert victims(running("a", rank=4), slots=0, size=-5) == []


def test_the_lowest_priority_goes_and_of_these_who_came_last() -> None:
    assert victims(running("a", rank=3), running("b", rank=4), running("c", rank=4, arrived=1), slots=1) == ["c"]


def test_nobody_of_the_same_or_a_higher_priority_goes() -> None:
    assert victims(running("a", rank=1), running("b", rank=0), slots=1) is None


def test_who_was_preempted_often_is_spared() -> None:
    assert victims(running("a", boosts=1, arrived=1), running("b"), slots=1) == ["b"]


def test_a_paused_one_gives_its_memory_to_anybody_but_has_no_slot_to_give() -> None:
    assert victims(paused("p"), size=5) == ["p"]
    assert victims(paused("p"), slots=1) is None
    assert victims(paused("p"), running("a"), slots=1) == ["a"]


def test_nobody_goes_in_vain() -> None:
    assert victims(running("a"), running("b"), size=21) is None
    assert victims(running("a"), running("b", arrived=1), size=20) == ["b", "a"]


def test_no_more_go_than_needed() -> None:
    small, large = running("small", arrived=2, reserved=5), running("large", reserved=50)
    assert victims(small, large, size=40) == ["large"]
    assert victims(small, large, slots=1, size=3) == ["small"]
    assert victims(small, large, slots=2) == ["small", "large"]


def test_pinned_ones_and_the_newcomer_itself_stay() -> None:
    assert victims(running("a"), slots=1, pinned=frozenset("a")) is None
    parked = sequence("parked", state=State.QUEUED, reserved=10)
    assert victims_for(parked, [parked], slots_short=0, bytes_short=5, pinned=()) is None


def test_the_least_worth_is_without_slot_then_low_then_late() -> None:
    assert least_worth([running("a", rank=4), paused("p")]).id == "p"
    assert least_worth([running("a", rank=3), running("b", rank=2, arrived=9)]).id == "a"
    assert least_worth([running("a", arrived=1), running("b", arrived=2)]).id == "b"
