from __future__ import annotations

import dataclasses
from typing import assert_never

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlx_serving.core.retry import BackoffPolicy
from mlx_serving.core.worker_lifecycle import WorkerPolicy, step, wake_at
from mlx_serving.core.worker_states import (
    AskShutdown,
    BackingOff,
    Beat,
    Cause,
    Draining,
    DrainStage,
    GaveUp,
    HandshakeDone,
    Kill,
    ProcessExited,
    Ready,
    RestartRequested,
    Spawn,
    Starting,
    StartRequested,
    Stopped,
    StopRequested,
    Terminate,
    Tick,
    WorkerEffect,
    WorkerEvent,
    WorkerLost,
    WorkerState,
)
from mlx_serving.errors import DeathOrigin

POLICY = WorkerPolicy(
    startup_timeout_s=20.0,
    shutdown_timeout_s=3.0,
    terminate_timeout_s=2.0,
    heartbeat_interval_s=1.0,
    heartbeat_timeout_s=4.0,
    stall_timeout_s=10.0,
    max_restarts=2,
    restart_window_s=60.0,
    give_up_pause_s=5.0,
    backoff=BackoffPolicy(initial_delay_s=1.0, multiplier=2.0, max_delay_s=8.0, jitter=0.0),
)
EXIT = ProcessExited(uniform=0.5)
READY = Ready(since=0.0, last_beat=0.0, last_progress=0.0)
BUSY = Ready(since=0.0, last_beat=0.0, last_progress=0.0, busy=True)


def after(
    state: WorkerState, event: WorkerEvent, now: float, policy: WorkerPolicy = POLICY
) -> tuple[WorkerState, list[WorkerEffect]]:
    state, effects = step(state, event, now, policy)
    return state, list(effects)


def due(state: WorkerState) -> float:
    at = wake_at(state, POLICY)
    assert at is not None
    return at


# -- "Starting has a deadline; a child that misses it is killed."


def test_a_start_spawns_a_child_that_has_until_the_deadline() -> None:
    state, effects = after(Stopped(), StartRequested(), 100.0)
    assert (state, effects) == (Starting(deadline=120.0), [Spawn()])
    assert due(state) == 120.0


def test_a_child_that_shakes_hands_is_ready() -> None:
    assert after(Starting(20.0, (1.0,)), HandshakeDone(), 7.0) == (Ready(7.0, 7.0, 7.0, deaths=(1.0,)), [])


def test_a_handshake_after_the_deadline_counts_when_nobody_ticked_before_it() -> None:
    assert after(Starting(20.0), HandshakeDone(), 20.5)[0] == Ready(20.5, 20.5, 20.5)


def test_a_child_that_misses_its_deadline_is_killed() -> None:
    assert after(Starting(20.0), Tick(), 19.9) == (Starting(20.0), [])
    assert after(Starting(20.0, (1.0,)), Tick(), 20.0) == (
        Draining(DrainStage.KILLED, 22.0, Cause.STARTUP_TIMEOUT, restart=True, deaths=(1.0,)),
        [WorkerLost(Cause.STARTUP_TIMEOUT), Kill()],
    )


def test_a_child_that_was_killed_for_being_late_counts_as_a_death() -> None:
    killed, _ = after(Starting(20.0), Tick(), 20.0)
    assert after(killed, EXIT, 21.0) == (BackingOff(until=22.0, deaths=(21.0,)), [])


def test_a_handshake_that_comes_after_the_kill_is_too_late() -> None:
    killed, _ = after(Starting(20.0), Tick(), 20.0)
    assert after(killed, HandshakeDone(), 20.1) == (killed, [])


# -- "Ready dies by its own exit, or is killed when no heartbeat comes [...] or when heartbeats come but work makes no
# progress [...]."


@pytest.mark.parametrize("state", [READY, BUSY, Starting(20.0)])
def test_a_child_that_exits_by_itself_is_lost_and_restarted_after_a_wait(state: WorkerState) -> None:
    assert after(state, EXIT, 5.0) == (BackingOff(until=6.0, deaths=(5.0,)), [WorkerLost(Cause.EXITED)])


@pytest.mark.parametrize("state", [READY, BUSY])
def test_a_child_without_a_heartbeat_is_killed(state: Ready) -> None:
    assert due(state) == 4.0
    assert after(state, Tick(), 3.9) == (state, [])
    assert after(state, Tick(), 4.0) == (
        Draining(DrainStage.KILLED, 6.0, Cause.NO_HEARTBEAT, restart=True),
        [WorkerLost(Cause.NO_HEARTBEAT), Kill()],
    )


def test_a_heartbeat_moves_the_limit_of_silence() -> None:
    state, effects = after(READY, Beat(progress=0, busy=False), 3.0)
    assert effects == []
    assert due(state) == 7.0


def _beaten(state: WorkerState, until: float, *, busy: bool, progress: int = 0) -> WorkerState:
    """Heartbeats each second from 1 to `until`."""
    for now in range(1, int(until) + 1):
        state, effects = after(state, Beat(progress, busy), float(now))
        assert effects == []
    return state


def test_a_busy_child_without_progress_is_killed_although_its_heart_beats() -> None:
    state = _beaten(BUSY, 9.0, busy=True)
    assert due(state) == 10.0
    assert after(state, Tick(), 9.9) == (state, [])
    assert after(state, Tick(), 10.0) == (
        Draining(DrainStage.KILLED, 12.0, Cause.NO_PROGRESS, restart=True),
        [WorkerLost(Cause.NO_PROGRESS), Kill()],
    )


def test_progress_moves_the_limit_of_stalling() -> None:
    state, _ = after(_beaten(BUSY, 8.0, busy=True), Beat(progress=1, busy=True), 9.0)
    state, _ = after(state, Beat(progress=1, busy=True), 12.0)
    state, _ = after(state, Beat(progress=1, busy=True), 15.0)
    assert state == Ready(0.0, last_beat=15.0, last_progress=9.0, progress=1, busy=True)
    state, _ = after(state, Beat(progress=1, busy=True), 18.0)
    assert due(state) == 19.0


def test_an_idle_child_may_make_no_progress_for_ever() -> None:
    state = _beaten(READY, 50.0, busy=False)
    assert after(state, Tick(), 50.0) == (state, [])
    assert due(state) == 54.0


def test_time_spent_idle_does_not_count_as_stalling() -> None:
    state, _ = after(_beaten(READY, 50.0, busy=False), Beat(0, busy=True), 51.0)
    state, _ = after(state, Beat(0, busy=True), 54.0)
    assert after(state, Tick(), 54.5) == (state, [])
    state = _beaten(BUSY, 8.0, busy=True)
    state, _ = after(state, Beat(0, busy=False), 9.0)
    state, _ = after(state, Beat(0, busy=True), 11.0)
    assert isinstance(state, Ready)
    assert state.last_progress == 11.0


def test_silence_is_the_cause_when_both_limits_have_passed() -> None:
    silent = Ready(0.0, last_beat=6.0, last_progress=0.0, busy=True)
    assert after(silent, Tick(), 10.0)[1] == [WorkerLost(Cause.NO_HEARTBEAT), Kill()]


# -- "A tick that comes late means that this process itself slept, so nobody is accused of silence."


@pytest.mark.parametrize("late", [1.1, 5.0, 10_000.0])
@pytest.mark.parametrize("state", [READY, BUSY, Ready(0.0, last_beat=8.0, last_progress=0.0, busy=True)])
def test_a_late_tick_gives_a_ready_child_its_time_again(state: Ready, late: float) -> None:
    now = due(state) + late
    assert after(state, Tick(), now) == (Ready(0.0, now, now, busy=state.busy), [])


def test_a_late_tick_gives_a_starting_child_its_time_again() -> None:
    assert after(Starting(20.0, (1.0,)), Tick(), 21.1) == (Starting(41.1, (1.0,)), [])


@pytest.mark.parametrize("state", [READY, BUSY, Starting(20.0)])
def test_a_tick_that_is_late_by_less_than_a_heartbeat_accuses(state: WorkerState) -> None:
    assert isinstance(after(state, Tick(), due(state) + 1.0)[0], Draining)


def test_a_second_silence_after_a_late_tick_is_no_excuse() -> None:
    forgiven, _ = after(READY, Tick(), 100.0)
    assert due(forgiven) == 104.0
    assert isinstance(after(forgiven, Tick(), 104.0)[0], Draining)


def test_a_heartbeat_that_is_read_before_the_late_tick_excuses_old_progress_too() -> None:
    state, _ = after(BUSY, Beat(progress=0, busy=True), 11.0)
    assert after(state, Tick(), 11.0) == (state, [])
    assert due(state) == 15.0


# -- "Draining asks the child to shut down, then terminates it, then kills it, each after its time."


@pytest.mark.parametrize("state", [READY, BUSY, Starting(20.0)])
def test_a_stop_asks_then_terminates_then_kills_until_it_works(state: WorkerState) -> None:
    state, effects = after(state, StopRequested(), 10.0)
    assert state == Draining(DrainStage.ASKED, 13.0, Cause.STOP, restart=False)
    assert effects == [WorkerLost(Cause.STOP), AskShutdown()]
    assert after(state, Tick(), 12.9) == (state, [])
    state, effects = after(state, Tick(), 13.0)
    assert (state, effects) == (Draining(DrainStage.TERMINATED, 15.0, Cause.STOP, restart=False), [Terminate()])
    assert after(state, Tick(), 14.9) == (state, [])
    for now in (15.0, 17.0, 19.0):
        state, effects = after(state, Tick(), now)
        assert (state, effects) == (Draining(DrainStage.KILLED, now + 2, Cause.STOP, restart=False), [Kill()])
    assert after(state, EXIT, 19.5) == (Stopped(), [])


@pytest.mark.parametrize("stage", list(DrainStage))
def test_a_child_may_go_at_any_stage(stage: DrainStage) -> None:
    assert after(Draining(stage, 9.0, Cause.STOP, restart=False), EXIT, 8.0) == (Stopped(), [])


def test_heartbeats_of_a_child_that_must_go_change_nothing() -> None:
    draining = Draining(DrainStage.ASKED, 9.0, Cause.STOP, restart=False)
    assert after(draining, Beat(progress=9, busy=True), 8.0) == (draining, [])


def test_a_stop_in_the_middle_of_a_restart_ends_stopped() -> None:
    state, _ = after(READY, RestartRequested(), 1.0)
    state, effects = after(state, StopRequested(), 2.0)
    assert effects == []
    assert due(state) == 4.0
    assert after(state, EXIT, 3.0) == (Stopped(), [])


def test_a_stop_while_a_hung_child_is_killed_ends_stopped() -> None:
    state, _ = after(READY, Tick(), 4.0)
    state, effects = after(state, StopRequested(), 4.5)
    assert effects == []
    assert after(state, EXIT, 5.0) == (Stopped(), [])


def test_a_start_while_a_child_is_stopped_spawns_another_when_it_is_gone() -> None:
    state, _ = after(READY, StopRequested(), 1.0)
    state, effects = after(state, StartRequested(), 2.0)
    assert effects == []
    assert after(state, EXIT, 3.0) == (Starting(deadline=23.0), [Spawn()])


def test_a_start_after_the_stop_of_a_hung_child_still_waits_for_its_death() -> None:
    state, _ = after(READY, Tick(), 4.0)
    state, _ = after(state, StopRequested(), 4.5)
    state, _ = after(state, StartRequested(), 4.6)
    assert after(state, EXIT, 5.0) == (BackingOff(until=6.0, deaths=(5.0,)), [])


# -- "A planned restart spawns at once; after a death the restart waits, longer each time"


def test_a_planned_restart_spawns_as_soon_as_the_child_is_gone() -> None:
    ready = Ready(0.0, 0.0, 0.0, deaths=(-1.0, -2.0))
    state, effects = after(ready, RestartRequested(), 1.0)
    assert effects == [WorkerLost(Cause.RESTART), AskShutdown()]
    assert after(state, EXIT, 2.0) == (Starting(deadline=22.0, deaths=(-1.0, -2.0)), [Spawn()])


def test_a_planned_restart_that_needs_force_is_no_death() -> None:
    state, _ = after(READY, RestartRequested(), 1.0)
    state, _ = after(state, Tick(), 4.0)
    state, effects = after(state, Tick(), 6.0)
    assert effects == [Kill()]
    assert after(state, EXIT, 6.5) == (Starting(deadline=26.5), [Spawn()])


def test_after_each_death_the_restart_waits_longer() -> None:
    policy = WorkerPolicy(max_restarts=10, backoff=BackoffPolicy(1.0, 2.0, 8.0, jitter=0.0))
    state: WorkerState = Starting(120.0)
    waits: list[float] = []
    now = 0.0
    for _ in range(6):
        state, _ = after(state, EXIT, now, policy)
        assert isinstance(state, BackingOff)
        waits.append(state.until - now)
        assert after(state, Tick(), state.until - 0.01, policy) == (state, [])
        now = state.until
        state, effects = after(state, Tick(), now, policy)
        assert effects == [Spawn()]
    assert waits == [1, 2, 4, 8, 8, 8]


def test_the_jitter_of_the_wait_comes_with_the_exit() -> None:
    policy = WorkerPolicy(backoff=BackoffPolicy(1.0, 2.0, 8.0, jitter=0.5))
    early, _ = after(Starting(9.0), ProcessExited(uniform=0.0), 0.0, policy)
    late, _ = after(Starting(9.0), ProcessExited(uniform=0.75), 0.0, policy)
    assert (wake_at(early, policy), wake_at(late, policy)) == (0.5, 1.25)


def test_a_stop_ends_the_wait() -> None:
    assert after(BackingOff(9.0, (1.0,)), StopRequested(), 2.0) == (Stopped(), [])


# -- "a worker that stayed up for a whole window starts from scratch."


def test_deaths_before_the_window_are_forgotten() -> None:
    state, _ = after(Ready(0.0, 0.0, 0.0, deaths=(-2.0, -1.0)), EXIT, 60.0)
    assert state == BackingOff(until=61.0, deaths=(60.0,))


def test_deaths_within_the_window_are_remembered() -> None:
    state, _ = after(Ready(0.0, 0.0, 0.0, deaths=(-2.0, -1.0)), EXIT, 58.5)
    assert state == BackingOff(until=60.5, deaths=(-1.0, 58.5))


# -- "Too many deaths within the window end in GaveUp with the reason"


def test_one_death_more_than_allowed_gives_up() -> None:
    state, effects = after(Starting(99.0, (1.0, 2.0)), EXIT, 3.0)
    assert (state, effects) == (GaveUp(since=3.0, deaths=3, cause=Cause.EXITED), [WorkerLost(Cause.EXITED)])
    assert wake_at(state, POLICY) is None


def test_giving_up_tells_what_the_last_child_died_of() -> None:
    killed, _ = after(Ready(0.0, 0.0, 0.0, deaths=(-2.0, -1.0)), Tick(), 4.0)
    assert after(killed, EXIT, 5.0) == (GaveUp(since=5.0, deaths=3, cause=Cause.NO_HEARTBEAT), [])


def test_without_restarts_the_first_death_gives_up() -> None:
    assert after(Starting(9.0), EXIT, 1.0, WorkerPolicy(max_restarts=0))[0] == GaveUp(1.0, 1, Cause.EXITED)


def test_a_worker_that_served_anybody_starts_from_scratch() -> None:
    state, _ = after(Ready(0.0, 0.0, 0.0, deaths=(1.0, 2.0)), ProcessExited(0.5, served=True), 3.0)
    assert state == BackingOff(until=4.0, deaths=(3.0,))


def test_four_times_as_many_deaths_are_allowed_when_the_last_came_from_outside() -> None:
    killed = ProcessExited(0.5, origin=DeathOrigin.OUTSIDE)
    state: WorkerState = Ready(0.0, 0.0, 0.0, deaths=(0.0,) * 7)
    assert isinstance(after(state, killed, 3.0)[0], BackingOff)
    state = Ready(0.0, 0.0, 0.0, deaths=(0.0,) * 8)
    assert after(state, killed, 3.0)[0] == GaveUp(3.0, 9, Cause.EXITED)


# -- "a start that is asked for after a pause heals it, and so does a restart at any time, which skips the wait ..."


def test_a_start_heals_after_the_pause_only_and_forgets_the_deaths() -> None:
    gave_up = GaveUp(since=10.0, deaths=3, cause=Cause.EXITED)
    assert after(gave_up, StartRequested(), 14.9) == (gave_up, [])
    assert after(gave_up, StartRequested(), 15.0) == (Starting(deadline=35.0), [Spawn()])


def test_a_restart_heals_at_once_and_forgets_the_deaths() -> None:
    gave_up = GaveUp(since=10.0, deaths=3, cause=Cause.EXITED)
    assert after(gave_up, RestartRequested(), 10.1) == (Starting(deadline=30.1), [Spawn()])


def test_a_restart_skips_the_wait_but_remembers_the_deaths() -> None:
    assert after(BackingOff(9.0, (1.0,)), RestartRequested(), 2.0) == (Starting(22.0, (1.0,)), [Spawn()])


def test_a_stop_ends_giving_up() -> None:
    assert after(GaveUp(10.0, 3, Cause.EXITED), StopRequested(), 11.0) == (Stopped(), [])


# -- what does not concern a state leaves it as it is


@pytest.mark.parametrize(
    ("state", "events"),
    [
        (Stopped(), [HandshakeDone(), Beat(1, True), Tick(), EXIT, StopRequested(), RestartRequested()]),
        (Starting(20.0), [StartRequested(), RestartRequested(), Beat(1, True), Tick()]),
        (READY, [StartRequested(), HandshakeDone(), Tick()]),
        (
            Draining(DrainStage.ASKED, 3.0, Cause.STOP, restart=False),
            [HandshakeDone(), Beat(1, True), RestartRequested(), Tick(), StopRequested()],
        ),
        (
            Draining(DrainStage.KILLED, 3.0, Cause.NO_HEARTBEAT, restart=True),
            [HandshakeDone(), Beat(1, True), RestartRequested(), Tick(), StartRequested()],
        ),
        (BackingOff(3.0, (0.0,)), [StartRequested(), HandshakeDone(), Beat(1, True), EXIT, Tick()]),
        (GaveUp(0.0, 3, Cause.EXITED), [StartRequested(), HandshakeDone(), Beat(1, True), EXIT, Tick()]),
    ],
)
def test_what_does_not_concern_a_state_leaves_it_as_it_is(state: WorkerState, events: list[WorkerEvent]) -> None:
    for event in events:
        assert after(state, event, 1.0) == (state, [])


# -- the policy


TIMES = [field.name for field in dataclasses.fields(WorkerPolicy) if field.name.endswith("_s")]


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_times_are_finite_and_greater_than_zero(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be (a finite number )?greater than 0, got {value}"):
        dataclasses.replace(POLICY, **{name: value})


def test_silence_takes_at_least_two_heartbeats() -> None:
    WorkerPolicy(heartbeat_interval_s=2.0, heartbeat_timeout_s=4.0)
    with pytest.raises(ValueError, match=r"heartbeat_timeout_s must be at least twice .*\(2\.0\), got 3\.9"):
        WorkerPolicy(heartbeat_interval_s=2.0, heartbeat_timeout_s=3.9)


def test_a_negative_number_of_restarts_is_refused() -> None:
    with pytest.raises(ValueError, match="max_restarts must be at least 0, got -1"):
        WorkerPolicy(max_restarts=-1)


# -- whatever happens


class AnyLife(RuleBasedStateMachine):
    """A shell that carries out every effect, and a world in which anything may happen at any time.

    A child that is killed dies, at a time that the world chooses; one that is asked or terminated may be deaf.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.state: WorkerState = Stopped()
        self.alive = False
        self.lost = True
        self.asked_to_go = False
        self.killed = False
        self.stopping = False
        self.progress = 0
        self.unasked_deaths: list[float] = []

    def send(self, event: WorkerEvent) -> tuple[WorkerEffect, ...]:
        before = self.state
        self.state, effects = step(before, event, self.now, POLICY)
        if isinstance(self.state, Stopped) or (isinstance(before, GaveUp) and not isinstance(self.state, GaveUp)):
            self.unasked_deaths.clear()
        for effect in effects:
            self.carry_out(effect, exiting=isinstance(event, ProcessExited))
        return effects

    def carry_out(self, effect: WorkerEffect, *, exiting: bool) -> None:
        match effect:
            case Spawn():
                assert not self.alive, "two living children"
                assert self.lost, "nobody was told that the last child is lost"
                assert not self.stopping
                self.alive, self.lost, self.asked_to_go, self.killed = True, False, False, False
            case WorkerLost():
                assert self.alive or exiting
                assert not self.lost, "one child lost twice"
                self.lost = True
            case AskShutdown():
                assert self.alive
                assert not self.asked_to_go, "asked twice"
                self.asked_to_go = True
            case Terminate():
                assert self.alive
                assert self.asked_to_go, "terminated without having been asked"
            case Kill():
                assert self.alive
                self.killed = True
            case _:
                assert_never(effect)

    def tick_when_due(self) -> None:
        before, at = self.state, wake_at(self.state, POLICY)
        assert at is not None
        self.now = max(self.now, at)
        self.send(Tick())
        following = wake_at(self.state, POLICY)
        assert self.state != before, "a tick at its time did nothing"
        assert following is None or following > self.now, "the next tick is due at once"

    # -- what others ask for

    @rule()
    def start(self) -> None:
        self.stopping = False
        self.send(StartRequested())

    @rule()
    def restart(self) -> None:
        self.send(RestartRequested())

    @rule()
    def stop(self) -> None:
        self.stopping = True
        self.send(StopRequested())
        assert isinstance(self.state, Stopped | Draining)

    # -- what the child does

    @precondition(lambda self: self.alive)
    @rule()
    def shake_hands(self) -> None:
        self.send(HandshakeDone())

    @precondition(lambda self: self.alive)
    @rule(steps=st.integers(0, 1), busy=st.booleans())
    def beat(self, steps: int, busy: bool) -> None:
        self.progress += steps
        assert self.send(Beat(self.progress, busy)) == ()

    @precondition(lambda self: self.alive)
    @rule(uniform=st.floats(0, 1, exclude_max=True))
    def exit(self, uniform: float) -> None:
        self.alive = False
        if not self.asked_to_go:
            self.unasked_deaths.append(self.now)
        recent = [at for at in self.unasked_deaths if self.now - at < POLICY.restart_window_s]
        too_many = not self.asked_to_go and len(recent) > POLICY.max_restarts
        self.send(ProcessExited(uniform))
        assert self.alive or self.lost, "nobody was told that the child is lost"
        assert isinstance(self.state, Stopped) == self.stopping
        assert isinstance(self.state, GaveUp) == (too_many and not self.stopping)
        if isinstance(self.state, GaveUp):
            assert self.state.deaths == len(recent)

    # -- time, in seconds that binary fractions hold exactly

    @rule(seconds=st.sampled_from([0.125, 0.5, 1.0, 3.0, 10.0, 61.0]))
    def time_passes_awake(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := wake_at(self.state, POLICY)) is not None and at <= end:
            self.tick_when_due()
        self.now = end

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0, 100.0]))
    def time_passes_asleep(self, seconds: float) -> None:
        at = wake_at(self.state, POLICY)
        self.now += seconds
        if at is not None and at <= self.now:
            living = isinstance(self.state, Starting | Ready)
            late = self.now - at > POLICY.heartbeat_interval_s
            kind = type(self.state)
            self.tick_when_due()
            if living and late:
                assert isinstance(self.state, kind), "a child was accused of what was slept through"

    @precondition(lambda self: wake_at(self.state, POLICY) is not None)
    @rule()
    def next_deadline(self) -> None:
        self.tick_when_due()

    @rule()
    def needless_tick(self) -> None:
        at = wake_at(self.state, POLICY)
        if at is None or self.now < at:
            before = self.state
            assert self.send(Tick()) == ()
            assert self.state == before

    # -- what must hold at all times

    @invariant()
    def the_state_knows_whether_a_child_lives(self) -> None:
        assert isinstance(self.state, Starting | Ready | Draining) == self.alive
        assert isinstance(self.state, Draining) == (self.alive and self.lost)

    @invariant()
    def whoever_waits_for_something_has_a_deadline(self) -> None:
        assert (wake_at(self.state, POLICY) is None) == isinstance(self.state, Stopped | GaveUp)

    def teardown(self) -> None:
        """A stop ends Stopped within a bounded time, also when the child hears nothing but a kill."""
        self.stop()
        asked_at = self.now
        while not isinstance(self.state, Stopped):
            if self.killed:
                self.exit(0.5)
            else:
                self.tick_when_due()
        assert not self.alive
        assert self.now - asked_at <= POLICY.shutdown_timeout_s + POLICY.terminate_timeout_s


AnyLife.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestAnyLife = AnyLife.TestCase
