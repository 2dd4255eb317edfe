from mlx_serving.core.schedule.deadlines import Deadlines


def test_deadlines_come_due_in_their_order_and_once() -> None:
    deadlines = Deadlines(lambda deadline, name: True)
    for time, name in [(3.0, "c"), (1.0, "a"), (2.0, "b")]:
        deadlines.add(time, name)
    assert deadlines.next == 1.0
    assert deadlines.due(0.9) == []
    assert deadlines.due(2.0) == ["a", "b"]
    assert deadlines.due(2.5) == []
    assert deadlines.next == 3.0
    assert deadlines.due(9.0) == ["c"]
    assert deadlines.next is None


def test_what_does_not_count_any_more_is_not_due() -> None:
    current = {("a", 1.0), ("b", 1.0)}
    deadlines = Deadlines(lambda deadline, name: (name, deadline) in current)
    deadlines.add(1.0, "a")
    deadlines.add(1.0, "b")
    current.remove(("a", 1.0))
    assert deadlines.due(5.0) == ["b"]


def test_an_id_used_again_with_the_same_deadline_is_due_once() -> None:
    deadlines = Deadlines(lambda deadline, name: True)
    deadlines.add(1.0, "a")
    deadlines.add(1.0, "a")
    assert deadlines.due(1.0) == ["a"]


def test_ten_thousand_forgotten_deadlines_take_no_room() -> None:
    current: set[str] = set()
    deadlines = Deadlines(lambda deadline, name: name in current)
    for number in range(10_000):
        current = {str(number)}
        deadlines.add(1e6 + number, str(number))
    assert len(deadlines._heap) <= 70  # pyright: ignore[reportPrivateUsage]  memory is what this is about
    assert deadlines.due(1e9) == ["9999"]
