import pytest

from mlx_serving.core.schedule.scheduling import Admission, PrefillChunk, SchedulerPolicy

from .scheduler_bench import Bench, only


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
