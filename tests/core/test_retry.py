import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.retry import BackoffPolicy, RetryPolicy, delay, should_retry, spent
from mlx_serving.errors import (
    Aborted,
    DeathOrigin,
    EngineError,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    WorkerDied,
)


@pytest.mark.parametrize(("attempt", "expected"), [(0, 0.1), (1, 0.2), (2, 0.4), (5, 3.2)])
def test_the_wait_grows_by_the_multiplier(attempt: int, expected: float) -> None:
    assert delay(BackoffPolicy(), attempt, uniform=0.5) == pytest.approx(expected)


def test_jitter_moves_the_wait_by_up_to_its_fraction_either_way() -> None:
    policy = BackoffPolicy(initial_delay_s=1.0, jitter=0.25)
    assert delay(policy, 0, uniform=0.0) == pytest.approx(0.75)
    assert delay(policy, 0, uniform=0.999999) == pytest.approx(1.25, abs=1e-5)


def test_the_wait_never_exceeds_the_maximum_not_even_with_jitter() -> None:
    assert delay(BackoffPolicy(), 9, uniform=0.999) == 30.0


def test_a_huge_attempt_waits_as_long_as_the_maximum_allows() -> None:
    assert delay(BackoffPolicy(), 100_000, uniform=0.5) == 30.0
    assert delay(BackoffPolicy(initial_delay_s=0.0), 100_000, uniform=0.5) == 0.0


@given(
    initial=st.floats(0, 1e3),
    multiplier=st.floats(1, 1e3),
    extra=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
    attempt=st.integers(0, 5000),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_every_wait_is_between_zero_and_the_maximum(
    initial: float, multiplier: float, extra: float, jitter: float, attempt: int, uniform: float
) -> None:
    policy = BackoffPolicy(initial, multiplier, initial + extra, jitter)
    assert 0 <= delay(policy, attempt, uniform) <= policy.max_delay_s


def test_only_retryable_errors_are_retried() -> None:
    policy = RetryPolicy()
    assert should_retry(WorkerDied("gone"), 0, policy)
    assert should_retry(Overloaded("full", retry_after=1), 0, policy)
    for error in (
        InvalidRequest("no"),
        Aborted("left"),
        ProtocolError("us"),
        ValueError("foreign"),
        KeyboardInterrupt(),
    ):
        assert not should_retry(error, 0, policy)


def test_attempts_end_at_max_attempts() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert [should_retry(WorkerDied("gone"), attempt, policy) for attempt in range(4)] == [True, True, False, False]


def test_the_default_retry_waits_at_most_five_seconds() -> None:
    assert RetryPolicy().backoff.max_delay_s == 5.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BackoffPolicy(initial_delay_s=-1), "initial_delay_s must be at least 0, got -1"),
        (lambda: BackoffPolicy(multiplier=0.5), "multiplier must be at least 1, got 0.5"),
        (lambda: BackoffPolicy(max_delay_s=-1), "max_delay_s must be at least 0, got -1"),
        (
            lambda: BackoffPolicy(initial_delay_s=2, max_delay_s=1),
            r"max_delay_s must be at least initial_delay_s \(2\), got 1",
        ),
        (lambda: BackoffPolicy(jitter=1.5), "jitter must be between 0 and 1, got 1.5"),
        (lambda: RetryPolicy(max_attempts=0), "max_attempts must be at least 1, got 0"),
    ],
)
def test_a_policy_out_of_its_limits_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (Overloaded("full", retry_after=1), 1),
        (WorkerDied("crashed"), 1),
        (WorkerDied("killed", origin=DeathOrigin.OUTSIDE), 0.25),
        (WorkerDied("restarted", origin=DeathOrigin.PLANNED), 0),
    ],
)
def test_a_worker_that_did_not_die_by_itself_says_little_about_the_call(error: EngineError, attempts: float) -> None:
    assert spent(error) == attempts
