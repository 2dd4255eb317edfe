from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.embedding.queue import PASS_TOKENS, EmbeddingPass, EmbeddingQueue
from mlx_serving.core.schedule.prefill_memory import PrefillMemory
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.errors import Overloaded

PLENTY = 1e12


def queue_of(
    *models: str, memory: PrefillMemory | None = None, policy: SchedulerPolicy | None = None
) -> EmbeddingQueue:
    queue = EmbeddingQueue(policy or SchedulerPolicy())
    for model in models or ("m",):
        queue.add_model(model, memory or PrefillMemory())
    return queue


def take(queue: EmbeddingQueue, tokens: float = PLENTY, now: float = 0.0, memory: float = PLENTY) -> EmbeddingPass:
    step = queue.next(now, {"m": tokens, "n": tokens}, memory)
    assert step is not None
    return step


def test_inputs_are_taken_longest_first_and_padded_little() -> None:
    queue = queue_of()
    queue.add("r", "m", dict(enumerate([5, 200, 210, 90, 6])), 0.0)
    assert take(queue) == EmbeddingPass("m", (("r", 2), ("r", 1)), 210)
    assert take(queue) == EmbeddingPass("m", (("r", 3),), 90)
    assert take(queue).tokens == 12
    assert queue.next(0.0, {"m": PLENTY}, PLENTY) is None
    assert len(queue) == 1
    assert not queue.has_work
    assert queue.remove("r")
    assert not queue.remove("r")


def test_a_pass_keeps_to_its_tokens_but_for_one_input() -> None:
    queue = queue_of()
    queue.add("r", "m", dict.fromkeys(range(5), 10), 0.0)
    assert [len(take(queue, tokens).rows) for tokens in (25, 9, 0)] == [2, 1, 1]


def test_a_pass_keeps_to_its_memory() -> None:
    queue = queue_of(memory=PrefillMemory(per_token=10.0))
    queue.add("r", "m", dict.fromkeys(range(5), 10), 0.0)
    assert len(take(queue, memory=399.0).rows) == 3


def test_a_text_beside_a_thousand_others_waits_for_one_pass() -> None:
    queue = queue_of()
    queue.add("many", "m", dict.fromkeys(range(1000), 100), 0.0)
    take(queue, 400)
    queue.add("one", "m", {0: 5}, 1.0)
    assert take(queue, 400).rows == (("one", 0),)
    assert take(queue, 400).rows[0][0] == "many"


def test_requests_for_one_model_share_passes() -> None:
    queue = queue_of("m", "n")
    for name in ("a", "b", "c"):
        queue.add(name, "m", {0: 10, 1: 200}, 0.0)
    queue.add("other", "n", {0: 10}, 0.0)
    assert take(queue).rows == (("a", 1), ("b", 1), ("c", 1))
    assert take(queue) == EmbeddingPass("n", (("other", 0),), 10)
    assert Counter(name for name, _ in take(queue).rows) == {"a": 1, "b": 1, "c": 1}


def test_who_has_longer_inputs_is_joined_by_those_that_fit() -> None:
    queue = queue_of()
    queue.add("short", "m", {0: 10}, 0.0, priority="high")
    queue.add("mixed", "m", {0: 100, 1: 50, 2: 10}, 0.0)
    assert take(queue).rows == (("short", 0), ("mixed", 2))
    assert [take(queue).rows, take(queue).rows] == [(("mixed", 0),), (("mixed", 1),)]


def test_callers_take_turns_and_priorities_go_first() -> None:
    queue = queue_of()
    for number in range(3):
        queue.add(f"a{number}", "m", {0: 10}, 0.0, caller="a")
    queue.add("b", "m", {0: 10}, 0.1, caller="b")
    queue.add("low", "m", {0: 10}, 0.0, priority="low")
    queue.add("high", "m", {0: 10}, 0.2, priority="high")
    order = [take(queue, 1).rows[0][0] for _ in range(6)]
    assert order == ["high", "a0", "b", "a1", "a2", "low"]


def test_waiting_raises_a_priority() -> None:
    queue = queue_of(policy=SchedulerPolicy(ageing_s=1.0))
    queue.add("low", "m", {0: 10}, 0.0, priority="low")
    queue.add("new", "m", {0: 10}, 2.5)
    assert take(queue, 1, now=2.5).rows == (("low", 0),)


def test_more_than_may_wait_is_refused() -> None:
    queue = queue_of(policy=SchedulerPolicy(max_num_seqs=1, max_queue=2))
    for number in range(3):
        queue.add(str(number), "m", {0: 1}, 0.0)
    with pytest.raises(Overloaded):
        queue.add("more", "m", {0: 1}, 0.0)
    assert queue.requests("m") == ["0", "1", "2"]
    assert "0" in queue
    assert "more" not in queue


def test_a_deadline_ends_a_request() -> None:
    queue = queue_of()
    queue.add("r", "m", {0: 1}, 0.0, deadline=5.0)
    queue.add("done", "m", {0: 1}, 0.0, deadline=5.0)
    queue.remove("done")
    assert queue.next_deadline == 5.0
    assert queue.expire(4.0) == []
    assert queue.expire(5.0) == ["r"]
    assert len(queue) == 0
    queue.remove_model("m")


_LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=20)


@given(st.lists(_LENGTHS, min_size=1, max_size=6), st.integers(0, 1000), st.integers(0, 5))
def test_every_input_is_computed_once_within_the_bounds(requests: list[list[int]], tokens: int, removed: int) -> None:
    queue = queue_of("m", "n")
    lengths: dict[tuple[str, int], int] = {}
    for number, each in enumerate(requests):
        queue.add(str(number), "mn"[number % 2], dict(enumerate(each)), 0.0, caller=str(number % 3))
        lengths |= {(str(number), place): length for place, length in enumerate(each)}
    done: Counter[tuple[str, int]] = Counter()
    while (step := queue.next(0.0, {"m": tokens, "n": tokens}, PLENTY)) is not None:
        done.update(step.rows)
        assert step.width == max(lengths[row] for row in step.rows)
        assert step.tokens <= max(tokens, step.width)
        assert {"mn"[int(name) % 2] for name, _ in step.rows} == {step.model}
        assert all(step.width <= max(lengths[row] + PASS_TOKENS, lengths[row] * 1.25) for row in step.rows)
        if sum(done.values()) > 10:
            queue.remove(str(removed))
    left = {row for row in lengths if row[0] != str(removed)}
    assert left <= set(done)
    assert set(done.values()) == {1}
