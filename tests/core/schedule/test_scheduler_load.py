import pytest

from mlx_serving.core.schedule.scheduling import SchedulerPolicy, WorkDone

from .scheduler_bench import Bench


def test_the_load_says_what_is_going_on() -> None:
    bench = Bench(SchedulerPolicy(max_num_seqs=3), kv=8)
    bench.add("a", prompt=10)
    bench.add("b", prompt=10)
    bench.steps(3)
    bench.add("long", prompt=1000)
    bench.add("waits", prompt=1001)
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
