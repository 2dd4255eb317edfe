from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.circuit_breaker import (
    Admit,
    CallAbandoned,
    CallFailed,
    CallRequested,
    CallSucceeded,
    CircuitBreakerPolicy,
    CircuitEvent,
    CircuitState,
    Closed,
    HalfOpen,
    Open,
    Reason,
    Reject,
    Transition,
    result_of,
    step,
)
from mlx_serving.errors import (
    Aborted,
    DeadlineExceeded,
    GenerationError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProtocolError,
    WorkerDied,
    WorkerHung,
)

POLICY = CircuitBreakerPolicy(failure_threshold=3, failure_window_s=60.0, recovery_timeout_s=10.0)


def run(state: CircuitState, *events: CircuitEvent, now: float = 0.0, policy: CircuitBreakerPolicy = POLICY):
    effects: Sequence[object] = ()
    for event in events:
        state, effects = step(state, event, now, policy)
    return state, effects


def test_closed_admits_every_call() -> None:
    assert run(Closed(), CallRequested()) == (Closed(), (Admit(0),))
    assert run(Closed((1.0, 2.0), 4), CallRequested()) == (Closed((1.0, 2.0), 4), (Admit(4),))


@pytest.mark.parametrize("event", [CallSucceeded(0), CallAbandoned(0)])
def test_closed_keeps_its_record_when_calls_do_not_fail(event: CircuitEvent) -> None:
    assert run(Closed((1.0,)), event) == (Closed((1.0,)), ())


def test_failures_older_than_the_window_are_forgotten() -> None:
    assert run(Closed((0.0, 1.0)), CallFailed(0), now=60.5) == (Closed((1.0, 60.5)), ())


def test_the_failure_that_reaches_the_threshold_opens_the_breaker() -> None:
    closed = Closed((1.0, 2.0))
    opened = Open(until=13.0, epoch=1)
    expected = (opened, (Transition(closed, opened, Reason.FAILURE_THRESHOLD_EXCEEDED),))
    assert run(closed, CallFailed(0), now=3.0) == expected


def test_open_rejects_every_call_and_says_how_long() -> None:
    opened = Open(until=13.0, epoch=1)
    assert run(opened, CallRequested(), now=5.0) == (opened, (Reject(8.0),))


def test_the_first_call_after_the_timeout_is_admitted_as_a_probe() -> None:
    opened = Open(until=13.0, epoch=1)
    probing = HalfOpen(in_flight=1, successes=0, epoch=2)
    expected = (probing, (Transition(opened, probing, Reason.RECOVERY_TIMEOUT_EXPIRED), Admit(2)))
    assert run(opened, CallRequested(), now=13.0) == expected


def test_half_open_rejects_calls_while_all_probes_are_under_way() -> None:
    full = HalfOpen(in_flight=1, successes=0, epoch=2)
    assert run(full, CallRequested()) == (full, (Reject(10.0),))


def test_half_open_admits_as_many_probes_as_the_policy_allows() -> None:
    policy = CircuitBreakerPolicy(half_open_max_calls=2)
    state, effects = run(HalfOpen(1, 0, 2), CallRequested(), policy=policy)
    assert (state, effects) == (HalfOpen(2, 0, 2), (Admit(2),))
    assert run(state, CallRequested(), policy=policy) == (state, (Reject(10.0),))


def test_a_probe_that_succeeds_frees_its_place() -> None:
    assert run(HalfOpen(1, 0, 2), CallSucceeded(2)) == (HalfOpen(0, 1, 2), ())
    assert run(HalfOpen(1, 0, 2), CallSucceeded(2), CallRequested()) == (HalfOpen(1, 1, 2), (Admit(2),))


def test_enough_successes_close_the_breaker_with_a_clean_record() -> None:
    probing = HalfOpen(1, 1, 2)
    closed = Closed((), 3)
    assert run(probing, CallSucceeded(2)) == (closed, (Transition(probing, closed, Reason.HALF_OPEN_SUCCESS),))


def test_one_failed_probe_opens_the_breaker_for_another_timeout() -> None:
    probing = HalfOpen(1, 1, 2)
    opened = Open(until=40.0, epoch=3)
    expected = (opened, (Transition(probing, opened, Reason.HALF_OPEN_FAILURE),))
    assert run(probing, CallFailed(2), now=30.0) == expected


def test_an_abandoned_call_counts_as_neither_but_frees_its_place() -> None:
    assert run(HalfOpen(1, 1, 2), CallAbandoned(2)) == (HalfOpen(0, 1, 2), ())


@pytest.mark.parametrize("state", [Closed((1.0, 2.0), 4), Open(99.0, 4), HalfOpen(1, 1, 4)])
@pytest.mark.parametrize("result", [CallSucceeded, CallFailed, CallAbandoned])
def test_a_result_counts_only_in_the_epoch_that_admitted_its_call(
    state: CircuitState, result: type[CallSucceeded | CallFailed | CallAbandoned]
) -> None:
    assert run(state, result(3), now=3.0) == (state, ())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, CallSucceeded(7)),
        (WorkerDied("x"), CallFailed(7)),
        (WorkerHung("x"), CallFailed(7)),
        (ProtocolError("x"), CallFailed(7)),
        (GenerationError("x"), CallFailed(7)),
        (InvalidRequest("x"), CallAbandoned(7)),
        (ModelNotFound("x"), CallAbandoned(7)),
        (Overloaded("x", retry_after=1), CallAbandoned(7)),
        (DeadlineExceeded("x"), CallAbandoned(7)),
        (Aborted("x"), CallAbandoned(7)),
        (KeyboardInterrupt(), CallAbandoned(7)),
    ],
)
def test_only_the_faults_of_the_worker_count_as_failures(error: BaseException | None, expected: CircuitEvent) -> None:
    assert result_of(error, 7) == expected


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("failure_threshold", 0, "failure_threshold must be at least 1, got 0"),
        ("failure_window_s", 0, "failure_window_s must be greater than 0, got 0"),
        ("recovery_timeout_s", -1, "recovery_timeout_s must be greater than 0, got -1"),
        ("half_open_max_calls", 0, "half_open_max_calls must be at least 1, got 0"),
        ("half_open_success_threshold", 0, "half_open_success_threshold must be at least 1, got 0"),
    ],
)
def test_a_policy_out_of_its_limits_is_refused(field: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        CircuitBreakerPolicy(**{field: value})


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["call", "succeed", "fail", "abandon"]), st.floats(0, 15), st.integers(0, 1000)),
    max_size=80,
)


@given(
    actions=ACTIONS,
    policy=st.builds(
        CircuitBreakerPolicy,
        failure_threshold=st.integers(1, 4),
        failure_window_s=st.just(30.0),
        half_open_max_calls=st.integers(1, 3),
        half_open_success_threshold=st.integers(1, 3),
    ),
)
def test_any_history_keeps_the_invariants(actions: list[tuple[str, float, int]], policy: CircuitBreakerPolicy) -> None:
    results = {"succeed": CallSucceeded, "fail": CallFailed, "abandon": CallAbandoned}
    state: CircuitState = Closed()
    admitted: list[int] = []  # the epochs of calls without a result
    now = 0.0
    for action, pause, choice in actions:
        now += pause
        before = state
        if action == "call":
            state, effects = step(state, CallRequested(), now, policy)
            answers = [effect for effect in effects if not isinstance(effect, Transition)]
            assert len(answers) == 1
            match answers[0]:
                case Admit(epoch):
                    assert epoch == state.epoch
                    admitted.append(epoch)
                case Reject(retry_after):
                    assert retry_after > 0
                    assert not isinstance(state, Closed)
        elif admitted:
            epoch = admitted.pop(choice % len(admitted))
            state, effects = step(state, results[action](epoch), now, policy)
            if epoch != before.epoch:
                assert (state, effects) == (before, ())
        else:
            continue
        transitions = [effect for effect in effects if isinstance(effect, Transition)]
        assert bool(transitions) == (type(state) is not type(before))
        assert state.epoch == before.epoch + len(transitions)
        match state:
            case Closed(failures, _):
                assert len(failures) < policy.failure_threshold
            case HalfOpen(in_flight, successes, epoch):
                assert in_flight == admitted.count(epoch)
                assert in_flight <= policy.half_open_max_calls
                assert successes < policy.half_open_success_threshold
            case Open(until, _):
                assert until <= now + policy.recovery_timeout_s
    # However it got here: once every call has its result, the breaker lets somebody through again.
    for epoch in admitted:
        state, _ = step(state, CallAbandoned(epoch), now, policy)
    _, effects = step(state, CallRequested(), now + policy.recovery_timeout_s, policy)
    assert any(isinstance(effect, Admit) for effect in effects)
