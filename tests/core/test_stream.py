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
    Progress,
    Raise,
    Readmitted,
    Recovering,
    Release,
    Resubmit,
    SendAbort,
    StreamEffect,
    StreamEvent,
    Streaming,
    StreamPolicy,
    StreamState,
    WorkerLost,
    start,
    step,
)
from mlx_serving.errors import GenerationError, WorkerDied, WorkerHung

FAIL = StreamPolicy()
RECOVER = StreamPolicy(recover=True)
STATS = GenerationStats(5, 2, 0.5, 4.0, 1.0)
DELTA = Delta("ab", (1, 2))
DIED = WorkerDied("it crashed", signal=6)
ERROR = GenerationError("broken")

OPENING = start(10.0)
STREAMING = Streaming(Progress(10.0, prompt_tokens=5))
ABORTING = Aborting(Progress(10.0, prompt_tokens=5))
RECOVERING = Recovering(Progress(10.0, 5, 3, 11.0, losses=1), accepted=True, since=12.0)
RECOVERING_UNACCEPTED = Recovering(Progress(10.0, losses=1), accepted=False, since=12.0)


def run(
    state: StreamState, *events: StreamEvent, now: float = 20.0, policy: StreamPolicy = FAIL
) -> tuple[StreamState, Sequence[StreamEffect]]:
    effects: Sequence[StreamEffect] = ()
    for event in events:
        state, effects = step(state, event, now, policy)
    return state, effects


def test_opening_becomes_streaming_when_the_worker_accepts() -> None:
    assert run(OPENING, Accepted(5)) == (STREAMING, (Opened(),))


def test_a_delta_that_overtakes_the_acceptance_implies_it() -> None:
    state, effects = run(OPENING, Delivered(DELTA))
    assert effects == (Opened(), Deliver(DELTA))
    assert state == Streaming(Progress(10.0, None, 2, 20.0))
    assert run(state, Accepted(5)) == (Streaming(Progress(10.0, 5, 2, 20.0)), ())


def test_an_end_that_overtakes_the_acceptance_implies_it() -> None:
    expected = (Finished(FinishReason.STOP), (Opened(), EndWith(FinishReason.STOP, STATS), Release()))
    assert run(OPENING, Completed(FinishReason.STOP, STATS)) == expected


def test_deltas_are_delivered_and_their_tokens_counted() -> None:
    state, effects = run(STREAMING, Delivered(DELTA), Delivered(Delta("c", (3,))))
    assert effects == (Deliver(Delta("c", (3,))),)
    assert state == Streaming(Progress(10.0, 5, 3, 20.0))


def test_the_first_token_is_the_first_delta_with_a_token() -> None:
    state, _ = run(STREAMING, Delivered(Delta("")), now=11.0)
    assert run(state, Delivered(DELTA), now=12.0)[0] == Streaming(Progress(10.0, 5, 2, 12.0))


def test_a_completion_ends_the_stream_with_its_reason_and_stats() -> None:
    expected = (Finished(FinishReason.LENGTH), (EndWith(FinishReason.LENGTH, STATS), Release()))
    assert run(STREAMING, Completed(FinishReason.LENGTH, STATS)) == expected


@pytest.mark.parametrize("state", [OPENING, STREAMING, RECOVERING])
def test_an_error_of_the_worker_ends_the_stream_with_that_error(state: StreamState) -> None:
    assert run(state, Errored(ERROR)) == (Failed(ERROR), (Raise(ERROR), Release()))


@pytest.mark.parametrize("state", [OPENING, STREAMING])
def test_an_abort_is_sent_to_the_worker(state: Opening | Streaming) -> None:
    assert run(state, AbortRequested()) == (Aborting(state.progress), (SendAbort(),))


@pytest.mark.parametrize("reason", FinishReason)
def test_the_confirmation_ends_an_aborted_stream_with_reason_abort(reason: FinishReason) -> None:
    expected = (Finished(FinishReason.ABORT), (EndWith(FinishReason.ABORT, STATS), Release()))
    assert run(ABORTING, Completed(reason, STATS)) == expected


@pytest.mark.parametrize("event", [Accepted(5), Delivered(DELTA), AbortRequested(), Readmitted(5)])
def test_what_arrives_while_aborting_is_not_delivered(event: StreamEvent) -> None:
    assert run(ABORTING, event) == (ABORTING, ())


@pytest.mark.parametrize("event", [WorkerLost(DIED), Errored(ERROR)])
@pytest.mark.parametrize("policy", [FAIL, RECOVER])
def test_losing_the_worker_while_aborting_is_a_confirmation_too(event: StreamEvent, policy: StreamPolicy) -> None:
    expected = (Finished(FinishReason.ABORT), (EndWith(FinishReason.ABORT), Release()))
    assert run(ABORTING, event, policy=policy) == expected


@pytest.mark.parametrize("state", [OPENING, STREAMING])
def test_without_recovery_losing_the_worker_ends_the_stream_with_the_typed_error(state: StreamState) -> None:
    assert run(state, WorkerLost(DIED)) == (Failed(DIED), (Raise(DIED), Release()))


def test_with_recovery_the_stream_asks_to_continue_after_its_delivered_tokens() -> None:
    state, effects = run(STREAMING, Delivered(DELTA), WorkerLost(DIED), policy=RECOVER)
    assert state == Recovering(Progress(10.0, 5, 2, 20.0, losses=1), accepted=True, since=20.0)
    assert effects == (Resubmit(2),)


def test_with_recovery_a_request_that_was_not_accepted_is_submitted_again() -> None:
    state, effects = run(OPENING, WorkerLost(DIED), now=12.0, policy=RECOVER)
    assert (state, effects) == (RECOVERING_UNACCEPTED, (Resubmit(0),))


@pytest.mark.parametrize("event", [Readmitted(5), Accepted(5)])
def test_a_readmitted_stream_goes_on_where_it_was(event: StreamEvent) -> None:
    assert run(RECOVERING, event) == (Streaming(RECOVERING.progress), ())
    accepted_at_last = (Streaming(Progress(10.0, 5, losses=1)), (Opened(),))
    assert run(RECOVERING_UNACCEPTED, event) == accepted_at_last


def test_what_overtakes_the_readmission_implies_it() -> None:
    state, effects = run(RECOVERING, Delivered(DELTA))
    assert (state, effects) == (Streaming(Progress(10.0, 5, 5, 11.0, 1)), (Deliver(DELTA),))
    assert run(RECOVERING_UNACCEPTED, Delivered(DELTA))[1] == (Opened(), Deliver(DELTA))
    assert run(RECOVERING, Completed(FinishReason.STOP))[0] == Finished(FinishReason.STOP)
    assert run(RECOVERING_UNACCEPTED, Completed(FinishReason.STOP))[1][0] == Opened()


@pytest.mark.parametrize("state", [OPENING, STREAMING])
def test_a_readmission_that_nobody_waits_for_delivers_nothing(state: StreamState) -> None:
    assert run(state, Readmitted(99)) == (state, ())


def test_a_stream_in_flight_in_too_many_losses_is_the_likely_cause_and_fails_alone() -> None:
    state, effects = run(RECOVERING, Readmitted(5), WorkerLost(WorkerHung("stuck", signal=9)), policy=RECOVER)
    assert isinstance(state, Failed)
    assert isinstance(state.error, WorkerHung)
    assert state.error.details == {"signal": 9, "losses": 2}
    assert "lost 2 times while it served this request, which is the likely cause: stuck" in state.error.message
    assert effects == (Raise(state.error), Release())


def test_a_second_loss_before_the_readmission_counts_too() -> None:
    state, _ = run(RECOVERING, WorkerLost(DIED), policy=RECOVER)
    assert isinstance(state, Failed)
    patient = StreamPolicy(recover=True, max_worker_losses=3)
    again, effects = run(RECOVERING, WorkerLost(DIED), now=15.0, policy=patient)
    assert again == Recovering(Progress(10.0, 5, 3, 11.0, losses=2), accepted=True, since=15.0)
    assert effects == (Resubmit(3),)


def test_a_policy_may_blame_at_the_first_loss() -> None:
    state, _ = run(STREAMING, WorkerLost(DIED), policy=StreamPolicy(recover=True, max_worker_losses=1))
    assert isinstance(state, Failed)
    assert "lost once" in state.error.message


def test_aborting_a_stream_that_is_recovering_ends_it_at_once() -> None:
    state, effects = run(RECOVERING, AbortRequested())
    assert state == Finished(FinishReason.ABORT)
    assert [type(effect) for effect in effects] == [SendAbort, EndWith, Release]


def test_the_stats_of_a_recovered_stream_span_all_of_it() -> None:
    state, _ = run(RECOVERING, Readmitted(5), Delivered(DELTA), now=15.0)
    _, effects = run(state, Completed(FinishReason.STOP, STATS), now=21.0)
    spanning = GenerationStats(
        prompt_tokens=5, tokens_generated=5, time_to_first_token=1.0, tokens_per_second=0.4, total_time=11.0
    )
    assert effects == (EndWith(FinishReason.STOP, spanning), Release())


def test_a_recovered_stream_without_a_token_has_no_speed() -> None:
    _, effects = run(RECOVERING_UNACCEPTED, Completed(FinishReason.STOP, STATS), now=21.0)
    assert effects[1] == EndWith(FinishReason.STOP, GenerationStats(0, 0, 11.0, 0.0, 11.0))


@pytest.mark.parametrize("ended", [Finished(FinishReason.STOP), Failed(ERROR)])
@pytest.mark.parametrize(
    "event",
    [
        Accepted(1),
        Delivered(DELTA),
        Completed(FinishReason.STOP),
        Errored(ERROR),
        AbortRequested(),
        WorkerLost(DIED),
        Readmitted(1),
    ],
)
def test_whatever_arrives_after_the_ending_is_ignored(ended: StreamState, event: StreamEvent) -> None:
    assert run(ended, event, policy=RECOVER) == (ended, ())


def test_a_policy_out_of_its_limits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^max_worker_losses must be at least 1, got 0$"):
        StreamPolicy(max_worker_losses=0)


EVENTS = st.one_of(
    st.builds(Accepted, st.integers(1, 9)),
    st.builds(Delivered, st.builds(Delta, st.text(max_size=2), st.lists(st.integers(0, 9), max_size=3).map(tuple))),
    st.builds(Completed, st.sampled_from(FinishReason), st.none() | st.just(STATS)),
    st.just(Errored(ERROR)),
    st.just(AbortRequested()),
    st.just(WorkerLost(DIED)),
    st.builds(Readmitted, st.integers(1, 9)),
)


@given(
    events=st.lists(st.tuples(EVENTS, st.floats(0, 5)), max_size=30),
    policy=st.builds(StreamPolicy, recover=st.booleans(), max_worker_losses=st.integers(1, 4)),
)
def test_any_history_keeps_the_invariants(events: list[tuple[StreamEvent, float]], policy: StreamPolicy) -> None:
    state: StreamState = start(0.0)
    now = 0.0
    history: list[StreamEffect] = []
    for event, pause in events:
        now += pause
        before = state
        state, effects = step(state, event, now, policy)
        ended_before = isinstance(before, Finished | Failed)
        ended = isinstance(state, Finished | Failed)
        assert not (ended_before and effects)
        assert (Release() in effects) == (ended and not ended_before)
        if Resubmit in map(type, effects):
            delivered = sum(len(effect.delta.token_ids) for effect in history if isinstance(effect, Deliver))
            assert effects == (Resubmit(delivered),)
            assert policy.recover
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
    assert kinds.count(Resubmit) < policy.max_worker_losses
