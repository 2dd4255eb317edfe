from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.generation import Delta, FinishReason, GenerationStats
from mlx_serving.core.stream import (
    Aborting,
    AbortRequested,
    Accepted,
    Completed,
    Deliver,
    Delivered,
    EndWith,
    Errored,
    Failed,
    Finished,
    Opened,
    Opening,
    Raise,
    Release,
    SendAbort,
    StreamEffect,
    StreamEvent,
    Streaming,
    StreamState,
    WorkerLost,
    step,
)
from mlx_serving.errors import GenerationError, WorkerDied

STATS = GenerationStats(5, 2, 0.5, 4.0, 1.0)
DELTA = Delta("ab", (1, 2))
DIED = WorkerDied("it crashed", signal=6)
ERROR = GenerationError("broken")


def run(state: StreamState, *events: StreamEvent) -> tuple[StreamState, Sequence[StreamEffect]]:
    effects: Sequence[StreamEffect] = ()
    for event in events:
        state, effects = step(state, event)
    return state, effects


def test_opening_becomes_streaming_when_the_worker_accepts() -> None:
    assert run(Opening(), Accepted()) == (Streaming(), (Opened(),))


def test_a_delta_that_overtakes_the_acceptance_implies_it() -> None:
    assert run(Opening(), Delivered(DELTA)) == (Streaming(), (Opened(), Deliver(DELTA)))
    assert run(Streaming(), Accepted()) == (Streaming(), ())


def test_an_end_that_overtakes_the_acceptance_implies_it() -> None:
    expected = (Finished(FinishReason.STOP), (Opened(), EndWith(FinishReason.STOP, STATS), Release()))
    assert run(Opening(), Completed(FinishReason.STOP, STATS)) == expected


def test_deltas_are_delivered_in_order() -> None:
    assert run(Streaming(), Delivered(DELTA)) == (Streaming(), (Deliver(DELTA),))
    assert run(Streaming(), Delivered(DELTA), Delivered(Delta("c", (3,))))[1] == (Deliver(Delta("c", (3,))),)


def test_a_completion_ends_the_stream_with_its_reason_and_stats() -> None:
    expected = (Finished(FinishReason.LENGTH), (EndWith(FinishReason.LENGTH, STATS), Release()))
    assert run(Streaming(), Completed(FinishReason.LENGTH, STATS)) == expected


@pytest.mark.parametrize("state", [Opening(), Streaming()])
@pytest.mark.parametrize("event", [Errored(ERROR), WorkerLost(DIED)])
def test_an_error_and_a_lost_worker_end_the_stream(state: StreamState, event: Errored | WorkerLost) -> None:
    assert run(state, event) == (Failed(event.error), (Raise(event.error), Release()))


@pytest.mark.parametrize("state", [Opening(), Streaming()])
def test_an_abort_is_sent_to_the_worker(state: Opening | Streaming) -> None:
    assert run(state, AbortRequested()) == (Aborting(), (SendAbort(),))


@pytest.mark.parametrize("reason", FinishReason)
def test_the_confirmation_ends_an_aborted_stream_with_reason_abort(reason: FinishReason) -> None:
    expected = (Finished(FinishReason.ABORT), (EndWith(FinishReason.ABORT, STATS), Release()))
    assert run(Aborting(), Completed(reason, STATS)) == expected


@pytest.mark.parametrize("event", [Accepted(), Delivered(DELTA), AbortRequested()])
def test_what_arrives_while_aborting_is_not_delivered(event: StreamEvent) -> None:
    assert run(Aborting(), event) == (Aborting(), ())


@pytest.mark.parametrize("event", [WorkerLost(DIED), Errored(ERROR)])
def test_losing_the_worker_while_aborting_is_a_confirmation_too(event: StreamEvent) -> None:
    expected = (Finished(FinishReason.ABORT), (EndWith(FinishReason.ABORT), Release()))
    assert run(Aborting(), event) == expected


@pytest.mark.parametrize("ended", [Finished(FinishReason.STOP), Failed(ERROR)])
@pytest.mark.parametrize(
    "event",
    [
        Accepted(),
        Delivered(DELTA),
        Completed(FinishReason.STOP, STATS),
        Errored(ERROR),
        AbortRequested(),
        WorkerLost(DIED),
    ],
)
def test_whatever_arrives_after_the_ending_is_ignored(ended: StreamState, event: StreamEvent) -> None:
    assert run(ended, event) == (ended, ())


EVENTS = st.one_of(
    st.just(Accepted()),
    st.builds(Delivered, st.builds(Delta, st.text(max_size=2), st.lists(st.integers(0, 9), max_size=3).map(tuple))),
    st.builds(Completed, st.sampled_from(FinishReason), st.just(STATS)),
    st.just(Errored(ERROR)),
    st.just(AbortRequested()),
    st.just(WorkerLost(DIED)),
)


@given(st.lists(EVENTS, max_size=30))
def test_any_history_keeps_the_invariants(events: list[StreamEvent]) -> None:
    state: StreamState = Opening()
    history: list[StreamEffect] = []
    for event in events:
        before = state
        state, effects = step(state, event)
        ended_before = isinstance(before, Finished | Failed)
        ended = isinstance(state, Finished | Failed)
        assert not (ended_before and effects)
        assert (Release() in effects) == (ended and not ended_before)
        history.extend(effects)
    kinds = [type(effect) for effect in history]
    endings = [kind for kind in kinds if kind in (EndWith, Raise)]
    assert len(endings) == kinds.count(Release) == isinstance(state, Finished | Failed)
    if endings:
        assert kinds[-2:] == [endings[0], Release]
    assert kinds.count(Opened) <= 1
    if Deliver in kinds:
        assert kinds.index(Opened) < kinds.index(Deliver)
    if SendAbort in kinds:
        assert Deliver not in kinds[kinds.index(SendAbort) :]
