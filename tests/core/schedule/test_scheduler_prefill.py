from .scheduler_bench import Bench, only


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
