from dataclasses import replace

import pytest

from mlx_serving.core.generation import (
    Delta,
    Embedding,
    EmbeddingInputs,
    FinishReason,
    GenerationRequest,
    GenerationStats,
    SamplingParams,
    TextPrompt,
)
from mlx_serving.core.recovery import Recovery
from mlx_serving.core.speculation.request import Speculation
from mlx_serving.errors import (
    CircuitOpen,
    EngineClosed,
    EngineError,
    InvalidRequest,
    ModelNotLoaded,
    ModelReplaced,
    Overloaded,
    RequestCrashedWorker,
    WorkerDied,
    WorkerGaveUp,
    WorkerHung,
)

ASKED = GenerationRequest("r", "m", TextPrompt("Hi"), SamplingParams(seed=7), fork_of="other")
LOST = WorkerDied("gone")
STATS = GenerationStats(
    prompt_tokens=5, tokens_generated=4, time_to_first_token=9.0, tokens_per_second=9.0, total_time=9.0
)


def recovery(asked: GenerationRequest = ASKED) -> Recovery:
    return Recovery(asked, seed=1, now=10.0)


def test_the_first_attempt_is_the_request_itself() -> None:
    assert recovery().next_request() is ASKED


def test_a_request_without_a_seed_draws_the_same_numbers_in_every_worker() -> None:
    unseeded = replace(ASKED, sampling=SamplingParams())
    one = recovery(unseeded)
    assert one.next_request() == replace(unseeded, sampling=SamplingParams(seed=1))
    one.retry_after(LOST)
    assert one.next_request().sampling.seed == 1


def test_the_next_attempt_goes_on_behind_what_was_delivered() -> None:
    one = recovery()
    one.advance(Delta("a", (1,)), 11.0)
    one.advance(Delta("", (2, 3)), 11.0)
    assert one.retry_after(LOST) == 0
    assert one.next_request() == replace(ASKED, delivered=(1, 2, 3), fork_of=None)
    one.advance(Delta("b", (4,)), 12.0)
    assert one.retry_after(LOST) == 0
    assert one.next_request().delivered == (1, 2, 3, 4)
    assert (one.delivered, one.losses) == (4, 2)


def test_what_its_reader_had_from_the_start_is_kept() -> None:
    one = recovery(replace(ASKED, delivered=(8, 9)))
    assert one.next_request().delivered == (8, 9)
    one.advance(Delta("a", (1,)), 11.0)
    one.retry_after(LOST)
    assert one.next_request().delivered == (8, 9, 1)


@pytest.mark.parametrize("error", [LOST, WorkerHung("stuck")])
def test_a_lost_worker_is_followed_by_the_next(error: EngineError) -> None:
    one = recovery()
    assert [one.retry_after(error) for _ in range(20)] == [0.0] * 20
    assert one.losses == 20


@pytest.mark.parametrize(
    "error",
    [
        WorkerGaveUp("no more"),
        RequestCrashedWorker("it was you"),
        EngineClosed("closed"),
        InvalidRequest("bad"),
        CircuitOpen("open", retry_after=1),
    ],
)
def test_other_errors_end_the_request(error: EngineError) -> None:
    one = recovery()
    one.admitted()
    assert one.retry_after(error) is None
    assert one.losses == 0


def test_a_full_queue_is_waited_for_by_who_had_a_place_before() -> None:
    full = Overloaded("full", retry_after=2.5)
    one = recovery()
    assert one.retry_after(full) is None
    assert not one.accepted
    one.admitted()
    assert one.accepted
    assert one.retry_after(full) == 2.5


def test_a_model_that_went_with_its_worker_is_asked_for_again_but_not_for_ever() -> None:
    one = recovery()
    away = ModelNotLoaded("away")
    assert [one.retry_after(away) for _ in range(4)] == [0.0, 0.0, 0.0, None]
    one.admitted()
    assert one.retry_after(away) == 0


def test_a_replaced_model_is_followed_by_its_successor_however_often() -> None:
    one = recovery()
    one.advance(Delta("a", (1,)), 11.0)
    assert [one.retry_after(ModelReplaced("replaced")) for _ in range(20)] == [0.0] * 20
    assert one.losses == 0
    assert one.next_request() == replace(ASKED, delivered=(1,), fork_of=None)
    last = one.advance(Delta("", (), FinishReason.STOP, STATS), 17.0)
    assert last.stats is not None
    assert last.stats.total_time == 7.0


def test_deltas_pass_as_they_are() -> None:
    one = recovery()
    for delta in (Delta("a", (1,)), Delta("b"), Delta("", (), FinishReason.STOP, STATS)):
        assert one.advance(delta, 11.0) is delta


def test_the_stats_of_a_recovered_stream_span_all_workers() -> None:
    one = recovery()
    one.advance(Delta("a", (1,)), 11.0)
    one.retry_after(LOST)
    last = one.advance(Delta("", (), FinishReason.STOP, STATS), 17.0)
    assert last.stats == GenerationStats(
        prompt_tokens=5, tokens_generated=4, time_to_first_token=1.0, tokens_per_second=0.5, total_time=7.0
    )
    assert last.finish_reason is FinishReason.STOP


def test_a_recovered_stream_without_a_token_has_no_speed() -> None:
    one = recovery()
    one.retry_after(LOST)
    last = one.advance(Delta("", (), FinishReason.STOP, replace(STATS, tokens_generated=0)), 12.0)
    assert last.stats is not None
    assert (last.stats.time_to_first_token, last.stats.tokens_per_second) == (2.0, 0.0)


def test_what_was_cached_is_what_the_first_worker_found_that_delivered_anything() -> None:
    one = recovery()
    first = one.advance(Delta("a", (1,), cached_tokens=2), 11.0)
    assert first == Delta("a", (1,))  # it is for the stats
    one.retry_after(LOST)
    one.advance(Delta("b", (2,), cached_tokens=5), 12.0)
    last = one.advance(Delta("", (), FinishReason.STOP, replace(STATS, cached_tokens=5)), 13.0)
    assert last.stats is not None
    assert last.stats.cached_tokens == 2


def test_a_stream_that_is_not_recovered_tells_what_its_worker_found() -> None:
    one = recovery()
    one.advance(Delta("a", (1,), cached_tokens=3), 11.0)
    last = one.advance(Delta("", (), FinishReason.STOP, replace(STATS, cached_tokens=3)), 12.0)
    assert last.stats == replace(STATS, cached_tokens=3)


def test_nothing_was_cached_for_a_stream_that_goes_on_behind_what_an_earlier_server_delivered() -> None:
    one = recovery(replace(ASKED, delivered=(1, 2)))
    last = one.advance(Delta("", (), FinishReason.STOP, replace(STATS, cached_tokens=4)), 12.0)
    assert last.stats == STATS


def test_vectors_that_were_delivered_are_not_asked_for_again() -> None:
    inputs = EmbeddingInputs(("a", "b", "c"))
    asked = replace(ASKED, prompt=inputs)
    one = recovery(asked)
    assert one.next_request().prompt == inputs
    one.advance(Delta("", embeddings=(Embedding(2, b"", 5),)), 11.0)
    assert one.retry_after(LOST) == 0.0
    assert one.next_request() == replace(asked, prompt=replace(inputs, delivered=frozenset({2})), fork_of=None)
    assert one.delivered == 1
    last = one.advance(
        Delta("", (), FinishReason.STOP, STATS, embeddings=(Embedding(0, b"", 1), Embedding(1, b"", 1))), 12.0
    )
    assert last.stats is not None
    assert last.stats.prompt_tokens == 7


def test_a_draft_model_is_insisted_on_until_something_was_lost() -> None:
    asked = replace(ASKED, speculation=Speculation("draft", "small", 4))
    one = Recovery(asked, 7, 10.0)
    assert one.next_request().speculation == asked.speculation
    one.retry_after(WorkerDied("gone"))
    assert one.next_request().speculation == Speculation("draft", "small", 4, optional=True)
    resumed = Recovery(replace(asked, delivered=(1,)), 7, 10.0)
    assert resumed.next_request().speculation.optional
