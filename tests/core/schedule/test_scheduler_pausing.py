from mlx_serving.core.schedule.scheduling import Admission, PrefillChunk

from .scheduler_bench import Bench, only


def test_a_paused_sequence_takes_no_steps_and_goes_on_where_it_was() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    bench.steps(3)
    bench.scheduler.pause("a")
    bench.scheduler.pause("a")
    assert all(step.decode == ("b",) for step in bench.steps(10))
    bench.scheduler.resume("a")
    step = bench.step()
    assert (step.decode, step.admitted, step.prefill) == (("b", "a"), (), ())


def test_a_paused_sequence_frees_its_slot_and_waits_for_one_when_it_is_resumed() -> None:
    bench = only(max_num_seqs=1)
    bench.add("a", max_tokens=500)
    bench.steps(2)
    bench.scheduler.pause("a")
    bench.add("b", max_tokens=3)
    assert bench.step().admitted == (Admission("b"),)
    bench.scheduler.resume("a")
    assert [step.decode for step in bench.steps(3)] == [("b",), ("b",), ("a",)]


def test_a_prompt_can_be_paused_in_its_middle() -> None:
    bench = Bench()
    bench.add("a", prompt=100)
    assert bench.step().prefill == (PrefillChunk("a", 0, 64, last=False),)
    bench.scheduler.pause("a")
    assert bench.scheduler.is_idle
    bench.scheduler.resume("a")
    assert bench.step().prefill == (PrefillChunk("a", 64, 36, last=True),)


def test_who_is_paused_while_it_waits_is_not_admitted() -> None:
    bench = only(max_num_seqs=1)
    bench.add("a")
    bench.scheduler.pause("a")
    assert bench.scheduler.schedule(bench.now) is None
    assert bench.scheduler.load().paused == 1
    bench.scheduler.resume("a")
    assert bench.step().admitted == (Admission("a"),)


def test_a_paused_sequence_loses_its_memory_to_whoever_needs_it() -> None:
    bench = only(kv_budget_bytes=120)
    bench.add("slow", prompt=10, max_tokens=100, priority="critical")
    bench.steps(5)
    bench.scheduler.pause("slow")
    bench.add("b", prompt=10, max_tokens=20, priority="background")
    step = bench.step()
    assert (step.preempted, step.admitted) == (("slow",), (Admission("b"),))
    bench.scheduler.resume("slow")
    steps = bench.steps(25)
    assert [step.admitted for step in steps if step.admitted] == [(Admission("slow"),)]
    assert [step.prefill for step in steps if step.prefill] == [(PrefillChunk("slow", 0, 15, last=True),)]


def test_a_resumed_sequence_that_waits_for_a_slot_loses_its_memory_too() -> None:
    bench = only(max_num_seqs=2, kv_budget_bytes=230)
    bench.add("slow", prompt=10, max_tokens=100, priority="low")
    bench.steps(5)
    bench.scheduler.pause("slow")
    bench.add("a", prompt=10, max_tokens=51, priority="high")
    bench.add("b", prompt=10, max_tokens=51, priority="high")
    bench.steps(2)
    bench.scheduler.resume("slow")
    bench.step()
    bench.scheduler.abort("a")
    bench.add("c", prompt=80, max_tokens=51, priority="critical")
    step = bench.step()
    assert (step.preempted, step.admitted) == (("slow",), (Admission("c"),))
    assert bench.scheduler.load().queued == 1


def test_pausing_and_resuming_who_is_not_there_or_not_paused_is_ignored() -> None:
    bench = Bench()
    bench.add("a")
    bench.scheduler.pause("nobody")
    bench.scheduler.resume("nobody")
    bench.scheduler.resume("a")
    assert bench.step().admitted == (Admission("a"),)


def test_a_paused_sequence_can_be_aborted_and_can_expire() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b", deadline=105.0)
    bench.step()
    bench.scheduler.pause("a")
    bench.scheduler.pause("b")
    assert bench.scheduler.abort("a")
    assert bench.scheduler.expire(106.0) == ["b"]
    assert bench.scheduler.load().kv_held_bytes == 0
