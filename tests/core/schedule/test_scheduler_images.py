import pytest

from mlx_serving.core.schedule.encodings import ImageSpan
from mlx_serving.core.schedule.scheduling import Admission, Encode, PrefillChunk, SchedulerPolicy
from mlx_serving.core.scheduler import Scheduler

from .scheduler_bench import Bench, only


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
