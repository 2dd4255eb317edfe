import pytest

from mlx_serving.core.generation import Priority
from mlx_serving.core.schedule.scheduling import Admission, PrefillChunk

from .scheduler_bench import only


def test_no_more_run_than_there_are_slots() -> None:
    bench = only(max_num_seqs=2)
    for number in range(5):
        bench.add(str(number))
    assert len(bench.step().admitted) == 2
    assert bench.step("0").decode == ("0", "1")
    assert bench.step().admitted == (Admission("2"),)


def test_a_higher_priority_takes_the_slot_of_the_lowest_that_came_last() -> None:
    bench = only(max_num_seqs=3)
    bench.add("low", priority="low")
    bench.add("first", priority="background")
    bench.add("second", priority="background")
    bench.steps(3)
    bench.add("urgent", priority="high")
    step = bench.step()
    assert step.preempted == ("second",)
    assert step.admitted == (Admission("urgent"),)
    assert step.decode == ("low", "first")


@pytest.mark.parametrize("priority", ["normal", "low", "background"])
def test_the_same_or_a_lower_priority_takes_nothing(priority: Priority) -> None:
    bench = only(max_num_seqs=1)
    bench.add("a")
    bench.step()
    bench.add("b", priority=priority)
    assert all(step.preempted == () for step in bench.steps(50))


def test_a_preempted_sequence_comes_back_and_computes_prompt_and_reply_again() -> None:
    bench = only(max_num_seqs=1)
    bench.add("a", prompt=10, max_tokens=6, priority="low")
    bench.steps(3)
    bench.add("b", priority="high", max_tokens=1)
    assert bench.step().preempted == ("a",)
    back = bench.step()
    assert back.admitted == (Admission("a"),)
    assert back.prefill == (PrefillChunk("a", 0, 13, last=True),)
    assert [step.ending for step in bench.steps(2)] == [(), ("a",)]


def test_a_preempted_sequence_rises_by_one_priority_and_so_does_not_thrash() -> None:
    bench = only(max_num_seqs=1, ageing_s=1e9)
    bench.add("a", priority="low", max_tokens=1000)
    bench.step()
    preemptions = 0
    for number in range(20):
        bench.add(f"b{number}", priority="normal", max_tokens=2)
        preemptions += sum(len(step.preempted) for step in bench.steps(3))
    assert preemptions == 1


def test_who_has_waited_long_is_displaced_by_critical_requests_only() -> None:
    bench = only(max_num_seqs=1, ageing_s=1.0)
    bench.add("blocks", priority="critical", max_tokens=1000)
    bench.step()
    bench.add("old", priority="background", max_tokens=1000)
    bench.now += 4.0
    bench.scheduler.abort("blocks")
    bench.step()
    bench.add("high", priority="high")
    assert bench.step().decode == ("old",)
    bench.add("critical", priority="critical")
    assert bench.step().preempted == ("old",)


def test_whoever_was_preempted_as_often_as_there_are_higher_priorities_stays() -> None:
    bench = only(max_num_seqs=1, ageing_s=1e9)
    bench.add("a", priority="background", max_tokens=1000)
    bench.step()
    preempted: list[str] = []
    for number in range(10):
        bench.add(f"critical {number}", priority="critical", max_tokens=1)
        preempted += [one for step in bench.steps(2) for one in step.preempted]
    assert preempted == ["a"] * 4


def test_the_urgent_displace_others_though_somebody_aged_waits_before_them() -> None:
    bench = only(max_num_seqs=2, ageing_s=1.0)
    bench.add("holds", priority="background", max_tokens=10_000)
    bench.add("critical", priority="critical", max_tokens=10_000)
    bench.steps(2)
    bench.add("aged", priority="background")
    bench.now += 5.0
    bench.add("urgent", priority="high")
    step = bench.step()
    assert step.preempted == ("holds",)
    assert step.admitted == (Admission("urgent"),)


def test_a_place_that_is_taken_back_at_once_was_never_given() -> None:
    bench = only(max_num_seqs=1, ageing_s=1.0)
    bench.add("aged", priority="background", max_tokens=2)
    bench.now += 20.0
    bench.add("critical", priority="critical", max_tokens=2)
    steps = bench.steps(4)
    assert [step.admitted for step in steps] == [(Admission("critical"),), (), (Admission("aged"),), ()]
    assert all(step.preempted == () for step in steps)


def test_nobody_of_a_priority_waits_for_ever_behind_a_higher_one() -> None:
    bench = only(max_num_seqs=1, ageing_s=1.0, max_queue=50)
    bench.add("poor", priority="background", max_tokens=1)
    for number in range(2000):
        bench.add(f"rich {number}", priority="critical", max_tokens=2)
        bench.steps(2)
        if "poor" not in bench.scheduler:
            break
    assert bench.now < 100 + 6


def test_callers_take_turns_by_what_they_were_served() -> None:
    bench = only(max_num_seqs=1)
    for number in range(4):
        bench.add(f"many {number}", caller="many", max_tokens=1)
    bench.add("one", caller="one", max_tokens=1)
    order = [step.admitted[0].id for step in bench.steps(5)]
    assert order == ["many 0", "one", "many 1", "many 2", "many 3"]


def test_free_slots_are_not_all_for_the_caller_who_came_first() -> None:
    bench = only(max_num_seqs=2)
    for number in range(4):
        bench.add(f"many {number}", caller="many")
    bench.add("one", caller="one")
    assert [admission.id for admission in bench.step().admitted] == ["many 0", "one"]


def test_tokens_of_running_sequences_count_for_their_caller() -> None:
    bench = only(max_num_seqs=2)
    bench.add("long", prompt=10, max_tokens=500, caller="a")
    bench.add("short", prompt=60, max_tokens=500, caller="b")
    bench.steps(3)
    bench.add("a", caller="a")
    bench.add("b", caller="b")
    bench.steps(200)
    assert bench.step("short").decode == ("long", "short")
    # Both have had 200 tokens of reply by now; b paid 50 more for its prompt.
    assert bench.step().admitted == (Admission("a"),)
