from typing import Any

import pytest

from mlx_serving.core.generation import Priority
from mlx_serving.core.schedule.encodings import ImageSpan
from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.core.schedule.scheduling import Admission, Encode, PrefillChunk, SchedulerPolicy, Step, WorkDone
from mlx_serving.core.scheduler import Scheduler
from mlx_serving.errors import ContextLengthExceeded, ModelNotLoaded, Overloaded


class Bench:
    """A scheduler whose every step takes `step_s` (10 ms)."""

    def __init__(self, policy: SchedulerPolicy | None = None, *, batchable: bool = True, kv: int = 1) -> None:
        self.scheduler = Scheduler(policy or SchedulerPolicy())
        self.scheduler.add_model("m", kv_bytes_per_token=kv, batchable=batchable)
        self.now = 100.0
        self.step_s = 0.01

    def add(self, name: str, prompt: int = 10, max_tokens: int = 100, *, model: str = "m", **how: Any) -> None:
        self.scheduler.add(name, model, prompt_tokens=prompt, max_tokens=max_tokens, now=self.now, **how)

    def step(self, *finished: str) -> Step:
        step = self.scheduler.schedule(self.now)
        assert step is not None
        self.now += self.step_s
        self.scheduler.update(step, self.step_s, finished)
        return step

    def steps(self, count: int) -> list[Step]:
        return [self.step() for _ in range(count)]


def only(**policy: Any) -> Bench:
    return Bench(SchedulerPolicy(**policy))


# --- the life of a sequence ---------------------------------------------------------------------------------------


def test_a_prompt_is_computed_and_its_last_token_yields_the_first_of_the_reply() -> None:
    bench = Bench()
    bench.add("a", prompt=10, max_tokens=3)
    first = bench.step()
    assert first.admitted == (Admission("a"),)
    assert first.prefill == (PrefillChunk("a", 0, 10, last=True),)
    assert (first.model, first.decode, first.ending) == ("m", (), ())
    assert bench.step().decode == ("a",)
    last = bench.step()
    assert (last.decode, last.ending) == (("a",), ("a",))
    assert "a" not in bench.scheduler
    assert bench.scheduler.is_idle
    assert bench.scheduler.schedule(bench.now) is None


def test_a_reply_of_one_token_ends_with_its_prompt() -> None:
    bench = Bench()
    bench.add("a", max_tokens=1)
    assert bench.step().ending == ("a",)
    assert len(bench.scheduler) == 0


def test_tokens_that_were_known_count_as_computed() -> None:
    bench = Bench(kv=2)
    bench.add("a", prompt=10, max_tokens=10)
    bench.steps(2)
    for _ in range(5):
        bench.scheduler.advance("a")
    bench.scheduler.advance("nobody")
    load = bench.scheduler.load()
    assert (load.kv_held_bytes, load.done.decoded_tokens) == (2 * 16, 6)
    assert [step.ending for step in bench.steps(3)] == [(), (), ("a",)]


def test_who_is_named_as_finished_has_ended() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    bench.step("a")
    assert bench.step("a", "nobody").decode == ("b",)
    assert "b" in bench.scheduler


def test_who_finishes_without_a_token_says_nothing_about_the_length_of_replies() -> None:
    bench = only(max_num_seqs=1, kv_budget_bytes=10_000)
    bench.add("a", prompt=10, max_tokens=100)
    bench.add("b", prompt=10, max_tokens=100)
    bench.step("b")
    bench.scheduler.abort("a")
    bench.add("c", prompt=10, max_tokens=100)
    bench.step()
    assert bench.scheduler.load().kv_reserved_bytes == 109


def test_an_abort_frees_the_place_before_the_next_step_and_counts_once() -> None:
    bench = only(max_num_seqs=1)
    bench.add("a")
    bench.step()
    bench.add("b")
    assert bench.scheduler.abort("a")
    assert not bench.scheduler.abort("a")
    assert bench.step().admitted == (Admission("b"),)


def test_a_deadline_ends_those_who_wait_and_those_who_run() -> None:
    bench = only(max_num_seqs=1)
    bench.add("runs", deadline=101.0)
    bench.step()
    bench.add("waits", deadline=102.0)
    bench.add("stays")
    assert bench.scheduler.next_deadline == 101.0
    assert bench.scheduler.expire(100.9) == []
    assert bench.scheduler.expire(103.0) == ["runs", "waits"]
    assert not bench.scheduler.abort("runs")
    assert bench.step().admitted == (Admission("stays"),)


def test_a_deadline_of_who_has_ended_does_not_touch_its_successor() -> None:
    bench = Bench()
    bench.add("a", deadline=101.0)
    bench.scheduler.abort("a")
    bench.add("a", deadline=105.0)
    assert bench.scheduler.expire(102.0) == []
    assert bench.scheduler.expire(105.0) == ["a"]


def test_the_next_step_can_be_scheduled_before_the_last_was_updated() -> None:
    bench = Bench()
    bench.add("a", max_tokens=3)
    bench.add("b", max_tokens=9)
    schedule, update = bench.scheduler.schedule, bench.scheduler.update
    one, two = schedule(100.0), schedule(100.0)
    assert one is not None
    assert two is not None
    assert two.decode == ("a", "b")
    update(one, 0.01)
    three = schedule(100.0)
    update(two, 0.01)
    four = schedule(100.0)
    assert three is not None
    assert four is not None
    assert three.ending == ("a",)
    assert four.decode == ("b",)
    update(three, 0.01, ["b"])
    update(four, 0.01)
    assert len(bench.scheduler) == 0


def test_a_last_token_under_way_keeps_the_scheduler_awake() -> None:
    bench = Bench()
    bench.add("a", max_tokens=1)
    step = bench.scheduler.schedule(100.0)
    assert step is not None
    assert bench.scheduler.schedule(100.0) is None
    assert not bench.scheduler.is_idle
    bench.scheduler.pause("a")
    assert bench.scheduler.load().running == 1
    bench.scheduler.update(step, 0.01)
    assert bench.scheduler.is_idle


def test_an_id_of_a_step_under_way_that_is_used_again_is_another_sequence() -> None:
    bench = Bench()
    bench.add("a", max_tokens=1)
    step = bench.scheduler.schedule(100.0)
    assert step is not None
    bench.scheduler.abort("a")
    bench.add("a", max_tokens=1)
    bench.scheduler.update(step, 0.01)
    assert "a" in bench.scheduler


def test_the_batch_keeps_its_identity_while_nobody_joins_or_leaves() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    bench.step()
    before = bench.step()
    steps = bench.steps(40)
    assert all(step.decode is before.decode for step in steps)
    bench.add("c", prompt=40)
    assert bench.step().decode is before.decode
    assert bench.step().decode == ("a", "b", "c")


# --- what is refused ----------------------------------------------------------------------------------------------


def test_the_queue_is_bounded_beyond_the_slots() -> None:
    bench = only(max_num_seqs=2, max_queue=2)
    for number in range(4):
        bench.add(str(number))
    with pytest.raises(Overloaded, match=r"^4 requests are waiting already; the limit for normal priority is 2$"):
        bench.add("4")
    bench.scheduler.abort("0")
    bench.add("4")


def test_low_priorities_may_not_fill_the_queue() -> None:
    bench = only(max_num_seqs=1, max_queue=4, batch_queue_share=0.5)
    for number in range(3):
        bench.add(str(number), priority="background")
    with pytest.raises(Overloaded, match="the limit for low priority is 2"):
        bench.add("low", priority="low")
    bench.add("normal")


def test_retry_after_is_how_long_half_of_the_queue_takes() -> None:
    bench = only(max_num_seqs=1, max_queue=10)
    bench.add("runs", prompt=1, max_tokens=1000)
    bench.steps(50)
    for number in range(10):
        bench.add(str(number), prompt=100, max_tokens=100)
    with pytest.raises(Overloaded) as refusal:
        bench.add("late")
    assert refusal.value.retry_after == pytest.approx(1000 * 0.01, rel=0.1)


def test_retry_after_is_a_second_while_nothing_is_known() -> None:
    bench = only(max_num_seqs=1, max_queue=1)
    bench.add("a")
    bench.add("b")
    with pytest.raises(Overloaded) as refusal:
        bench.add("c")
    assert refusal.value.retry_after == 1.0


def test_what_can_never_fit_into_memory_is_refused_with_the_limit() -> None:
    bench = Bench(SchedulerPolicy(kv_budget_bytes=1000), kv=10)
    bench.add("fits", prompt=51, max_tokens=50)
    with pytest.raises(ContextLengthExceeded) as refusal:
        bench.add("a", prompt=52, max_tokens=50)
    assert refusal.value.details == {"field": "max_tokens", "limit": 101, "given": 102}


def test_mistakes_of_the_program_are_refused() -> None:
    bench = Bench()
    bench.add("a")
    with pytest.raises(ValueError, match=r"^a is in use$"):
        bench.add("a")
    with pytest.raises(ValueError, match=r"^prompt_tokens must be at least 1, got 0$"):
        bench.add("b", prompt=0)
    with pytest.raises(ValueError, match=r"^max_tokens must be at least 1, got 0$"):
        bench.add("b", max_tokens=0)
    with pytest.raises(ModelNotLoaded, match=r"^other is not loaded$"):
        bench.add("b", model="other")
    with pytest.raises(ValueError, match=r"^m is here already$"):
        bench.scheduler.add_model("m", kv_bytes_per_token=1, batchable=True)
    with pytest.raises(ValueError, match=r"^weight must be greater than 0, got 0$"):
        bench.scheduler.add_model("n", kv_bytes_per_token=1, batchable=True, weight=0)
    with pytest.raises(ValueError, match=r"^kv_bytes_per_token must be at least 0, got -1$"):
        bench.scheduler.add_model("n", kv_bytes_per_token=-1, batchable=True)


# --- slots, priorities, preemption --------------------------------------------------------------------------------


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


# --- memory -------------------------------------------------------------------------------------------------------


def test_max_tokens_are_reserved_while_replies_are_unknown() -> None:
    bench = only(kv_budget_bytes=250)
    for name in "abc":
        bench.add(name, prompt=10, max_tokens=100)
    assert len(bench.step().admitted) == 2
    assert bench.scheduler.load().kv_reserved_bytes == 2 * 109
    assert sum(len(step.preempted) for step in bench.steps(98)) == 0


def test_the_usual_length_is_reserved_once_replies_are_known() -> None:
    bench = only(kv_budget_bytes=250)
    bench.add("first", prompt=10, max_tokens=100)
    bench.steps(19)
    bench.step("first")
    for number in range(9):
        bench.add(str(number), prompt=10, max_tokens=100)
    assert len(bench.step().admitted) == 8
    assert bench.scheduler.load().kv_reserved_bytes == 8 * 30


def test_nobody_is_passed_over_because_it_needs_more_memory() -> None:
    bench = only(kv_budget_bytes=300)
    bench.add("runs", prompt=100, max_tokens=101)
    bench.step()
    bench.add("large", prompt=100, max_tokens=101)
    bench.add("small", prompt=1, max_tokens=10)
    assert all(step.admitted == () for step in bench.steps(50))


def test_replies_longer_than_thought_preempt_who_came_last_and_never_exceed_the_budget() -> None:
    bench = only(kv_budget_bytes=200)
    bench.add("teacher", prompt=1, max_tokens=5)
    bench.steps(5)
    for number in range(4):
        bench.add(str(number), prompt=10, max_tokens=150)
        bench.step()
    preempted: list[str] = []
    ended: list[str] = []
    while len(bench.scheduler):
        step = bench.step()
        preempted += step.preempted
        ended += step.ending
        assert bench.scheduler.load().kv_held_bytes <= 200
    assert preempted[:2] == ["3", "2"]
    assert "0" not in preempted
    assert sorted(ended) == ["0", "1", "2", "3"]
    assert bench.scheduler.load().preemptions == len(preempted) <= 4


def test_steps_under_way_are_awaited_before_anybody_is_preempted_for_memory() -> None:
    bench = only(kv_budget_bytes=59)
    bench.add("teacher", prompt=1, max_tokens=2)
    bench.steps(2)
    bench.add("ends", prompt=10, max_tokens=21)
    bench.add("goes on", prompt=10, max_tokens=50)
    steps = bench.steps(20)
    assert not any(step.preempted for step in steps)
    last = bench.scheduler.schedule(bench.now)
    assert last is not None
    assert last.ending == ("ends",)
    assert bench.scheduler.schedule(bench.now) is None
    bench.scheduler.update(last, 0.01)
    assert bench.step().decode == ("goes on",)


def test_a_prompt_is_computed_as_far_as_memory_goes() -> None:
    bench = only(kv_budget_bytes=130)
    bench.add("teacher", prompt=1, max_tokens=2)
    bench.steps(2)
    bench.add("old", prompt=10, max_tokens=120)
    bench.steps(100)
    bench.add("new", prompt=12, max_tokens=10)
    preempted = [one for step in bench.steps(15) for one in step.preempted]
    assert preempted in ([], ["new"])
    assert bench.scheduler.load().kv_held_bytes <= 130


def test_a_budget_that_is_lowered_preempts_who_came_last_until_the_rest_fits() -> None:
    bench = only(kv_budget_bytes=1000)
    for name in "abc":
        bench.add(name, prompt=10, max_tokens=100)
    bench.steps(20)
    assert (bench.scheduler.memory.held, bench.scheduler.memory.reserved) == (3 * 29, 3 * 109)
    bench.scheduler.memory.allow(kv_caches=70, ceiling=1000, prefill=1)
    assert bench.step().preempted == ("c",)
    assert bench.scheduler.memory.held == 60
    bench.scheduler.memory.allow(kv_caches=1000, ceiling=1000, prefill=1)
    assert bench.step().admitted == (Admission("c"),)


def test_who_does_not_fit_any_more_runs_as_far_as_it_can_and_then_waits_aside_until_there_is_memory_again() -> None:
    bench = only(max_num_seqs=1, kv_budget_bytes=1000)
    bench.add("runs", prompt=10, max_tokens=500)
    bench.step()
    bench.add("small", prompt=10, max_tokens=20)
    bench.scheduler.memory.allow(kv_caches=100, ceiling=1000, prefill=1)
    bench.steps(100 - bench.scheduler.memory.held)
    assert not bench.scheduler.memory.is_awaited
    assert bench.scheduler.schedule(bench.now) is None
    assert bench.scheduler.refuse_oversized() == []
    assert bench.scheduler.memory.is_awaited
    assert bench.scheduler.load().queued == 2
    first = bench.step()
    assert (first.preempted, first.admitted) == (("runs",), (Admission("small"),))
    bench.steps(19)
    assert bench.scheduler.is_idle
    bench.scheduler.memory.allow(kv_caches=400, ceiling=1000, prefill=1)
    assert bench.scheduler.is_idle
    bench.scheduler.memory.allow(kv_caches=600, ceiling=1000, prefill=1)
    assert not bench.scheduler.memory.is_awaited
    assert bench.step().admitted == (Admission("runs"),)


def test_who_waits_and_does_not_fit_any_more_is_refused_when_nobody_is_left_to_make_room() -> None:
    bench = only(max_num_seqs=1, kv_budget_bytes=1000)
    bench.add("runs", prompt=10, max_tokens=50)
    bench.step()
    bench.add("large", prompt=10, max_tokens=500)
    bench.add("small", prompt=10, max_tokens=20)
    bench.scheduler.memory.allow(kv_caches=100, ceiling=1000, prefill=1)
    while "runs" in bench.scheduler:
        assert bench.scheduler.refuse_oversized() == []
        bench.step()
    assert bench.scheduler.refuse_oversized() == ["large"]
    assert bench.step().admitted == (Admission("small"),)


def test_the_first_who_waits_for_memory_wants_it_of_models_that_could_go() -> None:
    def allow(kv_caches: int, **more: float) -> None:
        bench.scheduler.memory.allow(kv_caches=kv_caches, ceiling=1000, prefill=1, **more)

    bench = only(max_num_seqs=2, kv_budget_bytes=1000)
    bench.add("runs", prompt=10, max_tokens=50)
    bench.step()
    assert bench.scheduler.memory.wanted(bench.now) is None
    allow(100, relief=0.5)
    bench.add("waits", prompt=10, max_tokens=60)
    bench.step()
    lacking = 59 + 69 - 100
    assert bench.scheduler.memory.wanted(bench.now) == ("m", 2 * lacking)
    allow(100, relief=0.5, most=120)
    assert bench.scheduler.memory.wanted(bench.now) is None
    allow(200, relief=0.5)
    bench.step()
    bench.add("has no slot", prompt=10, max_tokens=150)
    bench.step()
    assert bench.scheduler.memory.wanted(bench.now) is None


def test_who_waits_aside_wants_memory_first() -> None:
    bench = only(max_num_seqs=1, kv_budget_bytes=1000)
    bench.add("a", prompt=50, max_tokens=100)
    bench.step()
    bench.scheduler.memory.allow(kv_caches=10, ceiling=1000, prefill=1, relief=1.0)
    assert bench.scheduler.schedule(bench.now) is None
    bench.scheduler.refuse_oversized()
    assert bench.scheduler.memory.wanted(bench.now) == ("m", 149 - 10)


def test_who_comes_back_to_its_own_caches_wants_no_memory() -> None:
    bench = only(max_num_seqs=2, kv_budget_bytes=1000)
    bench.add("paused", prompt=10, max_tokens=100)
    bench.steps(2)
    bench.scheduler.pause("paused")
    bench.scheduler.memory.allow(kv_caches=50, ceiling=1000, prefill=1, relief=1.0)
    bench.scheduler.resume("paused")
    assert bench.scheduler.memory.wanted(bench.now) is None


@pytest.mark.parametrize("how", ["abort", "expire", "pause"])
def test_who_waits_aside_for_memory_can_be_aborted_and_paused_and_expires(how: str) -> None:
    bench = only(kv_budget_bytes=1000)
    bench.add("a", prompt=50, deadline=500.0)
    bench.step()
    bench.scheduler.memory.allow(kv_caches=10, ceiling=1000, prefill=1)
    assert bench.scheduler.schedule(bench.now) is None
    bench.scheduler.refuse_oversized()
    assert bench.scheduler.memory.is_awaited
    if how == "abort":
        assert bench.scheduler.abort("a")
    elif how == "expire":
        assert bench.scheduler.expire(500.0) == ["a"]
    else:
        bench.scheduler.pause("a")
        bench.scheduler.memory.allow(kv_caches=1000, ceiling=1000, prefill=1)
        assert bench.scheduler.is_idle
        bench.scheduler.resume("a")
        assert bench.step().admitted == (Admission("a"),)
        return
    assert not bench.scheduler.memory.is_awaited
    assert len(bench.scheduler) == 0


def test_who_comes_back_with_its_memory_waits_for_what_those_who_end_hold() -> None:
    bench = only(kv_budget_bytes=1000)
    bench.add("comes back", prompt=10, max_tokens=100)
    bench.add("ends", prompt=10, max_tokens=5)
    bench.steps(3)
    bench.scheduler.pause("comes back")
    bench.step()
    last = bench.scheduler.schedule(bench.now)
    assert last is not None
    assert last.ending == ("ends",)
    bench.scheduler.memory.allow(kv_caches=bench.scheduler.memory.held, ceiling=1000, prefill=1)
    bench.scheduler.resume("comes back")
    assert bench.scheduler.schedule(bench.now) is None
    bench.scheduler.update(last, 0.01)
    assert bench.step().decode == ("comes back",)


def test_without_any_memory_nobody_runs() -> None:
    bench = only(kv_budget_bytes=1000)
    bench.add("runs")
    bench.add("is paused")
    bench.step()
    bench.scheduler.pause("is paused")
    bench.add("waits")
    bench.scheduler.memory.allow(kv_caches=0, ceiling=1000, prefill=1)
    assert bench.scheduler.schedule(bench.now) is None
    assert bench.scheduler.refuse_oversized() == ["waits"]
    assert bench.scheduler.is_idle
    assert (bench.scheduler.memory.held, len(bench.scheduler)) == (0, 2)


def test_what_does_not_fit_for_now_is_to_come_again_and_what_never_does_is_wrong() -> None:
    bench = Bench(kv=10)
    bench.scheduler.memory.allow(kv_caches=500, ceiling=1000, prefill=1)
    bench.add("fits", prompt=26, max_tokens=25)
    with pytest.raises(Overloaded, match="Memory is short") as later:
        bench.add("a", prompt=27, max_tokens=25)
    assert (later.value.details["limit"], later.value.details["given"]) == (51, 52)
    with pytest.raises(ContextLengthExceeded) as never:
        bench.add("a", prompt=52, max_tokens=50)
    assert never.value.details["limit"] == 101


def test_the_demand_counts_who_waits_but_not_who_is_paused() -> None:
    bench = only(max_num_seqs=1, kv_budget_bytes=1000)
    for name in ("runs", "waits", "is paused"):
        bench.add(name, prompt=10, max_tokens=91)
    bench.scheduler.pause("is paused")
    bench.step()
    assert (bench.scheduler.memory.reserved, bench.scheduler.memory.demand) == (100, 200)


def test_prompts_are_computed_in_chunks_that_memory_allows() -> None:
    bench = Bench(SchedulerPolicy(min_prefill_chunk=4))
    bench.scheduler.remove_model("m")
    per_pair = PrefillMemory(per_token=10, per_pair=1)
    bench.scheduler.add_model("m", kv_bytes_per_token=1, batchable=True, prefill_memory=per_pair)
    bench.scheduler.memory.allow(kv_caches=1000, ceiling=1000, prefill=1000)
    bench.add("a", prompt=200)
    chunks = [chunk for _ in range(60) for chunk in bench.step().prefill]
    assert sum(chunk.count for chunk in chunks) == 200
    assert max(chunk.count for chunk in chunks) > 8
    assert all(chunk.count <= 4 or per_pair.size(chunk.start, chunk.count) <= 1000 for chunk in chunks)


# --- pausing ------------------------------------------------------------------------------------------------------


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


# --- prefill ------------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_interleaved_with_running_streams() -> None:
    bench = Bench()
    bench.add("stream", max_tokens=10_000)
    bench.steps(5)
    bench.add("long", prompt=100_000)
    steps = bench.steps(10)
    assert all("stream" in step.decode for step in steps)
    assert all(len(step.prefill) == 1 for step in steps)


def test_a_short_newcomer_does_not_wait_for_a_long_prompt() -> None:
    bench = Bench()
    bench.step_s = 0.5
    bench.add("long", prompt=100_000)
    bench.steps(5)
    bench.add("short", prompt=20)
    steps = bench.steps(2)
    assert any(chunk.id == "short" and chunk.last for step in steps for chunk in step.prefill)


def test_prompts_that_arrive_together_share_a_step() -> None:
    bench = Bench()
    for name in "abc":
        bench.add(name, prompt=20)
    assert [chunk.id for chunk in bench.step().prefill] == ["a", "b", "c"]


def test_a_burst_is_admitted_together_while_others_keep_the_device_busy() -> None:
    bench = only(admission_window_s=0.025)
    bench.add("runs", max_tokens=1000)
    bench.now += 1.0
    bench.steps(2)
    bench.add("a")
    bench.now += 0.001
    bench.add("b")
    assert bench.step().admitted == ()
    bench.add("c")
    assert [len(step.admitted) for step in bench.steps(3)] == [0, 0, 3]


def test_a_burst_is_not_held_when_the_device_is_idle_or_fills_the_slots() -> None:
    bench = only(admission_window_s=10.0, max_num_seqs=4)
    bench.add("a", max_tokens=1000)
    bench.add("b", max_tokens=1000)
    assert len(bench.step().admitted) == 2
    bench.add("c")
    assert bench.step().admitted == ()
    bench.add("d")
    assert len(bench.step().admitted) == 2


# --- forks --------------------------------------------------------------------------------------------------------


def test_forks_wait_for_the_prompt_and_start_with_a_copy_of_its_kv() -> None:
    bench = Bench()
    bench.add("a", prompt=100)
    bench.add("b", prompt=100, fork_of="a")
    bench.add("c", prompt=100, fork_of="a")
    first, second, third = bench.steps(3)
    assert first.admitted == (Admission("a"),)
    assert second.prefill == (PrefillChunk("a", 64, 36, last=True),)
    assert third.admitted == (Admission("b", "a"), Admission("c", "a"))
    assert third.prefill == (PrefillChunk("b", 99, 1, last=True), PrefillChunk("c", 99, 1, last=True))
    assert third.decode == ("a",)


def test_a_fork_of_a_running_sequence_starts_at_once() -> None:
    bench = Bench()
    bench.add("a")
    bench.steps(5)
    bench.add("b", fork_of="a")
    assert bench.step().prefill == (PrefillChunk("b", 9, 1, last=True),)


@pytest.mark.parametrize("how", ["abort", "pause", "preempt"])
def test_a_fork_whose_parent_stops_short_computes_the_prompt_itself(how: str) -> None:
    bench = only(max_num_seqs=2, ageing_s=1e9)
    bench.add("a", prompt=1000, priority="low")
    bench.add("b", prompt=1000, priority="low", fork_of="a")
    bench.step()
    if how == "abort":
        bench.scheduler.abort("a")
    elif how == "pause":
        bench.scheduler.pause("a")
    else:
        bench.add("x", priority="high")
        bench.add("y", priority="high")
        assert bench.step().preempted == ("a",)
        bench.scheduler.abort("a")
        bench.scheduler.abort("x")
    step = bench.step()
    assert step.admitted == (Admission("b"),)
    assert [chunk.start for chunk in step.prefill if chunk.id == "b"] == [0]


def test_a_fork_of_nobody_is_a_sequence_like_others() -> None:
    bench = Bench()
    bench.add("b", fork_of="gone")
    assert bench.step().admitted == (Admission("b"),)


def test_a_fork_that_waits_can_be_aborted_or_paused() -> None:
    bench = Bench()
    bench.add("a", prompt=100)
    for name in ("b", "c"):
        bench.add(name, prompt=100, fork_of="a")
    bench.step()
    assert bench.scheduler.load().queued == 2
    assert bench.scheduler.abort("b")
    bench.scheduler.pause("c")
    bench.step()
    assert bench.step().admitted == ()
    bench.scheduler.resume("c")
    assert bench.step().admitted == (Admission("c", "a"),)


def test_a_parent_is_not_preempted_in_the_step_that_copies_its_kv() -> None:
    bench = only(kv_budget_bytes=330)
    bench.add("a", prompt=10, max_tokens=100)
    bench.step()
    bench.scheduler.pause("a")
    bench.add("b", prompt=10, max_tokens=100, fork_of="a")
    bench.add("c", prompt=100, max_tokens=101)
    step = bench.step()
    assert step.admitted == (Admission("b", "a"),)
    assert step.preempted == ()
    assert bench.step().preempted == ()


def untrimmable() -> Bench:
    """Of a model whose KV cannot be cut back: forks copy what is kept for them, or nothing."""
    bench = Bench()
    bench.scheduler.add_model("r", kv_bytes_per_token=1, batchable=True, trimmable=False)
    return bench


def test_a_sequence_has_heirs_while_forks_that_waited_for_its_prompt_have_not_begun() -> None:
    bench = untrimmable()
    bench.add("a", prompt=100, model="r")
    for name in ("b", "c", "d", "e"):
        bench.add(name, prompt=100, model="r", fork_of="a")
    bench.step()
    assert not bench.scheduler.has_heirs("a")
    assert bench.step().prefill == (PrefillChunk("a", 64, 36, last=True),)
    assert bench.scheduler.has_heirs("a")
    bench.scheduler.pause("b")
    bench.scheduler.pause("c")
    assert bench.step().admitted == (Admission("d", "a"), Admission("e", "a"))
    bench.scheduler.abort("b")
    assert bench.scheduler.has_heirs("a")
    bench.scheduler.resume("c")
    assert bench.step().admitted == (Admission("c", "a"),)
    assert not bench.scheduler.has_heirs("a")
    assert not bench.scheduler.has_heirs("nobody")


def test_a_fork_that_comes_after_the_prompt_computes_it_where_kv_cannot_be_cut_back() -> None:
    bench = untrimmable()
    bench.add("a", model="r")
    bench.add("early", model="r", fork_of="a")
    bench.step()
    bench.add("late", model="r", fork_of="a")
    step = bench.step()
    assert step.admitted == (Admission("early", "a"), Admission("late"))
    assert step.prefill == (PrefillChunk("early", 9, 1, last=True), PrefillChunk("late", 0, 10, last=True))


def test_a_preempted_sequence_leaves_its_heirs_nothing() -> None:
    bench = Bench(SchedulerPolicy(max_num_seqs=1, ageing_s=1e9))
    bench.scheduler.add_model("r", kv_bytes_per_token=1, batchable=True, trimmable=False)
    bench.add("a", model="r", priority="low")
    bench.add("b", model="r", priority="low", fork_of="a")
    bench.step()
    assert bench.scheduler.has_heirs("a")
    bench.add("urgent", model="r", priority="high", max_tokens=3)
    assert bench.step().preempted == ("a",)
    assert not bench.scheduler.has_heirs("a")
    bench.steps(2)
    bench.add("c", model="r", priority="low", fork_of="a")
    while len(bench.scheduler) > 1:
        step = bench.step()
        assert not bench.scheduler.has_heirs("a"), "what a preempted sequence comes back with is beyond its prompt"
        assert all(admission.fork_of is None for admission in step.admitted)


def test_a_fork_of_a_sequence_that_has_its_last_token_on_the_way_computes_the_prompt() -> None:
    bench = Bench()
    bench.add("a", prompt=10, max_tokens=1)
    bench.add("b", prompt=10, fork_of="a")
    last = bench.scheduler.schedule(bench.now)
    assert last is not None
    assert last.ending == ("a",)
    ahead = bench.scheduler.schedule(bench.now)
    assert ahead is not None
    assert ahead.prefill == (PrefillChunk("b", 0, 10, last=True),)


# --- several models -----------------------------------------------------------------------------------------------


def two_models(*, batchable: bool = True, **policy: Any) -> Bench:
    bench = Bench(SchedulerPolicy(**policy))
    bench.scheduler.add_model("n", kv_bytes_per_token=1, batchable=batchable)
    return bench


def test_two_busy_models_take_turns() -> None:
    bench = two_models()
    bench.add("a", max_tokens=1000)
    bench.add("b", max_tokens=1000, model="n")
    models = [step.model for step in bench.steps(200)]
    assert 95 <= models.count("m") <= 105


def test_a_step_that_took_very_long_costs_no_more_turns_than_the_longest_that_may_be_planned() -> None:
    bench = two_models(max_step_s=0.1)
    bench.add("a", max_tokens=1000)
    bench.add("b", max_tokens=1000, model="n")
    step = bench.scheduler.schedule(bench.now)
    assert step is not None
    bench.scheduler.update(step, 30.0)
    other = "n" if step.model == "m" else "m"
    models = [step.model for step in bench.steps(40)]
    assert models[:8] == [other] * 8
    assert 10 <= models.count(other) < 32


def test_what_is_admitted_or_preempted_is_told_with_the_next_step_of_any_model() -> None:
    bench = two_models(max_num_seqs=2)
    bench.add("a", max_tokens=1000, priority="low")
    bench.add("b", max_tokens=1000, priority="high", model="n")
    bench.steps(9)
    bench.add("c", max_tokens=1000, model="n")
    step = bench.step()
    assert (step.preempted, step.admitted) == (("a",), (Admission("c"),))
    assert step.model == "n"


def test_removing_a_model_ends_its_sequences() -> None:
    bench = two_models(max_num_seqs=1)
    bench.add("a")
    step = bench.scheduler.schedule(bench.now)
    assert step is not None
    bench.add("b")
    bench.add("c", model="n")
    assert bench.scheduler.sequences("m") == ["a", "b"]
    assert bench.scheduler.remove_model("m") == ["a", "b"]
    bench.scheduler.update(step, 0.01)
    assert bench.step().admitted == (Admission("c"),)


def test_a_model_that_cannot_be_batched_runs_one_sequence_a_step_in_turns() -> None:
    bench = Bench(batchable=False)
    for name in "abc":
        bench.add(name, prompt=20)
    steps = bench.steps(12)
    assert all(len(step.decode) + len(step.prefill) == 1 for step in steps)
    counts = {name: sum(step.decode == (name,) for step in bench.steps(30)) for name in "abc"}
    assert counts == {"a": 10, "b": 10, "c": 10}


def test_prompts_have_one_turn_a_round_in_a_model_that_cannot_be_batched() -> None:
    bench = Bench(batchable=False)
    bench.add("a", max_tokens=1000)
    bench.add("b", max_tokens=1000)
    bench.steps(6)
    bench.add("long", prompt=5000)
    steps = bench.steps(9)
    assert sum(bool(step.prefill) for step in steps) == 3
    assert all(len(step.decode) + len(step.prefill) == 1 for step in steps)


# --- telemetry ----------------------------------------------------------------------------------------------------


def test_the_load_says_what_is_going_on() -> None:
    bench = Bench(SchedulerPolicy(max_num_seqs=3), kv=8)
    bench.add("a", prompt=10)
    bench.add("b", prompt=10)
    bench.steps(3)
    bench.add("long", prompt=1000)
    bench.add("waits")
    bench.step()
    bench.scheduler.pause("b")
    load = bench.scheduler.load()
    assert (load.queued, load.running, load.prefilling, load.paused) == (1, 1, 1, 1)
    assert load.kv_held_bytes == 8 * (13 + 13 + 32)
    assert load.kv_reserved_bytes == 8 * (109 + 109 + 1099)
    model = load.models["m"]
    assert (model.queued, model.running, model.prefilling, model.paused) == (1, 1, 1, 1)
    assert (model.done.steps, model.done.prefilled_tokens, model.done.decoded_tokens) == (4, 52, 6)
    assert model.done.prefill_s + model.done.decode_s == pytest.approx(0.04)
    assert model.done == load.done
    assert model.decode_step_s == pytest.approx(0.01)
    assert model.prefill_tokens_per_s > 0
    assert bench.scheduler.prefill_s("m", 0, 10) == pytest.approx(10 / model.prefill_tokens_per_s, rel=0.5)
    assert len(bench.scheduler) == 4


def test_the_load_is_told_of_each_model_and_of_all() -> None:
    bench = Bench()
    bench.scheduler.add_model("other", kv_bytes_per_token=1, batchable=True)
    bench.add("a", max_tokens=2)
    bench.add("b", model="other")
    bench.steps(3)
    load = bench.scheduler.load()
    one, other = load.models["m"], load.models["other"]
    assert (one.running, other.running) == (0, 1)
    assert load.running == 1
    assert load.done.steps == one.done.steps + other.done.steps
    assert load.done.prefilled_tokens == one.done.prefilled_tokens + other.done.prefilled_tokens


def test_who_awaits_the_prompt_of_another_is_queued_and_who_awaits_its_last_token_runs() -> None:
    bench = Bench()
    bench.add("a", prompt=10, max_tokens=1)
    bench.add("fork", prompt=10, fork_of="a")
    assert bench.scheduler.load().queued == 2
    step = bench.scheduler.schedule(bench.now)
    assert step is not None
    assert step.ending == ("a",)
    assert bench.scheduler.load().models["m"].running == 1


def test_the_work_of_a_model_that_is_gone_stays_in_the_total() -> None:
    bench = Bench()
    bench.add("a", max_tokens=5)
    bench.steps(5)
    done = bench.scheduler.load().done
    bench.scheduler.remove_model("m")
    load = bench.scheduler.load()
    assert load.models == {}
    assert load.done == done
    assert done.steps == 5


def test_a_model_that_did_nothing_yet_has_no_figures() -> None:
    model = Bench().scheduler.load().models["m"]
    assert model.done == WorkDone(0, 0, 0.0, 0, 0.0, 0, 0.0)
    assert (model.decode_step_s, model.prefill_tokens_per_s) == (0.0, 0.0)


# --- images -------------------------------------------------------------------------------------------------------


def test_the_tokens_of_an_image_are_computed_when_it_is_encoded() -> None:
    bench = Bench()
    bench.add("a", prompt=40, images=(ImageSpan(10, 20), ImageSpan(20, 35)))
    first = bench.step()
    assert first.admitted == (Admission("a"),)
    assert (first.encode, first.prefill, first.decode) == (Encode("a", 0, 10), (), ())
    assert bench.step().prefill == (PrefillChunk("a", 0, 20, last=False),)
    assert bench.step().encode == Encode("a", 1, 15)
    assert bench.step().prefill == (PrefillChunk("a", 20, 20, last=True),)
    done = bench.scheduler.load().done
    assert (done.encoded_images, done.encode_s) == (2, pytest.approx(0.02))
    assert done.prefilled_tokens == 40


@pytest.mark.parametrize("batchable", [True, False])
def test_between_two_images_others_have_a_step(batchable: bool) -> None:
    bench = Bench(batchable=batchable)
    bench.add("runs", prompt=5)
    bench.steps(2)
    bench.add("a", prompt=40, images=tuple(ImageSpan(start, start + 5) for start in range(0, 35, 5)))
    steps = bench.steps(14)
    assert [step.encode is not None for step in steps] == [True, False] * 7
    assert sum("runs" in step.decode for step in steps) >= (7 if batchable else 3)


def test_text_waits_for_one_image_at_most() -> None:
    bench = Bench()
    bench.add("a", prompt=400, images=tuple(ImageSpan(start, start + 5) for start in range(0, 390, 5)))
    assert bench.step().encode is not None
    bench.add("text", prompt=5)
    steps = bench.steps(2)
    assert "text" in [chunk.id for step in steps for chunk in step.prefill]


def test_the_image_of_who_is_more_urgent_is_encoded_first() -> None:
    bench = Bench()
    bench.add("a", prompt=40, images=(ImageSpan(0, 30),), priority="low")
    bench.add("b", prompt=40, images=(ImageSpan(0, 30),), priority="high")
    encoded = bench.step().encode
    assert encoded is not None
    assert encoded.id == "b"


def test_an_image_that_is_kept_or_covered_is_not_encoded() -> None:
    class Kept:
        def claim(self, id: str, index: int) -> bool:  # noqa: A002
            return index == 1

    bench = Bench()
    bench.scheduler = Scheduler(SchedulerPolicy(), _Covering(25), Kept())
    bench.scheduler.add_model("m", kv_bytes_per_token=1, batchable=True)
    bench.add("a", prompt=60, images=(ImageSpan(5, 25), ImageSpan(30, 40), ImageSpan(40, 45)))
    assert bench.step().encode == Encode("a", 2, 5)
    assert bench.step().prefill == (PrefillChunk("a", 25, 35, last=True),)


class _Covering:
    """As many first tokens of everybody are kept."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def covered(self, id: str) -> int:  # noqa: A002
        return self._tokens

    def claim(self, id: str) -> int:  # noqa: A002
        return self._tokens

    def shared(self, id: str, other: str) -> int:  # noqa: A002
        return 0


def test_who_goes_on_within_an_image_has_it_encoded_again() -> None:
    bench = Bench()
    bench.scheduler = Scheduler(SchedulerPolicy(), _Covering(25))
    bench.scheduler.add_model("m", kv_bytes_per_token=1, batchable=True)
    bench.add("a", prompt=60, images=(ImageSpan(20, 30),))
    assert bench.step().encode == Encode("a", 0, 10)
    assert bench.step().prefill == (PrefillChunk("a", 25, 35, last=True),)


def test_who_is_preempted_needs_its_images_again() -> None:
    bench = only(max_num_seqs=1)
    bench.add("a", prompt=40, images=(ImageSpan(5, 25),))
    bench.steps(3)
    bench.add("urgent", prompt=5, max_tokens=1, priority="critical")
    assert bench.step().preempted == ("a",)
    assert bench.step().encode == Encode("a", 0, 20)


def test_what_an_image_costs_is_learned_and_paid_for() -> None:
    """Models have turns by the device time that they take."""
    bench = Bench()
    bench.scheduler.add_model("n", kv_bytes_per_token=1, batchable=True)
    bench.add("runs", prompt=5, max_tokens=1000, model="n")
    bench.steps(2)
    bench.add("a", prompt=45, images=(ImageSpan(0, 20), ImageSpan(20, 40)))
    expected: list[float] = []
    turns: list[str] = []
    for _ in range(60):
        step = bench.scheduler.schedule(bench.now)
        assert step is not None
        turns.append(step.model)
        seconds = 0.1 if step.encode is not None else 0.01
        if step.encode is not None:
            expected.append(step.expected_s)
        bench.now += seconds
        bench.scheduler.update(step, seconds)
        if len(expected) == 2:
            break
    assert expected == [0.0, pytest.approx(0.1)]
    assert turns.count("n") >= 9
