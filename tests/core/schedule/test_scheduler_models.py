from typing import Any

from mlx_serving.core.schedule.scheduling import Admission, SchedulerPolicy

from .scheduler_bench import Bench


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
