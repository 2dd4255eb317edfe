import pytest

from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.errors import ContextLengthExceeded, ModelNotLoaded, Overloaded

from .scheduler_bench import Bench, only


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
