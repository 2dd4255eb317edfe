from mlx_serving.core.schedule.scheduling import Admission, PrefillChunk

from .scheduler_bench import Bench, only


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
