from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_serving.core.generation import Priority
from mlx_serving.core.intake import Departures, Intake
from mlx_serving.core.schedule.scheduling import SchedulerPolicy
from mlx_serving.errors import Overloaded

POLICY = SchedulerPolicy(max_num_seqs=2, max_queue=4, batch_queue_share=0.5)


def refused(intake: Intake, priority: Priority = "normal", now: float = 0.0) -> Overloaded:
    with pytest.raises(Overloaded) as refusal:
        intake.enter(priority, now)
    return refusal.value


def filled(count: int, workers: int = 1) -> Intake:
    intake = Intake(POLICY, workers)
    for _ in range(count):
        intake.enter("normal", 0.0)
    return intake


def test_as_many_may_be_here_as_run_and_wait() -> None:
    intake = filled(6)
    error = refused(intake)
    assert error.message == "4 requests are waiting already; the limit for normal priority is 4"
    assert (error.details["limit"], error.details["given"]) == (4, 4)
    intake.leave(1.0)
    intake.enter("normal", 1.0)
    assert len(intake) == 6


def test_every_worker_adds_its_places() -> None:
    assert "12 requests are waiting already" in refused(filled(18, workers=3)).message


def test_low_priorities_may_take_a_part_of_the_queue() -> None:
    intake = filled(4)
    assert "the limit for background priority is 2" in refused(intake, "background").message
    intake.enter("critical", 0.0)


def test_retry_after_is_how_long_half_of_those_who_wait_take() -> None:
    intake = filled(6)
    for number in range(1, 101):
        intake.leave(5.0 * number)
        intake.enter("normal", 5.0 * number)
    assert refused(intake, now=500.0).retry_after == pytest.approx(10.0)


def steady(each_s: float, max_wait_s: float) -> Intake:
    """Two run, and each leaves after so many seconds."""
    intake = Intake(replace(POLICY, max_queue=100), max_wait_s=max_wait_s)
    intake.enter("normal", 0.0)
    intake.enter("normal", 0.0)
    for number in range(1, 101):
        intake.leave(each_s * number)
        intake.enter("normal", each_s * number)
    return intake


def test_nobody_waits_longer_than_is_allowed_by_the_pace_of_late() -> None:
    intake = steady(2.0, max_wait_s=7.0)
    for _ in range(4):
        intake.enter("normal", 200.0)
    error = refused(intake, now=200.0)
    assert error.message == "4 requests are waiting already, which takes about 8 s; the limit is 7 s"
    assert error.retry_after == pytest.approx(8.0 - 3.5)
    assert (error.details["limit"], error.details["given"]) == (7.0, 8.0)
    intake.leave(202.0)
    intake.enter("normal", 202.0)


def test_without_a_pace_the_time_to_wait_is_not_known() -> None:
    intake = Intake(POLICY, max_wait_s=1.0)
    for _ in range(6):
        intake.enter("normal", 0.0)


def test_retry_after_is_some_seconds_until_as_many_have_left_as_run() -> None:
    intake = filled(6)
    assert refused(intake).retry_after == 5.0
    intake.leave(3.0)
    intake.enter("normal", 3.0)
    assert refused(intake, now=3.0).retry_after == 5.0
    intake.leave(3.0)
    intake.enter("normal", 3.0)
    assert refused(intake, now=3.0).retry_after == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize(("each_s", "retry_s"), [(0.001, 1.0), (600.0, 60.0)])
def test_retry_after_is_between_a_second_and_a_minute(each_s: float, retry_s: float) -> None:
    intake = filled(6)
    for number in (1, 2):
        intake.leave(number * each_s)
        intake.enter("normal", number * each_s)
    assert refused(intake, now=2 * each_s).retry_after == retry_s


def test_times_without_anybody_do_not_count() -> None:
    departures = Departures(1)
    departures.begin(0.0)
    departures.note(2.0)
    departures.begin(1000.0)
    departures.note(1002.0)
    assert departures.seconds_for(3) == pytest.approx(6.0)


def test_departures_of_late_count_most() -> None:
    departures = Departures(1)
    now = 0.0
    for each_s in [10.0] * 100 + [1.0] * 40:
        now += each_s
        departures.note(now)
    assert departures.seconds_for(1) == pytest.approx(1.0, rel=0.2)


PRIORITIES = st.sampled_from(["critical", "high", "normal", "low", "background"])


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.lists(st.one_of(PRIORITIES, st.none()), max_size=80),
    st.lists(st.floats(0, 30), min_size=80, max_size=80),
)
def test_whoever_comes_and_goes_the_bounds_hold(
    slots: int, queue: int, events: list[Priority | None], gaps: list[float]
) -> None:
    policy = SchedulerPolicy(max_num_seqs=slots, max_queue=queue)
    intake, now, seen = Intake(policy), 0.0, Counter[str]()
    for event, gap in zip(events, gaps, strict=False):
        now += gap
        if event is None:
            if len(intake):
                intake.leave(now)
                seen["left"] += 1
            continue
        if len(intake) >= slots + policy.places(event):
            assert 1.0 <= refused(intake, event, now).retry_after <= 60.0
        else:
            intake.enter(event, now)
            seen["entered"] += 1
    assert len(intake) == seen["entered"] - seen["left"] <= slots + queue


def test_other_limits_hold_for_those_who_come_later() -> None:
    intake = filled(4)
    intake.reconfigure(replace(POLICY, max_queue=1), None)
    assert refused(intake).details["limit"] == 1
    intake.reconfigure(POLICY, None)
    intake.enter("normal", 0.0)
    assert len(intake) == 5
