from math import inf

import pytest

from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.core.schedule.scheduling import Admission, SchedulerPolicy
from mlx_serving.errors import ContextLengthExceeded, Overloaded

from .scheduler_bench import Bench, only


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
    bench.steps(20)
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


def test_who_needs_what_others_would_lend_is_accepted_and_let_in_when_it_is_lent() -> None:
    bench = only(max_num_seqs=1, kv_budget_bytes=1000)
    memory = bench.scheduler.memory
    bench.add("teaches", prompt=10, max_tokens=2)  # that answers are short
    bench.steps(2)
    memory.allow(kv_caches=50, lendable=100, ceiling=1000, prefill=1, relief=1.0)
    with pytest.raises(Overloaded) as refused:
        bench.add("too large", prompt=100, max_tokens=60)
    assert (refused.value.details["limit"], refused.value.details["lacking_bytes"]) == (151, 9)
    bench.add("large", prompt=10, max_tokens=140)
    assert memory.demand == 149, "though it is thought to be shorter"
    memory.allow(kv_caches=150, ceiling=1000, prefill=1)
    assert bench.scheduler.refuse_oversized() == []
    assert bench.step().admitted == (Admission("large"),)
    assert memory.demand < 149


def test_the_first_who_waits_for_memory_wants_it_of_models_that_could_go() -> None:
    def allow(kv_caches: int, relief: float, most: float = inf, free: float = inf) -> None:
        bench.scheduler.memory.allow(kv_caches=kv_caches, ceiling=1000, prefill=1, free=free, relief=relief, most=most)

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
    allow(200, relief=0.5, free=100 - bench.scheduler.memory.held)
    bench.step()
    assert bench.scheduler.memory.wanted(bench.now) == ("m", 2 * lacking)
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


def test_caches_that_take_more_than_their_tokens_cost_one_sequence_a_look_but_never_the_last() -> None:
    bench = only(kv_budget_bytes=1000)
    for name in "abc":
        bench.add(name, prompt=10, max_tokens=100)
    bench.steps(20)

    def look(free: int) -> tuple[str, ...]:
        bench.scheduler.memory.allow(kv_caches=1000, ceiling=1000, prefill=1, free=free)
        return bench.step().preempted

    assert look(3) == ()
    assert look(-500) == ("c",)
    assert look(1) == ("b",)
    assert look(-500) == ()
    assert bench.scheduler.memory.held > 20
    assert bench.scheduler.load().running == 1


def test_who_comes_waits_while_caches_take_more_than_their_tokens() -> None:
    bench = only(kv_budget_bytes=1000)
    bench.add("runs", prompt=10, max_tokens=30)
    bench.step()
    memory = bench.scheduler.memory
    unfilled = memory.reserved - memory.held
    memory.allow(kv_caches=1000, ceiling=1000, prefill=1, free=unfilled + 38)
    bench.add("comes", prompt=10, max_tokens=30)
    assert all(step.admitted == () for step in bench.steps(5))
    assert memory.spare == 38
    memory.allow(kv_caches=1000, ceiling=1000, prefill=1, free=unfilled - 5 + 39)
    assert bench.step().admitted == (Admission("comes"),)


def test_who_comes_while_nobody_runs_does_not_wait_for_memory_that_nobody_gives_back() -> None:
    bench = only(kv_budget_bytes=1000)
    bench.scheduler.memory.allow(kv_caches=1000, ceiling=1000, prefill=1, free=-1)
    bench.add("alone", prompt=100, max_tokens=3)
    assert bench.step().admitted == (Admission("alone"),)
    while len(bench.scheduler):
        bench.step()
    assert bench.scheduler.load().preemptions == 0


def test_pieces_of_prompts_are_no_larger_than_what_memory_has_left() -> None:
    bench = only(kv_budget_bytes=10_000, min_prefill_chunk=10, max_prefill_chunk=100)
    bench.add("long", prompt=1000)
    bench.step()
    bench.scheduler.memory.allow(kv_caches=10_000, ceiling=10_000, prefill=10**6, free=25)
    [piece] = bench.step().prefill
    assert piece.count == 20
    [piece] = bench.step().prefill
    assert piece.count == 10


def test_who_comes_while_others_are_only_paused_goes_on_at_their_cost() -> None:
    bench = only(kv_budget_bytes=1000)
    bench.add("paused", prompt=10, max_tokens=100)
    bench.steps(2)
    bench.scheduler.pause("paused")
    bench.scheduler.memory.allow(kv_caches=1000, ceiling=1000, prefill=1, free=-500)
    bench.add("comes", prompt=10, max_tokens=30)
    assert bench.step().admitted == (Admission("comes"),)
    assert bench.step().preempted == ("paused",)
